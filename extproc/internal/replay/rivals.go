package replay

import (
	"math"
	"math/rand/v2"
)

// Rivals names the policies of others that workloads are run with, at their defaults and
// written from their documentation, the oracle last.
//
//   - llm-d: the sum of scores of its default profile: prefix 3, queue 2, free KV cache 2
//   - llm-d latency, llm-d headroom: its profile by predicted latency, whose predictions are
//     ideal here, without and with the headers of goals
//   - Dynamo: blocks to prefill, plus blocks in use
//   - SGLang: the longest prefix of at least 0.3, unless loads differ by 64 and by half
//   - AIBrix: the longest prefix, unless an engine has two deviations more than the mean
//   - bounded hash: consistent hashing by the first block, loads bounded at 1.25 of the mean
//   - two choices: of two at random the one with fewer requests
//   - Preble: exploits a prefix that is most of the prompt, else the least load and price
//   - shortest delay: requests there divided by the engine's speed
//   - oracle: knows the engines' insides, their caches and the length of each answer
var Rivals = []string{"round robin", "least request", "session hash", "llm-d", "llm-d latency", "llm-d headroom", "Dynamo", "SGLang", "AIBrix",
	"bounded hash", "two choices", "Preble", "shortest delay", Oracular}

// Oracular is the policy that knows everything but who comes next.
const Oracular = "oracle"

// rival is what policies of others keep: what they have sent where, and what was reported.
type rival struct {
	counting
	engines []Engine
	block   int
	sent    sent
	loads   []Load
	r       *rand.Rand
}

// Reports is a Policy's.
func (p *rival) Reports(loads []Load, now float64) {
	p.counting.Reports(loads, now)
	p.loads = loads
	for i := range loads {
		if loads[i].Down {
			p.sent[i] = newCache(p.sent[i].capacity)
		}
	}
}

// best returns the engine that is up whose cost is least; equals by chance.
func (p *rival) best(cost func(n int) float64) int {
	best, least, equals := 0, math.Inf(1), 0
	for i := range p.inFlight {
		if p.down[i] {
			continue
		}
		switch c := cost(i); {
		case c < least:
			best, least, equals = i, c, 1
		case c == least:
			if equals++; p.r.IntN(equals) == 0 {
				best = i
			}
		}
	}
	return best
}

// place sends a request there and remembers its prompt.
func (p *rival) place(n int, r *Request) int {
	p.sent[n].visit(r.Blocks)
	return p.send(n)
}

// matches returns how many blocks of a prompt were sent to each engine.
func (p *rival) matches(r *Request) []int {
	m := make([]int, len(p.sent))
	for i, c := range p.sent {
		m[i] = c.match(r.Blocks)
	}
	return m
}

// seer is a Policy that sees into the engines.
type seer interface{ see(engines []*engine) }

// several is pickers of one kind that take turns, and know nothing of each other.
type several struct {
	all   []Policy
	owner []int // by request
	next  int
}

func newRivals(name string, t *Trace, engines []Engine, pickers Pickers, r *rand.Rand) Policy {
	if pickers.N <= 1 || name == Oracular {
		return newRival(name, t, engines, r)
	}
	s := &several{owner: make([]int, len(t.Requests))}
	for range pickers.N {
		s.all = append(s.all, newRival(name, t, engines, r))
	}
	return s
}

func newRival(name string, t *Trace, engines []Engine, r *rand.Rand) Policy {
	p := rival{newCounting(len(engines)), engines, t.Block, newSent(engines, t.Block), nil, r}
	switch name {
	case "llm-d":
		return &llmd{p}
	case "llm-d latency", "llm-d headroom":
		return &predicted{rival: p, bare: name == "llm-d latency"}
	case "Dynamo":
		return &dynamo{p, make([]int, len(engines)), make([]int, len(engines)), map[int][2]int{}}
	case "SGLang":
		return &sglang{p}
	case "AIBrix":
		return &aibrix{p}
	case "bounded hash":
		return newBoundedHash(p)
	case "two choices":
		return &twoChoices{p}
	case "Preble":
		return &preble{rival: p}
	case "shortest delay":
		return &shortestDelay{p}
	case Oracular:
		return &oracle{rival: p}
	}
	return nil
}

func (s *several) Choose(id int, r *Request, now float64) int {
	s.next++
	s.owner[id] = s.next % len(s.all)
	return s.all[s.owner[id]].Choose(id, r, now)
}

func (s *several) First(d *Done, now float64) { s.all[s.owner[d.ID]].First(d, now) }

func (s *several) Done(d *Done, now float64) { s.all[s.owner[d.ID]].Done(d, now) }

func (s *several) Reports(loads []Load, now float64) {
	for _, p := range s.all {
		p.Reports(loads, now)
	}
}

// Lost is a Mourner's.
func (s *several) Lost(id, engine int, now float64) {
	s.all[s.owner[id]].(Mourner).Lost(id, engine, now)
}

func (s *several) see(engines []*engine) {
	for _, p := range s.all {
		if p, ok := p.(seer); ok {
			p.see(engines)
		}
	}
}
