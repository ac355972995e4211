package fleet

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/engine/enginepb"
)

// drain makes those the drained nodes.
func (w *world) drain(names ...string) {
	all := make(map[string]string)
	for _, name := range names {
		all[name] = "drained"
	}
	w.fleet.Step(w.now, Drains{all})
}

// wantDrain compares how far a node is emptied, done or not.
func (w *world) wantDrain(node string, done bool, text string) {
	w.t.Helper()
	for _, n := range w.snap.Nodes {
		switch {
		case n.Name != node:
		case n.Drain == nil:
			w.t.Errorf("%s is not drained, want %q", node, text)
		case n.Drain.Done != done || n.Drain.Text() != text:
			w.t.Errorf("%s: done %t: %q, want %t: %q", node, n.Drain.Done, n.Drain.Text(), done, text)
		}
	}
}

func TestDrainEndsWhenNothingIsLeft(t *testing.T) {
	w := up(t) // m-0 on a and b, m-1 on c
	load := func(n uint32) {
		s := clone(w.nodes["node-a"].status, enginepb.State_READY, "")
		s.Load = &enginepb.Load{Running: n, Waiting: n, CachedTokens: 900}
		w.nodes["node-a"].status = s
	}
	load(2)
	w.drain("node-b")
	w.beat()
	w.want("m-0 NOT_READY 0", "m-1 READY 1000")
	const stays = "it stays loaded as the last resort: m-0: must move from node-b (drained); it needs 2 free nodes, and there is none"
	w.run(10 * time.Second)
	w.wantDrain("node-b", false, "4 requests run or wait; "+stays) // its head works on them
	load(0)
	w.beat()
	w.wantDrain("node-b", false, "nothing runs there; "+stays) // not for long enough
	w.run(2 * time.Second)
	w.wantDrain("node-b", true, "nothing runs there; "+stays)
	w.wantCondition("node node-b is drained: drained: nothing runs there")

	w.restart()
	w.drain("node-b")
	w.run(4 * time.Second)
	w.want("m-0 NOT_READY 0", "m-1 READY 1000")
	w.wantDrain("node-b", true, "nothing runs there; "+stays)

	w.nodes["node-c"].status = clone(w.nodes["node-c"].status, enginepb.State_BROKEN, "backend died")
	w.beat()
	w.want("m-0 SUSPECT 1", "m-1 NOT_READY 0")
	w.wantDrain("node-b", false, "nobody else serves m, so that requests for it still come")
	w.nodes["node-c"].status = clone(w.nodes["node-c"].status, enginepb.State_READY, "")

	w.drain()
	w.beat()
	w.want("m-0 READY 1000", "m-1 READY 1000")
}

func TestDrainShowsTheConversationsThatAreLeft(t *testing.T) {
	w := up(t)
	s := clone(w.nodes["node-c"].status, enginepb.State_READY, "")
	s.Load = &enginepb.Load{Running: 1, CachedTokens: 900}
	w.nodes["node-c"].status = s
	w.drain("node-c")
	w.beat()
	w.wantDrain("node-c", false, "1 request runs or waits; conversations with 900 tokens in its cache continue elsewhere at their next turn; "+
		"it stays loaded as the last resort: m-1: must move from node-c (drained); it needs 1 free node, and there is none")
}

func TestDrainMovesWhatOnlyThatNodeServes(t *testing.T) {
	w := newWorld(t)
	w.desire(one)
	w.join("node-a", "node-b")
	w.run(3 * time.Second)
	w.drain("node-a")
	w.now = w.now.Add(100 * time.Millisecond)
	w.beat()
	w.nodes["node-b"].status.State = enginepb.State_STARTING
	w.run(10 * time.Second)
	w.want("m-0 NOT_READY 0", "m-0@node-a SUSPECT 1")
	w.wantDrain("node-a", false, "m-0 starts on node-b first")
	w.nodes["node-b"].status.State = enginepb.State_READY
	w.run(3 * time.Second)
	w.want("m-0 READY 1000")
	w.wantDrain("node-a", true, "nothing runs there")
	if got := w.nodes["node-a"].status.GetAssignment(); got != nil {
		t.Errorf("node-a still runs %v", got)
	}
	w.drain()
	w.run(time.Second)
	w.want("m-0 READY 1000") // where it is
}

func TestDrainOfASilentNodeIsNotDone(t *testing.T) {
	w := up(t)
	w.drain("node-a")
	w.run(10*time.Second, "node-a")
	const stays = "it stays loaded as the last resort: m-0: must move from node-a (drained); it needs 2 free nodes, and there is none"
	w.wantDrain("node-a", false, "what runs on node-a is not known: its nodeagent is silent; "+stays)
}

// TestDrainOfALostNodeIsDone: its last report holds nobody up, once it is laid out elsewhere.
func TestDrainOfALostNodeIsDone(t *testing.T) {
	w := up(t)
	w.join("node-d")
	s := clone(w.nodes["node-c"].status, enginepb.State_READY, "")
	s.Load = &enginepb.Load{Running: 2}
	w.nodes["node-c"].status = s
	w.beat()
	w.drain("node-c")
	w.run(50*time.Second, "node-c")
	w.wantDrain("node-c", false, "2 requests run or wait; m-1 ends there; what runs on node-c is not known: its nodeagent is silent")
	w.run(20*time.Second, "node-c")
	w.want("m-0 READY 1000", "m-1 READY 1000")
	w.wantDrain("node-c", true, "nothing runs there")
}

func TestSole(t *testing.T) {
	const pinned = head + "kind: Model\nmetadata: {name: m}\nspec: {weights: /m.gguf, replicas: 1, layout: [{nodes: [node-b]}]}\n"
	tests := []struct {
		name  string
		text  string
		nodes int
		then  func(w *world)
		want  string
	}{
		{"two replicas", two, 3, nil, "map[]"},
		{"one of them is broken", two, 3, func(w *world) {
			w.nodes["node-c"].status = clone(w.nodes["node-c"].status, enginepb.State_BROKEN, "backend died")
		}, "map[node-a:[m] node-b:[m]]"},
		{"one of them is drained", two, 3, func(w *world) { w.drain("node-a") }, "map[node-c:[m]]"},
		{"one replica, and no room", one, 1, nil, "map[node-a:[m]]"},
		{"one replica, and room", one, 2, nil, "map[]"},
		{"one replica, and room that is drained", one, 2, func(w *world) { w.drain("node-b") }, "map[node-a:[m]]"},
		{"one replica that names its node", pinned, 3, nil, "map[node-b:[m]]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.desire(tt.text)
			w.join([]string{"node-a", "node-b", "node-c"}[:tt.nodes]...)
			w.run(3 * time.Second)
			if tt.then != nil {
				tt.then(w)
			}
			w.beat()
			if got := fmt.Sprint(w.snap.Sole()); got != tt.want {
				t.Errorf("Sole() = %s, want %s", got, tt.want)
			}
		})
	}
}

// TestNoDrainLeavesAModelToNobody drains at random, while engines break, start slowly and
// agents and xds come and go: a model that an engine serves is never without an endpoint, and a
// drained one is never asked while another can be.
func TestNoDrainLeavesAModelToNobody(t *testing.T) {
	const text = two + head + "kind: Model\nmetadata: {name: k}\nspec: {weights: /k.gguf, replicas: 1}\n" +
		head + "kind: Model\nmetadata: {name: p}\nspec: {weights: /p.gguf, replicas: 1, layout: [{nodes: [node-f]}]}\n" +
		head + "kind: Policy\nmetadata: {name: default}\n"
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 12))
		w := newWorld(t)
		w.desire(strings.Replace(text, "{name: m}\nspec: {", "{name: m}\nspec: {default: true, ", 1))
		w.join("node-a", "node-b", "node-c", "node-d", "node-e", "node-f")
		w.run(4 * time.Second)
		drained := map[string]bool{}
		var log []string
		known := w.snap.Endpoints
		for range 150 {
			log = append(log, w.happen(r, drained))
			w.slowly(r)
			w.now = w.now.Add(500 * time.Millisecond)
			for name := range w.nodes {
				w.report(name)
			}
			could := w.could(known)
			if w.decide(); w.snap.Settled {
				known = w.snap.Endpoints
				if wrong := w.unserved(could, drained); wrong != "" {
					t.Fatalf("seed %d: %s after\n%s", seed, wrong, strings.Join(log, "\n"))
				}
			}
		}
		w.drain()
		for _, n := range w.nodes {
			if n.stream == 0 {
				w.join(n.status.GetNode())
			}
		}
		for range 10 { // each may have to wait for one before it
			w.run(time.Second)
			for _, n := range w.nodes {
				if n.status.GetAssignment() != nil {
					n.status = clone(n.status, enginepb.State_READY, "")
				}
			}
		}
		w.run(time.Second)
		for _, e := range w.snap.Endpoints {
			if e.Membership != Healthy {
				t.Errorf("seed %d: nothing is drained, and %s is %v: %s", seed, e.Replica, e.State, e.Reason)
			}
		}
	}
}

// happen lets something happen.
func (w *world) happen(r *rand.Rand, drained map[string]bool) string {
	names := []string{"node-a", "node-b", "node-c", "node-d", "node-e", "node-f"}
	name := names[r.IntN(len(names))]
	n := w.nodes[name]
	give := func() {
		var all []string
		for name := range drained {
			all = append(all, name)
		}
		w.drain(all...)
	}
	switch what := r.IntN(20); {
	case what < 3:
		drained[name] = true
		give()
		return "drain " + name
	case what < 6:
		delete(drained, name)
		give()
		return "undrain " + name
	case what == 6 && n.status.GetAssignment() != nil:
		n.status = clone(n.status, enginepb.State_BROKEN, "backend died")
		return "break " + name
	case what == 7 && n.stream != 0:
		w.leave(name)
		return "agent of " + name + " ends"
	case what == 8:
		w.restart()
		give()
		return "xds starts anew"
	}
	for _, n := range w.nodes {
		if n.stream == 0 {
			w.join(n.status.GetNode())
			return "agent of " + n.status.GetNode() + " is back"
		}
	}
	return ""
}

// slowly has what starts take its time, and what is broken come back.
func (w *world) slowly(r *rand.Rand) {
	for name := range w.snap.Directives {
		if s := w.nodes[name].status; s.GetAssignment() != nil && r.IntN(2) == 0 {
			w.nodes[name].status = clone(s, enginepb.State_STARTING, "loads")
		}
	}
	for _, n := range w.nodes {
		if s := n.status.GetState(); (s == enginepb.State_STARTING || s == enginepb.State_BROKEN) && r.IntN(6) == 0 {
			n.status = clone(n.status, enginepb.State_READY, "")
		}
	}
}

// could returns the models that a replica of them serves now, each with its nodes, of those
// that were known before: others have been released.
func (w *world) could(known []Endpoint) map[string][][]string {
	all := map[string][][]string{}
	for _, n := range w.nodes {
		a := n.status.GetAssignment()
		if a == nil || a.GetStage() != 0 {
			continue
		}
		var nodes []string
		for i, st := range a.GetStages() {
			o := w.nodes[st.GetNode()]
			if b := o.status.GetAssignment(); o.stream == 0 || o.status.GetState() != enginepb.State_READY || int(b.GetStage()) != i || b.Version() != a.Version() {
				nodes = nil
				break
			}
			nodes = append(nodes, st.GetNode())
		}
		if nodes != nil && slices.ContainsFunc(known, func(e Endpoint) bool { return slices.Equal(e.Nodes, nodes) }) {
			all[a.GetModel()] = append(all[a.GetModel()], nodes)
		}
	}
	return all
}

// unserved returns which model has no endpoint that could have one, or has a drained one
// besides another; empty: none.
func (w *world) unserved(could map[string][][]string, drained map[string]bool) string {
	for model := range could {
		var asked, leaving []string
		for _, e := range w.snap.Endpoints {
			if e.Model != model || e.Membership != Healthy && e.Membership != Leaving {
				continue
			}
			if slices.ContainsFunc(e.Nodes, func(n string) bool { return drained[n] }) {
				leaving = append(leaving, e.Replica)
			} else {
				asked = append(asked, e.Replica)
			}
		}
		switch {
		case len(asked)+len(leaving) == 0:
			return fmt.Sprintf("%s has no endpoint, though %v serve it", model, could[model])
		case len(asked) > 0 && len(leaving) > 0:
			return fmt.Sprintf("%s is asked at %v, which leave, besides %v", model, leaving, asked)
		}
	}
	return ""
}
