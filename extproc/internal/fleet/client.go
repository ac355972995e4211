package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/stream"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/proc"
	"millrace.dev/millrace/internal/reach"
	"millrace.dev/millrace/internal/wire"
)

// Waits before xds is asked again, and when it is taken to hang.
const (
	retryFirst = 50 * time.Millisecond
	retryMost  = time.Second
	pingEvery  = 2 * time.Second
	pingWait   = 2 * time.Second
)

// maxResponse bounds one response of xds, in bytes: some ten thousand endpoints
// take 3 MiB, and what xds keeps of caches 60 MiB at most.
const maxResponse = 128 << 20

// Client reads the fleet from xds.
type Client struct {
	// Constant after New.
	target   string
	security grpc.DialOption // of the connection
	picker   Picker
	loader   *loader
	log      *slog.Logger
	metrics  *metrics

	// Constant after Run has begun. It takes the accounts that engines report; nil: nobody
	// does.
	account func(request, generated uint64, now time.Time)
	// Constant after Run has begun. waiting calls for each model that requests wait for; nil:
	// nobody is asked. every is a name for every xds.
	waiting func(each func(model string, n int, since time.Time))
	every   string
	// Constant after Run has begun. decisions has what is sent to every xds; nil: nothing is.
	decisions *stream.Decisions

	// Touched by follow alone.
	state *state
	// noCaches is whether the next stream does without caches: xds did not know them.
	noCaches bool

	// Atomic.
	connected atomic.Bool                // whether xds has answered on the present stream
	table     atomic.Pointer[pick.Table] // the last one published; nil: none was
}

// New returns a client of the xds at target ("ip:port"), to which it connects with
// security. It gives tables and findings to picker, and reads the tokenizers that models name with load, which may take
// long. It counts into reg.
func New(target string, security grpc.DialOption, picker Picker, load func(path string) (pick.Counter, error), log *slog.Logger, reg prometheus.Registerer) *Client {
	c := &Client{
		target: target, security: security, picker: picker, log: log, metrics: newMetrics(reg),
		state: newState(true), loader: newLoader(load, log),
	}
	c.state.keys = reach.NewKeys(log)
	return c
}

// OnAccount has f take how many tokens were generated of a request that has ended, by its
// number. It is called several times for one request, and for those of other extprocs. To be
// called before Run.
func (c *Client) OnAccount(f func(request, generated uint64, now time.Time)) { c.account = f }

// Run follows xds until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	conn, err := grpc.NewClient(c.target,
		c.security,
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: retryFirst, Multiplier: 1.6, Jitter: 0.2, MaxDelay: retryMost},
			MinConnectTimeout: pingWait,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingWait, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse)),
	)
	if err != nil {
		return fmt.Errorf("xds %s: %w", c.target, err)
	}
	defer conn.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.loader.run(ctx) })
	g.Go(func() error { return c.state.keys.Run(ctx) })
	g.Go(func() error { return c.demand(ctx) })
	g.Go(func() error { return c.stay(ctx, discovery.NewAggregatedDiscoveryServiceClient(conn)) })
	return g.Wait()
}

// stay follows one stream after the other.
func (c *Client) stay(ctx context.Context, ads discovery.AggregatedDiscoveryServiceClient) error {
	wait := proc.Backoff{Min: retryFirst, Max: retryMost, Reset: 2 * retryMost}
	for {
		began := time.Now()
		err := c.follow(ctx, ads)
		if ctx.Err() != nil {
			return nil
		}
		if c.connected.Swap(false) {
			c.metrics.connected.Set(0)
			c.log.Warn("xds lost", "xds", c.target, "error", err)
			c.reach(false)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait.Next(time.Since(began))):
		}
	}
}

// reach takes in whether xds answers: who waits for a place is to learn why there comes none.
func (c *Client) reach(answers bool) {
	if c.state.away = !answers; c.table.Load() == nil {
		return
	}
	if t := c.state.table(); t != nil {
		c.picker.Publish(t)
		c.table.Store(t)
	}
}

// follow subscribes to everything and takes in what comes until the stream ends.
func (c *Client) follow(ctx context.Context, ads discovery.AggregatedDiscoveryServiceClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := ads.DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	for _, r := range c.subscriptions() {
		if err := st.Send(r); err != nil {
			return err
		}
	}
	received := map[string]bool{}
	for {
		r, err := st.Recv()
		if err != nil {
			// An older xds answers in order until it gets to the type that it doesn't know.
			c.noCaches = status.Code(err) == codes.Unknown && received[wire.EndpointType] && !received[wire.CacheType]
			return err
		}
		received[r.GetTypeUrl()] = true
		if !c.connected.Swap(true) {
			c.metrics.connected.Set(1)
			c.log.Info("xds answers", "xds", c.target)
			c.reach(true)
		}
		if err := st.Send(c.take(r)); err != nil {
			return err
		}
	}
}

// subscriptions ask for all resources of each type, but not for those versions
// that we hold already.
func (c *Client) subscriptions() []*discovery.DeltaDiscoveryRequest {
	var all []*discovery.DeltaDiscoveryRequest
	for _, t := range types {
		if t == wire.CacheType && c.noCaches {
			continue
		}
		all = append(all, &discovery.DeltaDiscoveryRequest{
			TypeUrl:                 t,
			ResourceNamesSubscribe:  []string{"*"},
			InitialResourceVersions: maps.Clone(c.state.versions[t]),
		})
	}
	all[0].Node = &core.Node{Id: "extproc", Cluster: "extproc"}
	c.state.clock, c.state.resumes = clock{}, true // it may be another xds
	return all
}

// take takes one response in, publishes the table and returns the ACK, or the
// NACK that names what was wrong.
func (c *Client) take(r *discovery.DeltaDiscoveryResponse) *discovery.DeltaDiscoveryRequest {
	ack := &discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
	c.metrics.updates.Inc()
	if err := c.state.apply(r, time.Now()); err != nil {
		c.metrics.rejected.Inc()
		c.log.Warn("xds response refused", "type", r.GetTypeUrl(), "error", err)
		ack.ErrorDetail = &spb.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
	}
	if c.account != nil {
		for _, a := range c.state.accounts {
			c.account(a.GetRequest(), a.GetGeneratedTokens(), time.Now())
		}
	}
	c.state.accounts = c.state.accounts[:0]
	if r.GetTypeUrl() == wire.CacheType && !c.state.stale {
		return ack
	}
	c.state.stale = false
	if t := c.state.table(); t != nil {
		c.picker.Publish(t)
		c.table.Store(t)
		for _, w := range c.state.done {
			c.state.measured(c.picker, t, w, time.Now())
		}
		c.state.done = nil
		c.metrics.count(t)
		c.metrics.cached.Set(float64(c.state.cachedTokens()))
	}
	if c.state.tailors || r.GetTypeUrl() == wire.ModelType {
		c.state.tailors = false
		c.loader.want(c.state.tokenizers())
	}
	return ack
}

// Conditions returns what is wrong: nothing may be known yet, xds may be away,
// a tokenizer may be unreadable.
func (c *Client) Conditions() []obs.Condition {
	var all []obs.Condition
	switch {
	case c.table.Load() == nil:
		all = append(all, obs.Condition{
			Code: "no-fleet",
			Text: fmt.Sprintf("no fleet received from xds at %s yet: until then Envoy chooses hosts by their weights", c.target),
			Next: "start xds, or set -xds to its address", Severity: obs.Blocking,
		})
	case !c.connected.Load():
		all = append(all, obs.Condition{
			Code: "xds-away",
			Text: fmt.Sprintf("xds at %s does not answer: the last state received from it stays in force", c.target),
			Next: "start xds; extproc connects by itself",
		})
	}
	return slices.Concat(all, c.unpriced(), c.state.keys.Conditions(), c.loader.conditions())
}

// unpriced is the condition of endpoints that don't say what they have generated.
func (c *Client) unpriced() []obs.Condition {
	t := c.table.Load()
	if t == nil || t.Policy.Flow == nil || t.Policy.Flow.Budget.Tokens == 0 {
		return nil
	}
	at := map[string]bool{}
	for _, m := range t.Models {
		for _, e := range m.Endpoints {
			if !e.Ours() && e.Live.Unpriced() {
				at[e.Address] = true
			}
		}
	}
	return unpriced(slices.Collect(maps.Keys(at)))
}
