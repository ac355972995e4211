package workload

import (
	"cmp"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"

	"millrace.dev/millrace/extproc/internal/replay"
)

const (
	// block is how many tokens have a key of their own.
	block = 64
	// requests is about how many a scenario has.
	requests = 2400
	// longestPrompt bounds a prompt, in tokens: longer ones begin a conversation anew.
	longestPrompt = 32_000
)

// What batches want, in milliseconds: an answer within a minute; and what who wants an answer within a
// time gives for each of its tokens.
var batchGoal = replay.Goal{E2E: 60_000}

const perToken = 70

// talk is one conversation: its requests in order, at what time the first comes (in seconds,
// at a request a second), and the keys of all that is said in it.
type talk struct {
	at    float64
	turns []replay.Request
	keys  []uint64
}

// trace makes the requests of a scenario at a rate of requests a second.
func (s *Scenario) trace(rate float64) *replay.Trace {
	r := random(s.Family, s.Seed, "requests")
	talks := s.talks(r)
	n := 0
	for i := range talks {
		n += len(talks[i].turns)
	}
	t := &replay.Trace{Name: fmt.Sprintf("%s %d", s.Family, s.Seed), Block: block}
	place := func(k *talk, at float64, parent int, pause float64) (last int) {
		for i := range k.turns {
			q := k.turns[i]
			q.At, q.Parent = at, parent
			if i == 0 {
				q.Think = pause
			}
			parent = len(t.Requests)
			t.Requests = append(t.Requests, q)
		}
		return parent
	}
	if s.family.arrivals != nil {
		scale := 1000 / rate * float64(n) / float64(len(talks))
		slices.SortStableFunc(talks, func(a, b talk) int { return cmp.Compare(a.at, b.at) })
		for i := range talks {
			place(&talks[i], talks[i].at*scale, -1, 0)
		}
	} else {
		s.chain(talks, rate, r, place)
	}
	return t
}

// chain has agents begin conversations when they are done with the last. So many agents at once are
// about a rate, if an answer takes them as long as their pauses do.
func (s *Scenario) chain(talks []talk, rate float64, r *rand.Rand, place func(*talk, float64, int, float64) int) {
	perAgent := 1000 / (2 * s.family.think.median) // requests a second
	agents := min(len(talks), max(1, int(rate/perAgent+0.5)))
	last := make([]int, agents)
	for i := range talks {
		a := i % agents
		if i < agents {
			last[a] = place(&talks[i], float64(a)/float64(agents)*2*s.family.think.median+r.Float64(), -1, 0)
		} else {
			last[a] = place(&talks[i], 0, last[a], s.family.think.draw(r))
		}
	}
}

// talks makes the conversations.
func (s *Scenario) talks(r *rand.Rand) (talks []talk) {
	f := s.family
	lengths := make([]int, f.preludes)
	for i := range lengths {
		lengths[i] = int(f.prelude.draw(r))
	}
	n := 0
	for n < requests {
		k := s.talk(r, uint64(len(talks)+1), lengths)
		if f.batch > 0 && r.Float64() < f.batch*f.turns/(1+f.batch*(f.turns-1)) {
			k = s.job(r, uint64(len(talks)+1))
		}
		n += len(k.turns)
		talks = append(talks, k)
		if len(k.turns) > 2 && r.Float64() < f.forked {
			k = s.fork(r, &k, uint64(len(talks)+1))
			n += len(k.turns)
			talks = append(talks, k)
		}
	}
	at := make([]float64, len(talks))
	if f.arrivals != nil {
		at = f.arrivals(r, len(talks))
	}
	for i := range talks {
		talks[i].at = at[i]
	}
	s.clump(talks)
	return talks
}

// clump has jobs of batches come in tens.
func (s *Scenario) clump(talks []talk) {
	at, n := 0.0, 0
	for i := range talks {
		if len(talks[i].turns) == 1 && talks[i].turns[0].Goal.E2E >= batchGoal.E2E {
			if n%10 == 0 {
				at = talks[i].at
			}
			talks[i].at = at
			n++
		}
	}
}

// talk makes a conversation with a number.
func (s *Scenario) talk(r *rand.Rand, id uint64, preludes []int) talk {
	f, k, context := s.family, talk{}, 0
	if len(preludes) > 0 {
		p := zipf(r, len(preludes))
		context = preludes[p]
		k.keys = keys(nil, context/block, uint64(p)+1<<40)
	}
	adapter := 0
	if f.adapters > 0 {
		adapter = 1 + zipf(r, f.adapters)
	}
	turns := 1
	for f.turns > 1 && r.Float64() < 1-1/f.turns {
		turns++
	}
	if r.Float64() < f.abandoned {
		turns = (turns + 1) / 2
	}
	s.converse(r, &k, turns, context, id, adapter)
	return k
}

// job makes a job of a batch.
func (s *Scenario) job(r *rand.Rand, id uint64) (k talk) {
	in, out := 1+int((&length{median: 2000, sigma: 0.8}).draw(r)), 1+int(s.family.answer.draw(r))
	k.add(in, out, id, 0, batchGoal, 0)
	return k
}

// fork makes a conversation that branches from the middle of another one.
func (s *Scenario) fork(r *rand.Rand, of *talk, id uint64) (k talk) {
	at := of.turns[1+r.IntN(len(of.turns)-2)]
	k.keys = slices.Clone(of.keys[:at.Input/block])
	s.converse(r, &k, 1+r.IntN(int(s.family.turns)), at.Input, id, at.Adapter)
	return k
}

// converse adds turns to a conversation with so much context.
func (s *Scenario) converse(r *rand.Rand, k *talk, turns, context int, id uint64, adapter int) {
	for i := range turns {
		in, out := context+1+int(s.family.message.draw(r)), 1+int(s.family.answer.draw(r))
		if i > 0 && in+out > longestPrompt {
			return
		}
		pause := 0.0
		if i > 0 {
			pause = s.family.think.draw(r)
		}
		k.add(in, out, id, adapter, s.Goal, pause)
		context = in + out
	}
}

// add adds a request.
func (k *talk) add(in, out int, id uint64, adapter int, goal replay.Goal, pause float64) {
	if goal.E2E > 0 {
		goal.E2E += perToken * float64(out)
	}
	k.keys = keys(k.keys, (in+out)/block, id)
	k.turns = append(k.turns, replay.Request{
		Input: in, Output: out, Blocks: k.keys[: in/block : in/block], After: k.keys[in/block:], Session: int(id), Parent: -1,
		Goal: goal, Adapter: adapter, Think: pause,
	})
}

// keys adds keys of a source until there are n.
func keys(have []uint64, n int, source uint64) []uint64 {
	have = slices.Clip(have)
	for i := len(have); i < n; i++ {
		hi, lo := bits.Mul64(source*0x9e3779b97f4a7c15+1, uint64(i)*0xd6e8feb86659fd93+0x2545f4914f6cdd1d)
		have = append(have, hi^lo)
	}
	return have[:max(len(have), n)]
}
