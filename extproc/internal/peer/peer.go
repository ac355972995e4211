// Package peer exchanges between replicas of extproc which prompts each has sent where.
//
// extproc runs Peers for -pool, where engines do not report to all of them what they have
// cached: stream gives it what it records, fleet takes in what the others have. Its one
// rule: nothing waits for a peer. What can't be sent at once is dropped; a replica that
// lacks it decides as if the prompt were new.
package peer

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/extproc/peerpb"
	"millrace.dev/millrace/internal/trust"
)

const (
	// gather is how long placements are gathered before they are sent: less than any answer
	// takes, which the next turn of a conversation waits for.
	gather = 5 * time.Millisecond
	// waiting is how many placements may wait to be sent, batch how many are sent at a time,
	// and batches how many of these may wait for one peer.
	waiting, batch, batches = 8192, 1024, 64
	// most is how many peers are followed, and may follow.
	most = 64
	// again is before a peer is asked again that has ended, or is not there yet; later before
	// one that does not know how: an older version.
	again, later = time.Second, 30 * time.Second
	// mostTokens is more than any prompt has.
	mostTokens = 1<<24 - 1
	// ping finds out within so long that a peer hangs.
	ping = 10 * time.Second
)

// Options is what Peers are for.
type Options struct {
	// Port is where peers listen.
	Port int
	// Dial is how they are reached.
	Dial grpc.DialOption
	// Placed takes in what was placed where: n placements in their order.
	Placed func(n int, placement func(i int) (address string, p prefix.Placement))
}

// Peers are the other replicas.
type Peers struct {
	peerpb.UnimplementedPeersServer

	// Constant after New.
	options Options
	log     *slog.Logger
	metrics *metrics
	queue   chan *peerpb.Placement
	changed chan struct{} // holds one: hosts has changed
	done    chan struct{} // closed when Run ends

	// Atomic.
	followed atomic.Bool // whether anybody follows

	// mu guards the fields below.
	mu        sync.Mutex
	hosts     []string
	followers map[chan *peerpb.Placements]bool
}

// New returns Peers without any.
func New(o Options, log *slog.Logger, reg prometheus.Registerer) *Peers {
	return &Peers{
		options: o, log: log, metrics: newMetrics(reg), queue: make(chan *peerpb.Placement, waiting), changed: make(chan struct{}, 1),
		done: make(chan struct{}), followers: map[chan *peerpb.Placements]bool{},
	}
}

// Set says at which IP addresses the other replicas are.
func (p *Peers) Set(hosts []string) {
	p.mu.Lock()
	p.hosts = hosts[:min(len(hosts), most)]
	p.mu.Unlock()
	select {
	case p.changed <- struct{}{}:
	default: // who reads it is yet to look
	}
}

// Place has the others know of a placement.
func (p *Peers) Place(address string, what prefix.Placement) {
	if !p.followed.Load() {
		return
	}
	select {
	case p.queue <- encode(address, what):
	default:
		p.metrics.dropped.Inc()
	}
}

func encode(address string, what prefix.Placement) *peerpb.Placement {
	chain := what.Chain
	if what.Answered && len(chain) > 0 {
		chain = chain[len(chain)-1:]
	}
	m := &peerpb.Placement{
		Address: address, Name: uint64(what.Name), Answered: what.Answered, Cached: min(what.Tokens, mostTokens), Fresh: min(what.Fresh, mostTokens),
		Keys: make([]uint64, len(chain)), Tokens: make([]uint32, len(chain)),
	}
	for i, l := range chain {
		m.Keys[i], m.Tokens[i] = uint64(l.Key), min(l.Tokens, mostTokens)
	}
	return m
}

func decode(m *peerpb.Placement) (string, prefix.Placement) {
	n := min(len(m.GetKeys()), len(m.GetTokens()))
	what := prefix.Placement{Chain: make([]prefix.Link, n), Name: session.Key(m.GetName()), Tokens: m.GetCached(), Answered: m.GetAnswered(), Fresh: m.GetFresh()}
	for i := range n {
		what.Chain[i] = prefix.Link{Key: session.Key(m.GetKeys()[i]), Tokens: m.GetTokens()[i]}
	}
	return m.GetAddress(), what
}

// Run follows the others, and sends them what is placed, until ctx ends.
func (p *Peers) Run(ctx context.Context) error {
	defer close(p.done)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.send(ctx) })
	g.Go(func() error { return p.keep(ctx) })
	return g.Wait()
}

// send hands what is placed to all who follow.
func (p *Peers) send(ctx context.Context) error {
	for {
		m := &peerpb.Placements{}
		select {
		case <-ctx.Done():
			return nil
		case one := <-p.queue:
			m.Placements = append(m.Placements, one)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(gather):
		}
		for more := true; more && len(m.Placements) < batch; {
			select {
			case one := <-p.queue:
				m.Placements = append(m.Placements, one)
			default:
				more = false
			}
		}
		p.hand(m)
	}
}

func (p *Peers) hand(m *peerpb.Placements) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for f := range p.followers {
		select {
		case f <- m:
			p.metrics.sent.Add(float64(len(m.GetPlacements())))
		default:
			p.metrics.dropped.Add(float64(len(m.GetPlacements())))
		}
	}
}

// Follow serves another replica.
func (p *Peers) Follow(_ *peerpb.FollowRequest, st grpc.ServerStreamingServer[peerpb.Placements]) error {
	f := make(chan *peerpb.Placements, batches)
	if !p.join(f) {
		return status.Errorf(codes.ResourceExhausted, "%d follow already", most)
	}
	defer p.leave(f)
	if err := st.SendHeader(metadata.MD{}); err != nil { // who follows knows that it does
		return err
	}
	for {
		select {
		case <-st.Context().Done():
			return nil
		case <-p.done:
			return status.Error(codes.Unavailable, "it ends")
		case m := <-f:
			if err := st.Send(m); err != nil {
				return err
			}
		}
	}
}

func (p *Peers) join(f chan *peerpb.Placements) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.followers) == most {
		return false
	}
	p.followers[f] = true
	p.followed.Store(true)
	return true
}

func (p *Peers) leave(f chan *peerpb.Placements) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.followers, f)
	p.followed.Store(len(p.followers) > 0)
}

// keep follows those that there are.
func (p *Peers) keep(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	following := map[string]context.CancelFunc{}
	for {
		p.mu.Lock()
		hosts := p.hosts
		p.mu.Unlock()
		for host, stop := range following {
			if !slices.Contains(hosts, host) {
				stop()
				delete(following, host)
			}
		}
		for _, host := range hosts {
			if following[host] == nil {
				own, stop := context.WithCancel(ctx)
				following[host] = stop
				wg.Go(func() { p.follow(own, net.JoinHostPort(host, strconv.Itoa(p.options.Port))) })
			}
		}
		select {
		case <-ctx.Done():
			for _, stop := range following {
				stop()
			}
			return nil
		case <-p.changed:
		}
	}
}

// follow follows one replica until ctx ends.
func (p *Peers) follow(ctx context.Context, address string) {
	log := p.log.With("peer", address)
	conn, err := grpc.NewClient("passthrough:///"+address, p.options.Dial,
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: ping, Timeout: ping / 2}))
	if err != nil {
		log.Warn("peer can't be followed", "error", err)
		return
	}
	defer func() { _ = conn.Close() }()
	for {
		err := p.read(ctx, conn, log)
		if ctx.Err() != nil {
			return
		}
		pause := again
		if status.Code(err) == codes.Unimplemented {
			pause = later
		}
		log.Debug("peer not followed", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause - pause/4 + rand.N(pause/2)):
		}
	}
}

// read takes in what a replica sends, until it ends.
func (p *Peers) read(ctx context.Context, conn *grpc.ClientConn, log *slog.Logger) error {
	st, err := peerpb.NewPeersClient(conn).Follow(ctx, &peerpb.FollowRequest{})
	if err != nil {
		return err
	}
	if md, err := st.Header(); err != nil || md == nil {
		_, err = st.Recv()
		return err
	}
	log.Info("peer is followed")
	p.metrics.peers.Inc()
	defer p.metrics.peers.Dec()
	for {
		m, err := st.Recv()
		if err != nil {
			return err
		}
		if err := trust.Message(m); err != nil {
			log.Warn("placements refused", "error", err)
			continue
		}
		all := m.GetPlacements()
		p.metrics.received.Add(float64(len(all)))
		p.options.Placed(len(all), func(i int) (string, prefix.Placement) { return decode(all[i]) })
	}
}
