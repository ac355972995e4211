package replay

import (
	"cmp"
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
	// Remember is how many prefixes each remembers; 0: a million.
	Remember int
}

// millrace is several extprocs, which take turns and know of each other's requests
// only what engines report.
type millrace struct {
	pickers  []*picker
	guess    bool
	peers    bool
	owner    []int // by request: who chose
	next     int
	logs     []*log    // by engine: what it reports to all of them
	errors   []float64 // of predictions of the first token, as a share of what it took
	moves    int
	adapters []int // by engine: how many are loaded at a time
}

// picker is one extproc.
type picker struct {
	*pick.Picker
	model  *pick.Model   // its endpoints are those of all models
	models []*pick.Model // by adapter; the first is the base
	index  *prefix.Index
	asked  map[int]*asked
}

// of returns the model of a request: that of its adapter. All share their endpoints.
func (p *picker) of(r *Request) *pick.Model {
	for len(p.models) <= r.Adapter {
		name := fmt.Sprintf("a%d", len(p.models))
		p.models = append(p.models, &pick.Model{Name: name, Seed: session.Seed(name), Learned: new(pick.Learned), Endpoints: p.model.Endpoints})
	}
	return p.models[r.Adapter]
}

// asked is a request in flight.
type asked struct {
	choice      pick.Choice
	chain       []prefix.Link
	reservation pick.Reservation
	sent        time.Time
	shape       pick.Shape
	output      int // expected
	model       *pick.Model
}

func newMillrace(t *Trace, engines []Engine, pickers Pickers) *millrace {
	m := &millrace{owner: make([]int, len(t.Requests)), guess: pickers.Guess, peers: pickers.Peers}
	for _, e := range engines {
		m.logs = append(m.logs, &log{capacity: e.Cache, reported: map[session.Key]lastReport{}})
		m.adapters = append(m.adapters, e.Adapters)
	}
	for range pickers.N {
		p := &picker{
			Picker: pick.New(prometheus.NewRegistry()),
			model:  &pick.Model{Name: "m", Seed: session.Seed("m"), Learned: new(pick.Learned)},
			index:  prefix.New(cmp.Or(pickers.Remember, 1<<20), 100*time.Hour),
			asked:  map[int]*asked{},
		}
		p.models = []*pick.Model{p.model}
		for i, e := range engines {
			end := &pick.Endpoint{
				Address: fmt.Sprintf("10.0.0.%d:8000", i+1), Nodes: []string{fmt.Sprint(i)}, State: pick.Ready, Slots: e.Slots, Health: 1,
				Prior: pick.Speed{Prefill: e.Prefill, Decode: e.Decode}, KV: prefix.NewCache(uint32(i+1), int64(e.Cache)), Live: new(pick.Live),
			}
			if e.Adapters > 0 {
				end.Base, end.Adapters = p.model.Name, new(pick.Adapters)
				end.Adapters.Report(e.Adapters, nil, nil)
			}
			p.model.Endpoints = append(p.model.Endpoints, end)
		}
		m.pickers = append(m.pickers, p)
	}
	return m
}

func (m *millrace) Choose(id int, r *Request, ms float64) int {
	m.next++
	m.owner[id] = m.next % len(m.pickers)
	p, now := m.pickers[m.owner[id]], clock(ms)
	model := p.of(r)
	a := &asked{chain: chainOf(model.Seed, r), sent: now, model: model}
	p.asked[id] = a
	var found prefix.Found
	p.index.Find(a.chain, now, &found)
	a.shape = pick.Shape{API: apis.Chat, Stream: true, Limit: -1, Prompt: r.Input, Choices: 1}
	a.output = model.Output(&a.shape)
	q := pick.Query{Model: model, Prompt: r.Input, Output: a.output, Found: &found, Most: 1, Now: now, Goal: pick.Goal(r.Goal)}
	if err := p.Pick(&q, &a.choice); err != nil {
		return 0 // all are down: the client tries again
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
	p.Learn(a.model, e, first, u, a.sent, now)
	m.place(p, d.Engine, prefix.Placement{Chain: a.chain, Tokens: uint32(u.Prompt + u.Completion), Answered: true, Fresh: uint32(u.Completion)}, now)
	a.reservation.Release()
	p.report(d, now)
	if n := len(a.chain); n > 0 {
		m.logs[d.Engine].answered(a.chain[n-1], d.Request.Output)
	}
}

func (m *millrace) Reports(loads []Load, ms float64) {
	for i, l := range loads {
		if m.report(i, &l); l.Down {
			continue
		}
		fresh := m.logs[i].segments[max(0, len(m.logs[i].segments)-3):]
		for _, p := range m.pickers {
			e := p.model.Endpoints[i]
			e.ReportFromFleet(l.report(), clock(ms))
			if m.guess || len(m.pickers) == 1 {
				continue // nothing is reported, or the only picker has sent all of it
			}
			for _, s := range fresh {
				p.index.Report(e.KV, s.id, s.links[s.reported:], clock(ms))
			}
			if d := m.logs[i].dropped; d > 0 {
				e.KV.Dropped(d)
			}
		}
		for _, s := range fresh {
			s.reported = len(s.links)
		}
	}
}

// report takes in whether an engine is up, and which adapters it has loaded. One that was down has
// nothing of what it had.
func (m *millrace) report(n int, l *Load) {
	for _, p := range m.pickers {
		e := p.model.Endpoints[n]
		if l.Down && e.State == pick.Ready {
			m.lost(p, n)
		} else if !l.Down {
			e.State = pick.Ready
		}
		if e.Adapters != nil && !l.Down {
			e.Adapters.Report(m.adapters[n], nil, names(l.Adapters))
		}
	}
}

func names(adapters []int) (s []string) {
	for _, a := range adapters {
		s = append(s, fmt.Sprintf("a%d", a))
	}
	return s
}

// lost takes an engine out, and forgets what it had cached.
func (m *millrace) lost(p *picker, n int) {
	e := p.model.Endpoints[n]
	e.State, e.KV = pick.NotReady, prefix.NewCache(e.KV.ID()+1000, int64(m.logs[n].capacity))
	e.Restarted()
	if e.Adapters != nil {
		e.Adapters.Forget()
		e.Adapters.Report(m.adapters[n], nil, nil)
	}
	m.logs[n] = &log{capacity: m.logs[n].capacity, reported: map[session.Key]lastReport{}}
}

// Lost is a Mourner's: the endpoint is ejected until a report says that it is up.
func (m *millrace) Lost(id, engine int, _ float64) {
	p := m.pickers[m.owner[id]]
	if a := p.asked[id]; a != nil {
		a.reservation.Release()
		delete(p.asked, id)
	}
	if p.model.Endpoints[engine].State == pick.Ready {
		m.lost(p, engine)
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
	id       uint32
	links    []prefix.Link
	reported int // of links
	tokens   int // that no newer segment has
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
