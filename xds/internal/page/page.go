// Package page serves the live page of a mesh: what runs, how well, what is wrong and the way
// out, what has happened, and why requests went where they went.
//
// The contract is Snapshot, Event and Decision, as JSON: the page in assets, its tests and
// `millrace events` read only these. Below /page/ there are
//
//	/page/             the page
//	/page/stream       server-sent events: "fleet" with a Snapshot and its time, "event" with an
//	                   Event, "decision" with a Decision, "beat" with the time
//	/page/fleet.json   the Snapshot, /page/events.json and /page/decisions.json what the
//	                   stream begins with
//	/page/chat         POST: a chat completion, forwarded to Envoy; /page/models: its models
//
// All viewers share one snapshot: it is built at most twice a second, encoded when it has
// changed and somebody is there, and once. Nothing waits for a viewer: who does not read gets
// the newest of what there is later, and who has not read for long is dropped.
//
// Called by xds. Its one rule: it changes nothing, and shows nothing of what a prompt or an
// answer says.
package page

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/internal/recent"
	"millrace.dev/millrace/xds/fleetpb"
)

const (
	// buildEvery bounds how often a snapshot is built, and what viewers get of it.
	buildEvery = 500 * time.Millisecond
	// buildLatest is how old one may be while the fleet does not change.
	buildLatest = 2 * time.Second
	// bytesPerSecond is what all viewers together get at most of snapshots: large ones come
	// less often, so that a thousand nodes cost no more than ten do.
	bytesPerSecond = 4 << 20
	// mostEvents and mostDecisions are how many are remembered: an event has 2 KB at most, a
	// decision of 16 candidates 14 KB by the rules of its contract, all of them 5 MB.
	mostEvents    = 512
	mostDecisions = 256
	// mostText is how much of an event's text is kept, in bytes.
	mostText = 1 << 10
	// decidedPerSecond is how many decisions are taken in of all extprocs together.
	decidedPerSecond = 24
)

// Options is what a page is made of.
type Options struct {
	// View returns the fleet as it is, and a channel that is closed when it has changed.
	View func() (*fleetpb.FleetView, <-chan struct{})
	// Gateway is "ip:port" of Envoy, to which the chat is forwarded; empty: there is no chat.
	Gateway string
}

// Page is the page of one xds.
type Page struct {
	// Constant after New.
	options Options
	metrics *metrics
	started time.Time
	ended   chan struct{} // closed when Run has ended
	rate    *recent.Rate  // of decisions that are taken in

	// Atomic.
	latest  atomic.Pointer[built]
	viewers atomic.Int64

	events    *recent.List[json.RawMessage]
	decisions *recent.List[json.RawMessage]

	// mu guards the fields below.
	mu    sync.Mutex
	frame frame // of the newest snapshot that somebody has asked for
}

// built is a snapshot, and the channel that is closed when the next one is there.
type built struct {
	*Snapshot
	at   time.Time
	next chan struct{}
}

// frame is a snapshot as viewers get it.
type frame struct {
	of      *built
	version uint64 // grows when body changes
	body    []byte // the snapshot
	event   []byte // the whole event
}

// New returns the page of what o says. It is served once Run runs.
func New(o Options, reg prometheus.Registerer) *Page {
	p := &Page{
		options: o, started: time.Now(), ended: make(chan struct{}), rate: recent.NewRate(decidedPerSecond, 2*decidedPerSecond),
		events: recent.New[json.RawMessage](mostEvents), decisions: recent.New[json.RawMessage](mostDecisions),
	}
	p.metrics = newMetrics(reg, p)
	p.latest.Store(&built{Snapshot: Build(&fleetpb.FleetView{}, nil), at: p.started, next: make(chan struct{})})
	return p
}

// Run follows the fleet until ctx ends. Called once.
func (p *Page) Run(ctx context.Context) error {
	defer close(p.ended)
	p.happened(p.started, Event{Kind: Started, Level: Info, Subject: "xds", Text: "xds was started; what was before it does not know"})
	var before *Snapshot // nil: there is none
	for {
		began := time.Now()
		view, changed := p.options.View()
		now := Build(view, before)
		now.Chat = p.options.Gateway != ""
		for _, e := range Diff(before, now) {
			p.happened(began, e)
		}
		before = now
		old := p.latest.Swap(&built{Snapshot: now, at: began, next: make(chan struct{})})
		close(old.next)
		if !wait(ctx, changed, buildLatest) || !wait(ctx, nil, p.pause()-time.Since(began)) {
			return nil
		}
	}
}

// pause is how long it is until the next snapshot, at least.
func (p *Page) pause() time.Duration {
	p.mu.Lock()
	size := len(p.frame.event)
	p.mu.Unlock()
	return max(buildEvery, time.Duration(float64(size)*float64(p.viewers.Load())/bytesPerSecond*float64(time.Second)))
}

// wait returns true once c is closed or d is over, and false when ctx ends.
func wait(ctx context.Context, c <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-c:
	case <-t.C:
	}
	return true
}

// happened remembers an event.
func (p *Page) happened(at time.Time, e Event) {
	if e.At = at; len(e.Text) > mostText {
		e.Text = strings.ToValidUTF8(e.Text[:mostText], "") + "…"
	}
	p.events.Put(func(n uint64) json.RawMessage {
		e.Seq = n
		return encode(e)
	})
}

// current returns the newest snapshot as viewers get it, encoded once for all of them.
func (p *Page) current() frame {
	b := p.latest.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frame.of == b {
		return p.frame
	}
	p.frame.of = b
	if body := encode(b.Snapshot); !bytes.Equal(body, p.frame.body) {
		p.frame.body = body
		p.frame.version++
		p.frame.event = p.view(b.at, body)
		p.metrics.encoded.Inc()
	}
	return p.frame
}

// view is a snapshot with its time, as an event.
func (p *Page) view(at time.Time, body []byte) []byte {
	return fmt.Appendf(nil, "event: fleet\ndata: {\"at\":%s,\"started\":%s,\"fleet\":%s}\n\n", encode(at), encode(p.started), body)
}

// encode encodes what JSON has a form for: all that is ours.
func encode(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("page: %T: %v", v, err)) // numbers are finite: digits and telemetry's rules
	}
	return b
}
