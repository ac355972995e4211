package stream

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/pick"
)

// gzipped returns a text as gzip.
func gzipped(text string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(text)) // a buffer takes all
	_ = z.Close()
	return b.Bytes()
}

// packedHello is hello as gzip.
var packedHello = string(gzipped(hello))

// events makes a stream of events, in any order, from bytes.
func events(r []byte, f *fleet) []Event {
	var evs []Event
	now := epoch
	next := func() int {
		if len(r) == 0 {
			return 0
		}
		c := r[0]
		r = r[1:]
		return int(c)
	}
	bodies := []string{hello, `{"model":"m"`, `,"prompt":"abc"}`, "", `{"model":"x"}`, `{"model":"m","stream":true}`, strings.Repeat("z", 70000), "[]", packedHello, `{"model":"chat"}`}
	for len(r) > 0 && len(evs) < 40 {
		now = now.Add(time.Duration(next()) * time.Millisecond)
		ev := Event{Kind: Kind(next() % 7), End: next()%2 == 0, At: now}
		switch ev.Kind {
		case RequestHeaders:
			ev.Request = RequestHead{
				Method: []string{"POST", "GET"}[next()%8/7], Mode: Mode(next() % 4), AnswerMode: Mode(next() % 4), Length: int64(next() - 1),
				Path:        []string{"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/x", "/v1/messages"}[next()%6],
				ContentType: []string{"application/json", "", "text/plain"}[next()%8/3], ContentEncoding: []string{"", "gzip"}[next()%8/7],
				Forbidden: []string{"x-gateway-a", "x-gateway-b"}[:next()%8/3], Session: []string{"", "a", "\xff"}[next()%3], Cookie: []string{"", "s=1.2"}[next()%2], Debug: next()%4 == 0, Priority: []string{"", "critical", "x"}[next()%3],
			}
		case RequestBody, ResponseBody:
			ev.Body = []byte(bodies[next()%len(bodies)])
			ev.Request.Mode, ev.Request.AnswerMode = Mode(next()%4), Mode(next()%4)
		case ResponseHeaders, ResponseTrailers:
			ev.Answer = AnswerHead{Answer: pick.Answer{
				Status: []int{200, 404, 429, 500, 503, 0}[next()%6], Attempts: next() % 6, Served: someHost(f, next()),
			}, Usage: fmt.Sprintf("prompt=%d,cached=%d,completion=%d,prefill_ms=%d,decode_ms=3", next(), next(), next(), next())}
		}
		evs = append(evs, ev)
	}
	return evs
}

func someHost(f *fleet, i int) string {
	switch {
	case i%4 == 0:
		return ""
	case i%4 == 1 || len(f.model.Endpoints) == 0:
		return "10.0.0.1:1"
	default:
		return f.model.Endpoints[i%len(f.model.Endpoints)].Address
	}
}

// watcher is the naive twin of an exchange: it knows only what may be said.
type watcher struct {
	t         *testing.T
	over      bool // after an immediate reply
	decisions int
	mode      Mode // mode of the request
	begun     bool
	due       bool // whether a Duplex request's headers still wait for their reply
	sent, got []byte
	changed   bool // whether a body is forwarded otherwise than it came
	more      int  // by how many bytes it is longer then
	suspended bool
	resumed   bool          // whether replies are those of a wait that has ended
	ends      map[Kind]bool // what has come, and what has come to its end by its last kind
}

// stale reports whether an event says again what was said, or comes behind the end.
func (w *watcher) stale(ev *Event) bool {
	if w.ends == nil {
		w.ends = map[Kind]bool{}
	}
	of := map[Kind]Kind{
		RequestHeaders: RequestHeaders, RequestBody: RequestTrailers, RequestTrailers: RequestTrailers,
		ResponseHeaders: ResponseHeaders, ResponseBody: ResponseTrailers, ResponseTrailers: ResponseTrailers,
	}
	k, ok := of[ev.Kind]
	if !ok {
		return false
	}
	stale := w.ends[k] || ev.Kind == ResponseHeaders && w.ends[ResponseTrailers]
	w.ends[k] = w.ends[k] || k == ev.Kind || ev.End
	if ev.Kind == ResponseHeaders && ev.End {
		w.ends[ResponseTrailers] = true
	}
	return stale
}

// see checks the replies to one event.
func (w *watcher) see(ev *Event, replies []Reply) {
	if w.over && len(replies) > 0 {
		w.t.Fatalf("%d replies after an immediate one", len(replies))
	}
	if !w.over && w.stale(ev) {
		if len(replies) > 0 && !w.resumed {
			w.t.Fatalf("event %+v is said again, and got %d replies", ev, len(replies))
		}
		for i := range replies { // to an event before
			w.reply(&replies[i])
		}
		return
	}
	if ev.Kind != Immediate && !w.begun {
		w.begun, w.mode = true, ev.Request.Mode
		w.due = ev.Kind == RequestHeaders && w.mode == Duplex && !ev.End
	}
	if ev.Kind == RequestBody && w.begun && w.mode == Duplex {
		w.sent = append(w.sent, ev.Body...)
	}
	answered := 0
	for i := range replies {
		w.reply(&replies[i])
		if replies[i].Kind == ev.Kind || replies[i].Kind == Immediate {
			answered++
		}
	}
	waits := w.due && (ev.Kind == RequestHeaders || ev.Kind == RequestBody && !ev.End)
	if !w.over && !waits && !w.suspended && answered == 0 && ev.Kind != Immediate {
		w.t.Fatalf("event %+v got no reply of its kind", ev)
	}
	if ev.Kind != RequestHeaders && len(replies) > 0 && replies[0].Kind == RequestHeaders {
		w.due = false
	}
}

func (w *watcher) reply(r *Reply) {
	if r.Kind == Immediate {
		w.over = true
	}
	if r.Decision != nil {
		w.decisions++
	}
	if r.Length > 0 {
		w.changed, w.more = true, r.Length-len(w.sent)
		if r.Replace && len(r.Chunk) != r.Length {
			w.t.Fatalf("a body of %d bytes with a length of %d", len(r.Chunk), r.Length)
		}
	}
	if r.Kind == RequestBody && r.Duplex {
		w.got = append(w.got, r.Chunk...)
	}
	if w.decisions > 1 {
		w.t.Fatal("two decisions for one request")
	}
}

// play runs one stream of events and checks what comes of it.
func play(t *testing.T, f *fleet, evs []Event) {
	x := f.core.Begin()
	w := &watcher{t: t}
	for i := range evs {
		out := x.Step(&evs[i], nil)
		w.resumed = x.Waits() != nil && i%3 > 0
		if w.resumed { // else the next event comes before the wait ends
			x.Tick(evs[i].At.Add(time.Hour))
			out = x.Resume(<-x.Waits().C, evs[i].At, out)
		}
		w.suspended = x.Waits() != nil
		w.see(&evs[i], out)
	}
	same := string(w.sent) == string(w.got)
	if w.changed {
		same = len(w.got) == len(w.sent)+w.more
	}
	if !w.over && !w.due && w.mode == Duplex && !same {
		t.Fatalf("%d bytes of a duplex body came, %d went on", len(w.sent), len(w.got))
	}
	f.core.Finish(x)
	if f.leaks() != 0 {
		t.Fatalf("places are still taken after %+v", evs)
	}
}

func TestAnyOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	fleets := []*fleet{busy(), newFleet(3), newFleet(3, canary), newFleet(0), newFleet(1, func(t *pick.Table) { t.Default = nil })}
	for range 4000 {
		b := make([]byte, 1+r.IntN(150))
		for i := range b {
			b[i] = byte(r.IntN(256))
		}
		f := fleets[r.IntN(len(fleets))]
		play(t, f, events(b, f))
	}
}

// busy is a fleet none of whose endpoints has a place.
func busy() *fleet {
	return newFleet(2, canary, oneSlot, withSmall, func(t *pick.Table) {
		t.Models["m"].Endpoints[0].Slots, t.Models["m"].Endpoints[1].Slots = 0, 1
		for _, e := range t.Models["m"].Endpoints {
			e.ReportFromFleet(pick.Report{Requests: 9, Waiting: 8}, epoch)
		}
		t.Policy.Flow.Budget = flow.Budget{Requests: 100000, Tokens: 1000000}
	})
}

func FuzzExchange(f *testing.F) {
	f.Add([]byte("\x01\x00\x01\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x01\x01\x00\x00"))
	f.Add([]byte("some bytes that make events in an order of their own, why not"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, fl := range []*fleet{newFleet(3, canary), busy()} { // new ones: what one input leaves behind is not another's fault
			play(t, fl, events(b, fl))
		}
	})
}
