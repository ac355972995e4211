package replay

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
)

// start is the time at which simulations begin.
var start = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

func clock(ms float64) time.Time { return start.Add(time.Duration(ms * 1e6)) }

// millrace is several extprocs, which take turns and know of each other's requests
// only what engines report.
type millrace struct {
	pickers []*picker
	owner   []int // by request: who chose
	next    int
	logs    []*log    // by engine: what it tells all of them
	errors  []float64 // of predictions, as a share of what it took
	moves   int
}

// picker is one extproc.
type picker struct {
	*pick.Picker
	model *pick.Model
	index *prefix.Index
	asked map[int]*asked
}

// asked is a request in flight.
type asked struct {
	choice pick.Choice
	chain  []prefix.Link
	held   pick.Reservation
	sent   time.Time
	shape  pick.Shape
}

func newMillrace(t *Trace, engines []Engine, pickers int) *millrace {
	m := &millrace{owner: make([]int, len(t.Requests))}
	for _, e := range engines {
		m.logs = append(m.logs, &log{capacity: e.Cache})
	}
	for range pickers {
		p := &picker{
			Picker: pick.New(prometheus.NewRegistry()),
			model:  &pick.Model{Name: "m", Seed: session.Seed("m"), Learned: new(pick.Learned)},
			index:  prefix.New(1<<20, 100*time.Hour),
			asked:  map[int]*asked{},
		}
		for i, e := range engines {
			p.model.Endpoints = append(p.model.Endpoints, &pick.Endpoint{
				Address: fmt.Sprintf("10.0.0.%d:8000", i+1), Nodes: []string{fmt.Sprint(i)}, State: pick.Ready, Slots: e.Slots, Health: 1,
				Prior: pick.Speed{Prefill: e.Prefill, Decode: e.Decode}, KV: prefix.NewCache(uint32(i+1), int64(e.Cache)), Live: new(pick.Live),
			})
		}
		m.pickers = append(m.pickers, p)
	}
	return m
}

func (m *millrace) Choose(id int, r *Request, ms float64) int {
	m.next++
	m.owner[id] = m.next % len(m.pickers)
	p, now := m.pickers[m.owner[id]], clock(ms)
	a := &asked{chain: chainOf(p.model.Seed, r), sent: now}
	p.asked[id] = a
	var found prefix.Found
	p.index.Find(a.chain, now, &found)
	a.shape = pick.Shape{API: openai.Chat, Stream: true, Limit: -1, Prompt: r.Input, Choices: 1}
	output := p.model.Output(&a.shape)
	q := pick.Query{Model: p.model, Prompt: r.Input, Output: output, Found: &found, Most: 1, Now: now}
	if err := p.Pick(&q, &a.choice); err != nil {
		panic(err) // all engines are always ready
	}
	if a.choice.Reason == pick.Moved {
		m.moves++
	}
	first := &a.choice.List[0]
	a.held = first.Reserve(&q)
	p.index.Use(a.chain, first.KV, now)
	for i, e := range p.model.Endpoints {
		if e == first.Endpoint {
			return i
		}
	}
	return -1
}

// chainOf makes the links of a prompt whose pieces are the trace's blocks.
func chainOf(seed session.Key, r *Request) []prefix.Link {
	mk := prefix.NewMaker(seed, nil)
	for _, b := range r.Blocks {
		mk.Piece(binary.LittleEndian.AppendUint64(nil, b), 1)
	}
	mk.End()
	return mk.Links(r.Input)
}

func (m *millrace) First(d *Done, ms float64) {
	p := m.pickers[m.owner[d.ID]]
	p.asked[d.ID].held.Begun()
	p.report(d, clock(ms))
	m.logs[d.Engine].add(p.asked[d.ID].chain)
}

// report takes in the load that comes with an answer.
func (p *picker) report(d *Done, now time.Time) {
	p.model.Endpoints[d.Engine].Seen(d.Load.report(), now)
}

func (l *Load) report() pick.Report {
	return pick.Report{Requests: l.Requests, Waiting: l.Waiting, KV: l.KV}
}

func (m *millrace) Done(d *Done, ms float64) {
	p, now := m.pickers[m.owner[d.ID]], clock(ms)
	a, e := p.asked[d.ID], p.model.Endpoints[d.Engine]
	delete(p.asked, d.ID)
	u := pick.Usage{
		Prompt: d.Request.Input, Cached: d.Cached, Completion: d.Request.Output,
		PrefillMs: d.First - d.Began, DecodeMs: d.End - d.First, Shape: a.shape,
	}
	first := &a.choice.List[0]
	m.errors = append(m.errors, math.Abs(first.Finish()-(d.End-d.Came))/math.Max(1, d.End-d.Came))
	p.Learn(p.model, e, first, u, a.sent, now)
	if n := len(a.chain); n > 0 {
		p.index.Answered(a.chain[n-1].Key, e.KV, uint32(u.Prompt+u.Completion), uint32(u.Completion), now)
	}
	a.held.Release()
	p.report(d, now)
	if n := len(a.chain); n > 0 {
		m.logs[d.Engine].add([]prefix.Link{{Key: a.chain[n-1].Key, Tokens: uint32(u.Prompt + u.Completion)}})
	}
}

func (m *millrace) Told(loads []Load, ms float64) {
	for i, l := range loads {
		fresh, dropped := m.logs[i].changes()
		for _, p := range m.pickers {
			e := p.model.Endpoints[i]
			e.Told(l.report(), clock(ms))
			if len(m.pickers) == 1 {
				continue // it has sent all of it
			}
			for _, s := range fresh {
				p.index.Tell(e.KV, s.id, s.links, clock(ms))
			}
			if dropped > 0 {
				e.KV.Dropped(dropped)
			}
		}
	}
}

// log is what an engine tells of its cache: the beginnings of prompts in the order in
// which they were used, in segments, as Millrace's engines do.
type log struct {
	capacity int
	segments []segment
	dropped  uint32
}

type segment struct {
	id    uint32
	links []prefix.Link
}

// perSegment is how many links a segment has.
const perSegment = 256

func (l *log) add(chain []prefix.Link) {
	if n := len(l.segments); n == 0 || len(l.segments[n-1].links) >= perSegment {
		l.segments = append(l.segments, segment{id: l.next()})
	}
	s := &l.segments[len(l.segments)-1]
	s.links = append(s.links, chain...)
}

func (l *log) next() uint32 {
	if n := len(l.segments); n > 0 {
		return l.segments[n-1].id + 1
	}
	return 1
}

// changes returns what is new since it was last called, and the last segment that is
// not cached any more.
func (l *log) changes() (fresh []segment, dropped uint32) {
	at := map[session.Key]bool{}
	tokens := 0
	for i := len(l.segments) - 1; i >= 0; i-- {
		s := &l.segments[i]
		from := uint32(0)
		for _, k := range s.links {
			own := k.Tokens - from
			if k.Tokens < from {
				own = k.Tokens
			}
			from = k.Tokens
			if !at[k.Key] {
				at[k.Key] = true
				tokens += int(min(own, k.Tokens))
			}
		}
		if tokens > l.capacity && i > 0 {
			l.dropped = l.segments[i-1].id
			l.segments = l.segments[i:]
			break
		}
	}
	n := len(l.segments)
	for i := max(0, n-3); i < n; i++ {
		fresh = append(fresh, l.segments[i])
	}
	return fresh, l.dropped
}
