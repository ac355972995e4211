package fleet

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/internal/proc"
	"millrace.dev/millrace/internal/resolve"
	"millrace.dev/millrace/xds/fleetpb"
)

// Models that are loaded on demand may have no place on nodes, and others too few replicas.
// Requests for them wait here, and every xds gets reports of how many wait for which models, as
// the contract has it: of several, the one that leads gives places, and starts replicas. A stream is opened when requests begin to wait,
// and stays.

const (
	// demandEvery is how often it is checked who waits, demandAgain how often it is sent
	// without a change.
	demandEvery = 100 * time.Millisecond
	demandAgain = time.Second
	// mostDemand is how many models are reported, those with most requests.
	mostDemand = 1024
)

// OnDemand has it be reported to every xds which models requests wait for, as waiting says.
// every is "host:port", a name for every xds. To be called before Run.
func (c *Client) OnDemand(waiting func(each func(model string, n int, since time.Time)), every string) {
	c.waiting, c.every = waiting, every
}

// demand reports to every xds until ctx ends.
func (c *Client) demand(ctx context.Context) error {
	if c.waiting == nil {
		return nil
	}
	var tasks sync.WaitGroup
	defer tasks.Wait()
	to := map[string]context.CancelFunc{} // by address
	for {
		all, known := addresses(ctx, c.every)
		if known {
			for addr, stop := range to {
				if !slices.Contains(all, addr) {
					stop()
					delete(to, addr)
				}
			}
		}
		for _, addr := range all {
			if to[addr] == nil {
				each, stop := context.WithCancel(ctx)
				to[addr] = stop
				tasks.Go(func() { c.reportTo(each, addr) })
			}
		}
		select {
		case <-ctx.Done():
			for _, stop := range to {
				stop()
			}
			return nil
		case <-time.After(resolve.Every):
		}
	}
}

// addresses returns those of a name, and whether they are known.
func addresses(ctx context.Context, name string) ([]string, bool) {
	host, port, several := resolve.Name(name)
	if !several {
		return []string{name}, true
	}
	all, err := resolve.Addresses(ctx, resolve.DNS, host, port)
	return all, err == nil && len(all) > 0
}

// reportTo reports to the xds at an address until ctx ends.
func (c *Client) reportTo(ctx context.Context, addr string) {
	conn, err := grpc.NewClient(addr, c.security,
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: retryFirst, Multiplier: 1.6, Jitter: 0.2, MaxDelay: retryMost}, MinConnectTimeout: pingWait}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingWait}))
	if err != nil {
		c.log.Warn("xds can't be asked for places", "xds", addr, "error", err)
		return
	}
	defer conn.Close()
	var decisions sync.WaitGroup
	decisions.Go(func() { c.decidedAt(ctx, conn) })
	defer decisions.Wait()
	c.demandAt(ctx, conn, addr)
}

// demandAt reports to an xds what is waited for, until ctx ends.
func (c *Client) demandAt(ctx context.Context, conn *grpc.ClientConn, addr string) {
	tick := time.NewTicker(demandEvery)
	defer tick.Stop()
	wait := proc.Backoff{Min: retryFirst, Max: retryMost, Reset: 2 * retryMost}
	for {
		if r := c.waits(time.Now()); len(r.GetModels())+len(r.GetQueued()) > 0 {
			began := time.Now()
			if err := c.demandStream(ctx, conn, tick.C); err != nil && ctx.Err() == nil {
				c.log.Warn("what is waited for was not reported", "xds", addr, "error", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(wait.Next(time.Since(began))):
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// demandStream reports on one stream, at each tick that brings something new.
func (c *Client) demandStream(ctx context.Context, conn *grpc.ClientConn, tick <-chan time.Time) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := fleetpb.NewFleetClient(conn).Demand(ctx)
	if err != nil {
		return err
	}
	var models []string
	var sent time.Time
	for {
		now := time.Now()
		r := c.waits(now)
		names := make([]string, 0, len(r.GetModels())+len(r.GetQueued()))
		for _, m := range r.GetModels() {
			names = append(names, m.GetModel())
		}
		for _, m := range r.GetQueued() {
			names = append(names, "queued "+m.GetModel())
		}
		if !slices.Equal(names, models) || len(names) > 0 && now.Sub(sent) >= demandAgain {
			if err := stream.Send(r); err != nil {
				_, err = stream.CloseAndRecv() // says why
				return err
			}
			models, sent = names, now
		}
		select {
		case <-stream.Context().Done():
			_, err := stream.CloseAndRecv()
			return err
		case <-ctx.Done():
			return nil
		case <-tick:
		}
	}
}

// waits is what requests wait for, in the order of names.
func (c *Client) waits(now time.Time) *fleetpb.DemandReport {
	r := &fleetpb.DemandReport{}
	t := c.table.Load()
	if t == nil {
		return r
	}
	c.waiting(func(model string, n int, since time.Time) {
		m := t.Models[model]
		if m == nil || n <= 0 {
			return
		}
		oldest := min(max(0, now.Sub(since)), 24*time.Hour)
		d := &fleetpb.ModelDemand{Model: model, Waiting: uint32(min(n, 1000000)), Oldest: durationpb.New(oldest)}
		if m.Awaited {
			r.Models = append(r.Models, d)
		} else {
			r.Queued = append(r.Queued, d)
		}
	})
	r.Models, r.Queued = bounded(r.Models), bounded(r.Queued)
	return r
}

// bounded returns those with most requests, in the order of names.
func bounded(all []*fleetpb.ModelDemand) []*fleetpb.ModelDemand {
	if len(all) > mostDemand {
		slices.SortFunc(all, func(a, b *fleetpb.ModelDemand) int { return cmp.Compare(b.GetWaiting(), a.GetWaiting()) })
		all = all[:mostDemand]
	}
	slices.SortFunc(all, func(a, b *fleetpb.ModelDemand) int { return cmp.Compare(a.GetModel(), b.GetModel()) })
	return all
}
