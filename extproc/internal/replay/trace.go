// Package replay runs real traces of requests through endpoint policies against
// simulated engines: what share of the prompts is found in caches, how long the
// first token takes, how evenly the work is spread.
//
// The command extproc/replay calls it. Its one rule: the policy called "millrace" is
// the very code that answers Envoy (pick, prefix); only clock, network and engines are
// simulated.
package replay

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"

	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/internal/trust"
)

// Request is one request of a trace.
type Request struct {
	// At is when it comes, in milliseconds.
	At float64
	// Input and Output are its prompt and its answer, in tokens.
	Input, Output int
	// Blocks are the keys of the prompt's blocks: equal keys, equal prefixes.
	Blocks []uint64
	// After are the blocks that the answer leaves behind the prompt, as far as the
	// next turn shows.
	After []uint64
	// Session numbers the conversation.
	Session int
	// Parent is the number of the request whose answer it waits for; -1: none. It comes no
	// sooner than Think milliseconds after that.
	Parent int
	Think  float64
	// Goal is what the client wants; the zero Goal: nothing in particular.
	Goal Goal
	// Adapter numbers the LoRA adapter that it is for; 0: none.
	Adapter int
}

// Goal is how fast a request is to be answered, in milliseconds; 0: that does not matter.
type Goal struct {
	// TTFT is for the time to the first token, TPOT for that of each further one, E2E for
	// the time until the answer is whole.
	TTFT, TPOT, E2E float64
}

// Trace is the requests of a trace in order of their time.
type Trace struct {
	// Name is shown.
	Name string
	// Block is the size of a block, in tokens.
	Block int
	// Requests are in the order in which they come.
	Requests []Request
}

// line is a request as traces have it (the form that Mooncake's are published in).
type line struct {
	Timestamp float64  `json:"timestamp"`
	Session   string   `json:"session_id"`
	Input     int      `json:"input_length"`
	Output    int      `json:"output_length"`
	Hashes    []uint64 `json:"hash_ids"`
}

// Most that is read of a trace.
const (
	maxLine   = 4 << 20
	maxTokens = 1 << 24
	maxTime   = 1e15 // milliseconds
)

// Read reads a trace of JSON lines whose blocks have so many tokens.
func Read(name string, block int, r io.Reader) (*Trace, error) {
	t := &Trace{Name: name, Block: block}
	var names []string
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxLine)
	for n := 1; sc.Scan(); n++ {
		var l line
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
		if l.Input < 0 || l.Input > maxTokens || l.Output < 0 || l.Output > maxTokens || !trust.Within(l.Timestamp, 0, maxTime) {
			return nil, fmt.Errorf("%s:%d: input_length, output_length, timestamp: must be 0 to %d; the last to %g", name, n, maxTokens, maxTime)
		}
		if len(l.Hashes) > l.Input/block+1 {
			return nil, fmt.Errorf("%s:%d: hash_ids: %d blocks of %d tokens for a prompt of %d", name, n, len(l.Hashes), block, l.Input)
		}
		t.Requests = append(t.Requests, Request{
			At: l.Timestamp, Input: max(1, l.Input), Output: max(1, l.Output), Blocks: chained(l.Hashes), Parent: -1,
		})
		names = append(names, l.Session)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(t.Requests) == 0 {
		return nil, fmt.Errorf("%s: no requests", name)
	}
	t.sort(names)
	return t, nil
}

// chained makes a block's key one of all that goes before it, too.
func chained(ids []uint64) []uint64 {
	keys, k := make([]uint64, len(ids)), session.Seed("trace")
	for i, id := range ids {
		k = session.Next(k, binary.LittleEndian.AppendUint64(nil, id))
		keys[i] = uint64(k)
	}
	return keys
}

// sort puts the requests in order and finds out which continues which.
func (t *Trace) sort(names []string) {
	order := make([]int, len(t.Requests))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(t.Requests[a].At, t.Requests[b].At) })
	sorted, by := make([]Request, len(order)), make([]string, len(order))
	for i, n := range order {
		sorted[i], by[i] = t.Requests[n], names[n]
	}
	t.Requests = sorted
	t.link(by)
}

// link finds each request's session and the request before it: by the name of the
// session, and where there is none by the longest prompt that it begins with.
func (t *Trace) link(names []string) {
	byName, byTail := map[string]int{}, map[uint64]int{}
	for i := range t.Requests {
		r := &t.Requests[i]
		r.Session = i
		if name := names[i]; name != "" {
			if p, ok := byName[name]; ok {
				r.Parent = p
			}
			byName[name] = i
		} else {
			r.Parent = t.begins(r, byTail)
			if n := r.Input / t.Block; n >= 2 && n <= len(r.Blocks) {
				byTail[r.Blocks[n-1]] = i
			}
		}
		if r.Parent >= 0 {
			p := &t.Requests[r.Parent]
			r.Session = p.Session
			p.After = t.after(p, r)
		}
	}
}

// begins returns the latest request whose full blocks r begins with; -1: none. One
// block is what all have in common.
func (t *Trace) begins(r *Request, byTail map[uint64]int) int {
	for n := len(r.Blocks) - 1; n >= 2; n-- {
		if p, ok := byTail[r.Blocks[n-1]]; ok {
			return p
		}
	}
	return -1
}

// after returns the blocks that p's answer fills, by what the next turn begins with.
func (t *Trace) after(p, next *Request) []uint64 {
	from, to := p.Input/t.Block, (p.Input+p.Output)/t.Block
	if to > len(next.Blocks) || from > len(next.Blocks) || from > 0 && (from > len(p.Blocks) || next.Blocks[from-1] != p.Blocks[from-1]) {
		return nil
	}
	return next.Blocks[from:to]
}

// times returns when the requests come if conversations begin at times stretched by
// a factor, each moved a little at random, by r, so that runs differ. Within a
// conversation the turns keep their distance.
func (t *Trace) times(factor float64, r *rand.Rand) []float64 {
	first, n := make([]int, len(t.Requests)), 0
	for i := range t.Requests {
		first[i] = i
		if p := t.Requests[i].Parent; p >= 0 {
			first[i] = first[p]
		} else {
			n++
		}
	}
	gap := t.span() * factor / float64(n)
	at := make([]float64, len(t.Requests))
	for i := range at {
		if first[i] == i {
			at[i] = t.Requests[i].At * factor
			if r != nil {
				at[i] = max(0, at[i]+(r.Float64()-0.5)*4*gap)
			}
		} else {
			at[i] = at[first[i]] + t.Requests[i].At - t.Requests[first[i]].At
		}
	}
	return at
}

// span is the time in which conversations begin.
func (t *Trace) span() float64 {
	last := 0.0
	for i := range t.Requests {
		if t.Requests[i].Parent < 0 {
			last = max(last, t.Requests[i].At)
		}
	}
	return max(1, last)
}

// Copies returns a trace in which each conversation is there n times, spread evenly
// over the time. Copies have in common what several conversations of the trace have
// in common, and nothing else.
func (t *Trace) Copies(n int) *Trace {
	owner := map[uint64]int{} // of a block: its session; -1: several
	for i := range t.Requests {
		for _, b := range t.Requests[i].Blocks {
			if s, ok := owner[b]; ok && s != t.Requests[i].Session {
				owner[b] = -1
			} else if !ok {
				owner[b] = t.Requests[i].Session
			}
		}
	}
	all := &Trace{Name: t.Name, Block: t.Block}
	shift := t.span() / float64(n)
	var at []int // where the requests are to go
	for k := range n {
		for i := range t.Requests {
			r := t.Requests[i]
			r.At += float64(k) * shift
			r.Session += k * len(t.Requests)
			if r.Parent >= 0 {
				r.Parent += k * len(t.Requests)
			}
			r.Blocks, r.After = salted(r.Blocks, owner, k), salted(r.After, owner, k)
			at = append(at, len(all.Requests))
			all.Requests = append(all.Requests, r)
		}
	}
	all.order(at)
	return all
}

// salted gives blocks of one conversation alone other keys in each copy.
func salted(blocks []uint64, owner map[uint64]int, k int) []uint64 {
	out := make([]uint64, len(blocks))
	for i, b := range blocks {
		out[i] = b
		if owner[b] >= 0 {
			out[i] = mix(b, uint64(k))
		}
	}
	return out
}

// order puts the requests in order of their time, and corrects who their parents are.
func (t *Trace) order(at []int) {
	slices.SortStableFunc(at, func(a, b int) int { return cmp.Compare(t.Requests[a].At, t.Requests[b].At) })
	place, sorted := make([]int, len(at)), make([]Request, len(at))
	for i, n := range at {
		place[n] = i
		sorted[i] = t.Requests[n]
	}
	for i := range sorted {
		if p := sorted[i].Parent; p >= 0 {
			sorted[i].Parent = place[p]
		}
	}
	t.Requests = sorted
}
