package replay

import (
	"math"
	"slices"
)

// llmd adds up the scores of llm-d's default profile, each from 0 to 1: 3 for the share of
// the prompt that was sent there, 2 for the shortest queue of waiting requests, 2 for the
// free share of the KV cache, as last reported.
type llmd struct{ rival }

func (p *llmd) Choose(_ int, r *Request, _ float64) int {
	least, most := math.Inf(1), 0.0
	for i := range p.loads {
		w := float64(p.loads[i].Waiting)
		least, most = min(least, w), max(most, w)
	}
	n := p.best(func(i int) float64 {
		score := 3 * float64(p.sent[i].match(r.Blocks)) / float64(max(1, len(r.Blocks)))
		if p.loads == nil || least == most {
			score += 2
		} else {
			score += 2 * (most - float64(p.loads[i].Waiting)) / (most - least)
		}
		if p.loads != nil {
			score += 2 * (1 - p.loads[i].KV)
		}
		return -score
	})
	return p.place(n, r)
}

// dynamo takes the least of prefill blocks and decode blocks, its own prompt included. Its
// router counts both itself: a prompt until its first token, a request's blocks to its end.
type dynamo struct {
	rival
	prefill, active []int          // blocks, by engine
	blocks          map[int][2]int // of a request: to prefill, in use
}

func (p *dynamo) Choose(id int, r *Request, _ float64) int {
	match, all := p.matches(r), (r.Input+p.block-1)/p.block
	n := p.best(func(i int) float64 { return float64(p.prefill[i] + all - match[i] + p.active[i] + all) })
	b := [2]int{all - match[n], all}
	p.blocks[id] = b
	p.prefill[n] += b[0]
	p.active[n] += b[1]
	return p.place(n, r)
}

func (p *dynamo) First(d *Done, _ float64) {
	b := p.blocks[d.ID]
	p.prefill[d.Engine] -= b[0]
	p.blocks[d.ID] = [2]int{0, b[1]}
}

func (p *dynamo) Done(d *Done, now float64) {
	p.end(d.ID, d.Engine)
	p.rival.Done(d, now)
}

// Lost is a Mourner's.
func (p *dynamo) Lost(id, engine int, now float64) {
	p.end(id, engine)
	p.rival.Lost(id, engine, now)
}

func (p *dynamo) end(id, engine int) {
	b := p.blocks[id]
	p.prefill[engine] -= b[0]
	p.active[engine] -= b[1]
	delete(p.blocks, id)
}

// predicted is llm-d's profile by predicted latency: where a prompt is cached by 0.8 or more only
// such engines count, unless their first token is later by more than five seconds. Without
// goals (bare) the least latency wins; with goals the least headroom of those that meet them,
// else the least that is missing. Its predictions are of the engine's true insides; the best
// score is taken, where llm-d draws by score to make up for predictions that are off.
type predicted struct {
	rival
	bare    bool
	insides []*engine
}

const (
	affinity    = 0.8  // share of the prompt
	explored    = 0.01 // share of requests that affinity does not bind
	mostPenalty = 5000 // milliseconds of the first token
	ttftShare   = 0.8  // of a score; the rest is the time of a token
)

func (p *predicted) see(engines []*engine) { p.insides = engines }

func (p *predicted) Choose(_ int, r *Request, now float64) int {
	ttft, tpot := make([]float64, len(p.insides)), make([]float64, len(p.insides))
	soonest, latest, warm, fastest, slowest := math.Inf(1), 0.0, math.Inf(1), math.Inf(1), 0.0
	match := p.matches(r)
	hot := func(i int) bool { return float64(match[i]) >= affinity*float64(max(1, len(r.Blocks))) }
	for i, e := range p.insides {
		if p.down[i] {
			continue
		}
		ttft[i], tpot[i] = e.foresee(r, now)
		soonest, latest = min(soonest, ttft[i]), max(latest, ttft[i])
		fastest, slowest = min(fastest, tpot[i]), max(slowest, tpot[i])
		if hot(i) {
			warm = min(warm, ttft[i])
		}
	}
	bound := warm <= soonest+mostPenalty && p.r.Float64() >= explored
	n := p.best(func(i int) float64 {
		switch {
		case bound && !hot(i):
			return math.MaxFloat64
		case p.bare || r.Goal.TTFT == 0 && r.Goal.TPOT == 0:
			return ttftShare*(ttft[i]-soonest)/max(1, latest-soonest) + (1-ttftShare)*(tpot[i]-fastest)/max(1, slowest-fastest)
		}
		return headroom(&r.Goal, ttft[i], tpot[i])
	})
	return p.place(n, r)
}

// headroom orders engines: the least that is left of the goals before the least that is missing.
func headroom(g *Goal, ttft, tpot float64) float64 {
	left, over := 0.0, 0.0
	add := func(share, goal, value float64) {
		if goal > 0 {
			left += share * max(0, goal-value)
			over += share * max(0, value-goal)
		}
	}
	add(ttftShare, g.TTFT, ttft)
	add(1-ttftShare, g.TPOT, tpot)
	if over > 0 {
		return 1e12 + over
	}
	return left
}

// preble exploits where most of the prompt is cached, at the engine with the least load of
// those that have most of it, unless that has more than twice the least load of all; else it explores: the
// least of an engine's load in the last minutes, of what must make room, and of the prompt.
type preble struct {
	rival
	recent          []recent
	prompts, cached float64 // tokens
}

// recent is a request that was sent to an engine, with its work in milliseconds.
type recent struct {
	at   float64
	n    int
	work float64
}

const (
	window    = 180e3 // milliseconds
	unbalance = 2
)

func (p *preble) Choose(_ int, r *Request, now float64) int {
	p.recent = slices.DeleteFunc(p.recent, func(x recent) bool { return x.at < now-window })
	load, match := make([]float64, len(p.engines)), p.matches(r)
	for _, x := range p.recent {
		load[x.n] += x.work
	}
	most, least := 0, math.Inf(1)
	for i := range match {
		if !p.down[i] {
			most, least = max(most, match[i]), min(least, load[i])
		}
	}
	n := p.best(func(i int) float64 {
		missing := float64(r.Input - match[i]*p.block)
		evicted := max(0, missing-float64((p.sent[i].capacity-len(p.sent[i].blocks))*p.block))
		return load[i] + p.engines[i].Prefill*(missing+evicted*p.cached/max(1, p.prompts))
	})
	if most*p.block*2 > r.Input {
		home := p.best(func(i int) float64 {
			if match[i] < most {
				return math.MaxFloat64
			}
			return load[i]
		})
		if load[home] <= unbalance*max(least, p.engines[home].Prefill*float64(r.Input)) {
			n = home
		}
	}
	missing := r.Input - match[n]*p.block
	p.prompts, p.cached = p.prompts+float64(r.Input), p.cached+float64(r.Input-missing)
	p.recent = append(p.recent, recent{now, n, p.engines[n].work(r, r.Input-missing)})
	return p.place(n, r)
}
