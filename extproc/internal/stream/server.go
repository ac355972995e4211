package stream

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"net/http"
	"sync"
	"time"

	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/internal/keys"
)

// The largest memory that exchanges hand on to each other: a body in bytes, a
// conversation in messages.
const (
	keepBody  = 1 << 20
	keepChain = 4096
)

// Core is what all exchanges share.
type Core struct {
	picker  *pick.Picker
	flow    *flow.Controller
	tenants *tenantIDs
	keys    *keys.Files // that clients need; nil: none
	probe   string      // the key of the mesh's own probes; empty: there is none
	metrics *metrics
	log     *slog.Logger // nil: nothing is logged
	hurts   hurts
	room    *room
	tight   func() bool // whether there is no memory for anything large; nil: there always is
	decided *Decisions  // gets some of what is decided; nil: nobody wants it
	pool    sync.Pool   // of *Exchange
	desks   sync.Pool   // of *desk
}

// NewCore returns the core of exchanges that ask picker, which counts into reg.
func NewCore(picker *pick.Picker, reg prometheus.Registerer) *Core {
	c := &Core{picker: picker, flow: flow.New(reg), tenants: newTenantIDs(), metrics: newMetrics(reg), room: new(room)}
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_extproc_body_bytes_in_flight",
		Help: "Bytes of request bodies that Envoy and extproc keep, or reserve room for, until the answers begin.",
	}, func() float64 { return float64(c.room.bytes.Load()) }))
	c.pool.New = func() any { return &Exchange{memory: new(memory)} }
	c.desks.New = func() any { return new(desk) }
	return c
}

// Beside has bodies and streams be bounded together with another core's. To be called before
// the first exchange.
func (c *Core) Beside(other *Core) { c.room = other.room }

// Tight has large bodies be refused while tight returns true. To be called before the first
// exchange.
func (c *Core) Tight(tight func() bool) { c.tight = tight }

// Require has clients need one of the keys; nil: none. To be called before the first exchange.
func (c *Core) Require(k *keys.Files) { c.keys = k }

// Logs has the core log what an operator must know of single requests. It is called before
// the first stream.
func (c *Core) Logs(log *slog.Logger) *Core {
	c.log = log
	return c
}

// Probes has requests with this key be the mesh's own probes: they are no tenant's. It is
// called before the first stream.
func (c *Core) Probes(key string) *Core {
	c.probe = key
	return c
}

// Decides has d get some of what is decided. It is called before the first stream.
func (c *Core) Decides(d *Decisions) { c.decided = d }

// Account takes in how many tokens were generated of a request that has ended, by its number.
func (c *Core) Account(request, generated uint64, now time.Time) {
	c.flow.Report(request, int(min(generated, math.MaxInt32)), true, now)
}

// Waiting calls each for every model that requests wait for, with how many do and since when
// the oldest does.
func (c *Core) Waiting(each func(model string, n int, since time.Time)) { c.flow.Waiting(each) }

// Alive takes the locks that a decision may take. It returns as soon as it has had them.
func (c *Core) Alive() error {
	t := c.picker.Table()
	if t == nil || t.Policy.Flow == nil {
		return nil
	}
	c.flow.Alive(t.Policy.Flow)
	return nil
}

// Begin returns the exchange of a new stream; Finish takes it back.
func (c *Core) Begin() *Exchange {
	x := c.pool.Get().(*Exchange)
	x.core, x.desk = c, c.desks.Get().(*desk)
	x.chain, x.found = x.chain[:0], prefix.Found{}
	return x
}

// names is what the decoder must know of the policy in force.
func (c *Core) names() names {
	t := c.picker.Table()
	if t == nil {
		return names{keys: c.keys, ids: c.tenants}
	}
	n := names{probe: c.probe, session: t.Policy.SessionHeader, priority: t.Policy.PriorityHeader, keys: c.keys, ids: c.tenants, picker: t.Policy.Picker, conformance: t.Policy.Conformance}
	if p := t.Policy.Flow; p != nil {
		n.flow, n.tenant, n.secret = true, p.TenantHeader, secret(p.TenantHeader)
	}
	return n
}

// Finish ends an exchange, which must not be used any more.
func (c *Core) Finish(x *Exchange) {
	x.End(time.Now())
	m := x.memory
	m.in.reset()
	m.out.reply, m.out.hold = nil, nil
	clear(m.replies[:])
	m.none = desk{}
	*x = Exchange{memory: m}
	c.pool.Put(x)
}

// clear gives the exchange's desk to the next one, unless the request is still being read:
// an answer may come before.
func (x *Exchange) clear() {
	d := x.desk
	if d == &x.none || x.phase == waiting || x.phase == reading {
		return
	}
	x.desk = &x.none
	d.request.Forget()
	d.body, d.bodies.bare, d.bodies.renamed = kept(d.body), kept(d.bodies.bare), kept(d.bodies.renamed)
	if cap(d.links) > keepChain {
		d.links = nil
	}
	x.core.desks.Put(d)
	x.wait.body, x.understood.forward = nil, forward{}
}

// kept is a body's memory for the next one.
func kept(b []byte) []byte {
	if cap(b) > keepBody {
		return nil
	}
	return b[:0]
}

// Server is the ext_proc service. Its gRPC server is made with ServerOptions.
type Server struct {
	extproc.UnimplementedExternalProcessorServer
	route  Route
	tracer trace.Tracer // nil: no tracing
}

// Route returns the core that is to answer a stream, by its context.
type Route func(ctx context.Context) *Core

// NewServer returns the service of one core; a nil tracer turns tracing off.
func NewServer(core *Core, tracer trace.Tracer) *Server {
	return NewRouted(func(context.Context) *Core { return core }, tracer)
}

// NewRouted returns the service of several cores.
func NewRouted(route Route, tracer trace.Tracer) *Server {
	return &Server{route: route, tracer: tracer}
}

// Process serves one stream: it reads an event, steps, writes the replies.
func (s *Server) Process(st grpc.BidiStreamingServer[extproc.ProcessingRequest, extproc.ProcessingResponse]) error {
	core := s.route(st.Context())
	m := core.metrics
	m.started.Inc()
	m.streams.Inc()
	defer m.streams.Dec()
	if core.room.streams.Add(1) > MostStreams {
		core.room.streams.Add(-1)
		m.errors[http.StatusServiceUnavailable].Inc()
		return errStreams
	}
	defer core.room.streams.Add(-1)
	x := core.Begin()
	defer core.Finish(x)
	x.in.names = core.names()
	r := &x.receiver
	r.st, r.in = st, &x.in
	defer r.close()
	var began time.Time
	for {
		in, err := r.next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if !in.known || in.observed {
			continue // nobody reads replies then: nothing is decided
		}
		in.At = time.Now()
		if began.IsZero() {
			began = in.At
		}
		replies := x.step(in, x.replies[:0])
		if err := s.send(st, x, in, replies, began, in.At); err != nil {
			return err
		}
		if x.Waits() == nil {
			continue
		}
		o, ok := r.wait(x)
		if !ok {
			continue // next says why
		}
		now := time.Now()
		if err := s.send(st, x, in, x.Resume(o, now, x.replies[:0]), began, now); err != nil {
			return err
		}
	}
}

// step steps. Of bodies that may take much memory to decode so many are decoded at a time.
func (x *Exchange) step(in *inbound, out []Reply) []Reply {
	if x.phase == reading && (len(x.body)+len(in.Body) > light || x.head.ContentEncoding != "" && len(in.Body) > 0) {
		decoding <- struct{}{}
		defer func() { <-decoding }()
	}
	return x.Step(&in.Event, out)
}

// send writes the replies to the event in in; ready is when they could be known.
func (s *Server) send(st stream, x *Exchange, in *inbound, replies []Reply, began, ready time.Time) error {
	for i := range replies {
		s.note(st.Context(), x.core.metrics, &replies[i], began, ready)
		x.out.reply, x.out.hold = &replies[i], in.hold
		if err := st.SendMsg(&x.out); err != nil {
			return err
		}
		if replies[i].Decision != nil {
			x.laps.end(lapSend)
			x.laps.stop()
		}
	}
	return nil
}

// current is the table in force; the exchange's own if there is none.
func (x *Exchange) current() *pick.Table {
	if t := x.core.picker.Table(); t != nil {
		return t
	}
	return x.table
}
