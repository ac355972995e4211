package replay

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/internal/apis"
)

// start is the time at which simulations begin.
var start = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

func clock(ms float64) time.Time { return start.Add(time.Duration(ms * 1e6)) }

// Pickers are the extprocs that take turns.
type Pickers struct {
	// N is how many there are.
	N int
	// Guess is whether engines report nothing of their caches, as those of an InferencePool
	// without KV events: each picker knows then what it has sent itself.
	Guess bool
	// Peers is whether pickers let each other know what they have sent, as those of an
	// InferencePool do.
	Peers bool
}

// millrace is several extprocs, which take turns and know of each other's requests
// only what engines report.
type millrace struct {
	pickers []*picker
	guess   bool
	peers   bool
	owner   []int // by request: who chose
	next    int
	logs    []*log    // by engine: what it reports to all of them
	errors  []float64 // of predictions of the first token, as a share of what it took
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
	choice      pick.Choice
	chain       []prefix.Link
	reservation pick.Reservation
	sent        time.Time
	shape       pick.Shape
	output      int // expected
}

func newMillrace(t *Trace, engines []Engine, pickers Pickers) *millrace {
	m := &millrace{owner: make([]int, len(t.Requests)), guess: pickers.Guess, peers: pickers.Peers}
	for _, e := range engines {
		m.logs = append(m.logs, &log{capacity: e.Cache, reported: map[session.Key]lastReport{}})
	}
	for range pickers.N {
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
	a.shape = pick.Shape{API: apis.Chat, Stream: true, Limit: -1, Prompt: r.Input, Choices: 1}
	a.output = p.model.Output(&a.shape)
	q := pick.Query{Model: p.model, Prompt: r.Input, Output: a.output, Found: &found, Most: 1, Now: now}
	if err := p.Pick(&q, &a.choice); err != nil {
		panic(err) // all engines are always ready
	}
	if a.choice.Reason == pick.Moved {
		m.moves++
	}
	first := &a.choice.List[0]
	a.reservation = first.Reserve(&q)
	engine := slices.Index(p.model.Endpoints, first.Endpoint)
	m.place(p, engine, prefix.Placement{Chain: a.chain}, now)
	return engine
}

// place records what p has placed at an engine, where it is known.
func (m *millrace) place(p *picker, engine int, what prefix.Placement, now time.Time) {
	for _, other := range m.pickers {
		if other == p || m.peers {
			other.index.Record(what, other.model.Endpoints[engine].KV, now)
		}
	}
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
	p.asked[d.ID].reservation.Begun()
	p.report(d, clock(ms))
	if chain := p.asked[d.ID].chain; len(chain) > 0 {
		m.logs[d.Engine].add(chain)
	}
}

// report takes in the load that comes with an answer.
func (p *picker) report(d *Done, now time.Time) {
	p.model.Endpoints[d.Engine].ReportFromAnswer(d.Load.report(), now)
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
	predicted := first.Wait + first.Prefill + first.Decode/math.Max(1, float64(a.output))
	m.errors = append(m.errors, math.Abs(predicted-(d.First-d.Came))/math.Max(1, d.First-d.Came))
	p.Learn(p.model, e, first, u, a.sent, now)
	m.place(p, d.Engine, prefix.Placement{Chain: a.chain, Tokens: uint32(u.Prompt + u.Completion), Answered: true, Fresh: uint32(u.Completion)}, now)
	a.reservation.Release()
	p.report(d, now)
	if n := len(a.chain); n > 0 {
		m.logs[d.Engine].answered(a.chain[n-1], d.Request.Output)
	}
}

func (m *millrace) Reports(loads []Load, ms float64) {
	for i, l := range loads {
		fresh := m.logs[i].segments[max(0, len(m.logs[i].segments)-3):]
		for _, p := range m.pickers {
			e := p.model.Endpoints[i]
			e.ReportFromFleet(l.report(), clock(ms))
			if m.guess || len(m.pickers) == 1 {
				continue // nothing is reported, or the only picker has sent all of it
			}
			for _, s := range fresh {
				p.index.Report(e.KV, s.id, s.links, clock(ms))
			}
			if d := m.logs[i].dropped; d > 0 {
				e.KV.Dropped(d)
			}
		}
	}
}

// log is what an engine reports of its cache: the prefixes of prompts in the order in
// which they were used, in segments, as Millrace's engines do.
type log struct {
	capacity int
	segments []*segment
	reported map[session.Key]lastReport
	live     int // tokens, of all segments
	dropped  uint32
}

// segment is a part of a log.
type segment struct {
	id     uint32
	links  []prefix.Link
	tokens int // that no newer segment has
}

// lastReport is where a prefix was last reported, and with how many tokens.
type lastReport struct {
	at     *segment
	tokens uint32
}

// perSegment is how many links a segment has.
const perSegment = 256

// add logs that a prompt is worked on.
func (l *log) add(chain []prefix.Link) {
	counted, last := uint32(0), lastReport{}
	for _, k := range chain {
		p := l.reported[k.Key]
		l.put(k, p.tokens, int(k.Tokens)-int(counted), 0)
		if p.at != nil {
			counted, last = k.Tokens, p
		}
	}
	end := chain[len(chain)-1]
	counted = max(counted, min(last.tokens, end.Tokens))
	l.put(end, 0, 0, int(end.Tokens-counted))
}

// answered logs that an answer is cached behind a prompt.
func (l *log) answered(prompt prefix.Link, tokens int) {
	l.put(prefix.Link{Key: prompt.Key, Tokens: prompt.Tokens + uint32(tokens)}, 0, 0, tokens)
}

func (l *log) put(k prefix.Link, least uint32, moved, fresh int) {
	s := l.open()
	p := l.reported[k.Key]
	if p.at != nil {
		moved = max(0, min(moved, p.at.tokens))
		p.at.tokens -= moved
		s.tokens += moved
	}
	k.Tokens = max(k.Tokens, least)
	if p.at != s || p.tokens != k.Tokens {
		s.links = append(s.links, k)
		l.reported[k.Key] = lastReport{s, k.Tokens}
	}
	s.tokens += fresh
	l.live += fresh
	for len(l.segments) > 1 && l.live-l.segments[0].tokens >= l.capacity {
		l.drop()
	}
}

// open returns the segment that takes the next link.
func (l *log) open() *segment {
	id := l.dropped + 1
	if n := len(l.segments); n > 0 {
		s := l.segments[n-1]
		if len(s.links) < perSegment && s.tokens < l.capacity/16 {
			return s
		}
		id = s.id + 1
	}
	l.segments = append(l.segments, &segment{id: id})
	return l.segments[len(l.segments)-1]
}

func (l *log) drop() {
	s := l.segments[0]
	for _, k := range s.links {
		if l.reported[k.Key].at == s {
			delete(l.reported, k.Key)
		}
	}
	l.live -= s.tokens
	l.dropped = s.id
	l.segments = l.segments[1:]
}
