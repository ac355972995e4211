package report

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/resolve"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// Config says who reports to whom.
type Config struct {
	// Node is the node's name, Zone its failure domain (may be empty).
	Node, Zone string
	// Engine is the address of the engine's gRPC service.
	Engine string
	// XDS is where xds is, "ip:port", or "name:port" for all addresses of the name, which
	// is followed.
	XDS string
	// Identity is what the reporter shows of itself; nil: it speaks plain text.
	Identity *mtls.Source
	// Interval is the time between heartbeats.
	Interval time.Duration
	// Timeout is the silence after which xds is to count the node as hung.
	Timeout time.Duration
}

// Sensor reads the node. It is called by one goroutine and returns at once.
type Sensor interface {
	Telemetry(now time.Time) *fleetpb.Telemetry
}

// Reporter is the loop around an Agent, and its streams.
type Reporter struct {
	// Constant after New.
	cfg     Config
	sensor  Sensor
	log     *slog.Logger
	metrics *metrics
	dial    dialer
	resolve resolve.Lookup

	// events go to the loop; it always reads on.
	events chan Event
	// assignments holds one at most: the agent has one on its way at a time.
	assignments chan *enginepb.Assignment

	// Atomic.
	view atomic.Pointer[view]

	// mu guards the field below.
	mu sync.Mutex
	// streams are those to each xds, by address.
	streams map[string]*outbox
}

// outbox is what goes to one xds: the newest report that is not sent yet. An older one
// is thrown away, since a heartbeat says all.
type outbox struct {
	reports chan outgoing
	// left is closed when the address is not one of xds any more.
	left chan struct{}
}

// outgoing is a report with all that is known of the engine's cache: what of both is
// sent depends on what was sent before.
type outgoing struct {
	*fleetpb.NodeReport
	cache *enginepb.Cache
}

// view is what others may know of the agent. It is never changed once published.
type view struct {
	conditions []obs.Condition
	telemetry  *fleetpb.Telemetry
	engine     observed
	up         bool // whether a stream to an xds is
}

// New returns a reporter. Its metrics are in reg.
func New(cfg Config, sensor Sensor, log *slog.Logger, reg prometheus.Registerer) *Reporter {
	r := &Reporter{
		cfg:         cfg,
		sensor:      sensor,
		log:         log,
		dial:        dialTCP,
		resolve:     resolve.DNS,
		events:      make(chan Event),
		streams:     make(map[string]*outbox),
		assignments: make(chan *enginepb.Assignment, 1),
	}
	r.view.Store(&view{conditions: []obs.Condition{{Code: "starting", Text: "nodeagent is starting: neither engine nor xds has answered yet", Severity: obs.Blocking}}})
	r.metrics = newMetrics(reg, r.view.Load)
	return r
}

// Conditions returns what is wrong now, for /readyz.
func (r *Reporter) Conditions() []obs.Condition { return r.view.Load().conditions }

// Run reports until ctx ends. Neither an engine nor an xds that is away ends it.
func (r *Reporter) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.loop(ctx) })
	g.Go(func() error { return r.listen(ctx) })
	g.Go(func() error { return r.follow(ctx) })
	g.Go(func() error { return r.assign(ctx) })
	return g.Wait()
}

// endEvery is how often AwaitEngineEnd looks, and how long it lets the report of the end
// be on its way.
const endEvery = 100 * time.Millisecond

// AwaitEngineEnd returns when the engine can't be reached any more, and that was
// reported, or when ctx ends.
func (r *Reporter) AwaitEngineEnd(ctx context.Context) {
	tick := time.NewTicker(endEvery)
	defer tick.Stop()
	for ended := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if ended {
				return
			}
			ended = r.view.Load().engine.wrong == strings.TrimSpace(wire.EngineUnreachable)
		}
	}
}

func (r *Reporter) loop(ctx context.Context) error {
	agent := NewAgent(r.cfg.Node, r.cfg.Zone, r.cfg.Interval, r.cfg.Timeout, time.Now())
	timer := time.NewTimer(0)
	defer timer.Stop()
	var telemetry *fleetpb.Telemetry // read with the first Tick
	ev := Event(Tick{})
	for {
		now := time.Now()
		fx := agent.Step(now, ev)
		if fx.Read || telemetry == nil {
			telemetry = r.sensor.Telemetry(now)
		}
		r.apply(now, agent, ev, fx, telemetry)
		r.view.Store(&view{agent.Conditions(now, telemetry), telemetry, agent.reported, agent.leaders.connected()})
		timer.Reset(agent.Wake(now).Sub(now))
		select {
		case <-ctx.Done():
			return nil
		case ev = <-r.events:
		case <-timer.C:
			ev = Tick{}
		}
	}
}

// apply does what follows from an event.
func (r *Reporter) apply(now time.Time, agent *Agent, ev Event, fx Effects, telemetry *fleetpb.Telemetry) {
	for _, c := range fx.Log {
		level := slog.LevelInfo
		if c.Wrong {
			level = slog.LevelWarn
		}
		r.log.Log(context.Background(), level, c.Text, c.Facts...)
	}
	r.metrics.count(ev)
	if fx.Assign != nil {
		r.assignments <- fx.Assign
	}
	if down, ok := ev.(Down); ok {
		r.outbox(down.XDS).empty() // of the stream that ended
	}
	if !fx.Report {
		return
	}
	report, err := agent.Report(now, telemetry)
	if err != nil {
		r.metrics.invalid.Inc()
		r.log.Error("report breaks the contract", "err", err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.streams {
		o.put(outgoing{report, agent.Cache()})
	}
}

// outbox returns what goes to the xds at an address; nil: nothing.
func (r *Reporter) outbox(xds string) *outbox {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.streams[xds]
}

// put leaves a report, in place of one that has not been sent.
func (o *outbox) put(report outgoing) {
	o.empty()
	o.reports <- report // has room: only the loop puts
}

// empty removes a report that was not sent yet.
func (o *outbox) empty() {
	if o == nil {
		return
	}
	select {
	case <-o.reports:
	default:
	}
}

// deliver gives an event to the loop, and returns false when ctx ended instead.
func (r *Reporter) deliver(ctx context.Context, ev Event) bool {
	select {
	case r.events <- ev:
		return true
	case <-ctx.Done():
		return false
	}
}
