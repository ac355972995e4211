package fleet

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/xds/internal/turns"
)

// shared is two models that are loaded on demand, and room for one.
const shared = head + "kind: Model\nmetadata: {name: a}\nspec: {weights: /a.gguf, load: onDemand}\n" +
	head + "kind: Model\nmetadata: {name: b}\nspec: {weights: /b.gguf, load: onDemand}\n"

// sharing1 is a world with one node, whose place a has.
func sharing1(t *testing.T) *world {
	w := newWorld(t)
	w.desire(shared)
	w.join("node-a")
	w.run(4 * time.Second)
	w.wantPlace("a-0", "b-0")
	return w
}

func (w *world) wantPlace(has, asleep string) {
	w.t.Helper()
	if got := w.nodes["node-a"].status.GetAssignment().GetReplica(); got != has {
		w.t.Errorf("%q has the place, want %s", got, has)
	}
	if u := w.snap.Unplaced; len(u) != 1 || u[0].Replica != asleep || !u[0].Asleep || !strings.Contains(u[0].Why, "its place is held by "+has[:1]) {
		w.t.Errorf("without a place: %+v, want %s asleep", u, asleep)
	}
	if all := append(w.snap.ObjectConditions(), w.snap.Conditions...); len(all) > 0 {
		w.t.Errorf("something is wrong: %v", all)
	}
	for _, model := range []string{"a", "b"} {
		if w.snap.Awaited[model] == "" {
			w.t.Errorf("requests for %s are not to wait", model)
		}
	}
}

// demand has a request wait for a model for so long, each half second anew.
func (w *world) demand(model string, d time.Duration) {
	since := w.now
	for end := w.now.Add(d); w.now.Before(end); {
		w.fleet.Step(w.now, Demanded{Stream: 1, Models: map[string]turns.Demand{model: {Waiting: 1, Since: since}}})
		w.run(500 * time.Millisecond)
	}
	w.fleet.Step(w.now, Demanded{Stream: 1})
	w.beat()
}

func TestWhoIsWaitedForGetsThePlace(t *testing.T) {
	w := sharing1(t)
	w.run(time.Hour)
	w.wantPlace("a-0", "b-0")
	w.demand("b", 3*time.Second)
	w.wantPlace("b-0", "a-0")
	w.run(time.Hour)
	w.wantPlace("b-0", "a-0")
	if w.snap.Swaps != 1 {
		t.Errorf("%d swaps", w.snap.Swaps)
	}
	w.demand("unknown", 3*time.Second)
	w.wantPlace("b-0", "a-0")
}

// TestWhoIsBusyIsClosedFirst has a request run at a for long: it ends before the place goes to b,
// and no new one comes.
func TestWhoIsBusyIsClosedFirst(t *testing.T) {
	w := sharing1(t)
	load := &enginepb.Load{Running: 1}
	w.nodes["node-a"].status.Load = load
	w.run(time.Minute)
	w.demand("b", 10*time.Second)
	if got := w.nodes["node-a"].status.GetAssignment().GetReplica(); got != "a-0" {
		t.Fatalf("%q has the place, and a's request runs", got)
	}
	w.fleet.Step(w.now, Demanded{Stream: 1, Models: map[string]turns.Demand{"b": {Waiting: 1, Since: w.now}}})
	w.beat()
	if e := w.snap.Endpoints[0]; e.State != notReady || e.Membership != Healthy || !strings.Contains(e.Reason, "gives its place to b") {
		t.Errorf("a gets new requests: %+v", e)
	}
	if len(w.snap.Conditions) > 0 {
		t.Errorf("something is wrong: %v", w.snap.Conditions)
	}
	w.fleet.Step(w.now, Demanded{Stream: 1}) // b's client leaves
	w.beat()
	w.wantPlace("a-0", "b-0")
	if e := w.snap.Endpoints[0]; e.State != ready {
		t.Errorf("a gets no requests: %+v", e)
	}
	load.Running = 0
	w.demand("b", 5*time.Second)
	w.wantPlace("b-0", "a-0")
}

// TestDemandOfWhoIsSilentIsForgotten as is that of a stream that ended.
func TestDemandOfWhoIsSilentIsForgotten(t *testing.T) {
	w := sharing1(t)
	w.nodes["node-a"].status.Load = &enginepb.Load{Running: 1}
	w.fleet.Step(w.now, Demanded{Stream: 1, Models: map[string]turns.Demand{"b": {Waiting: 2, Since: w.now}}})
	w.beat()
	if got := w.snap.Waiting["b"].Waiting; got != 2 {
		t.Errorf("%d wait", got)
	}
	w.run(demandFor + time.Second)
	if len(w.snap.Waiting) > 0 {
		t.Errorf("who has said nothing for %s still waits: %v", demandFor, w.snap.Waiting)
	}
}

// TestRestartedXDSKeepsThePlace of who was found running.
func TestRestartedXDSKeepsThePlace(t *testing.T) {
	w := sharing1(t)
	w.demand("b", 3*time.Second)
	w.restart()
	w.run(4 * time.Second)
	w.wantPlace("b-0", "a-0")
}

// TestFollowerGivesNoPlaces and shows what nodes run.
func TestFollowerGivesNoPlaces(t *testing.T) {
	w := sharing1(t)
	w.fleet.Step(w.now, Leads{})
	w.demand("b", 5*time.Second)
	if got := w.nodes["node-a"].status.GetAssignment().GetReplica(); got != "a-0" || len(w.snap.Unplaced) != 1 || !w.snap.Unplaced[0].Asleep {
		t.Errorf("%q has the place; %+v", got, w.snap.Unplaced)
	}
	w.fleet.Step(w.now, Leads{Term: 7})
	w.run(4 * time.Second)
	w.demand("b", 5*time.Second)
	w.wantPlace("b-0", "a-0")
}

// TestBrokenOneIsNotAwaited so that who asks learns why; another one gets its place.
func TestBrokenOneIsNotAwaited(t *testing.T) {
	w := sharing1(t)
	s := w.nodes["node-a"].status
	s.State, s.Reason, s.Load = enginepb.State_BROKEN, "out of memory", &enginepb.Load{Wake: durationpb.New(time.Second)}
	w.run(time.Second)
	if why := w.snap.Awaited["a"]; why != "" {
		t.Errorf("requests for what is broken wait: %s", why)
	}
	w.demand("b", 5*time.Second)
	w.wantPlace("b-0", "a-0")
}

// TestTooLargeForAllNodes is something wrong, and waiting for it is of no use.
func TestTooLargeForAllNodes(t *testing.T) {
	w := newWorld(t)
	w.desire(shared + head + "kind: Model\nmetadata: {name: c}\nspec: {weights: /c.gguf, load: onDemand, layout: [{stages: 2}]}\n")
	w.join("node-a")
	w.run(4 * time.Second)
	w.demand("c", 3*time.Second)
	w.wantCondition("replica c-0 is not placed: it can't be loaded: it needs 2 ")
	if w.snap.Awaited["c"] != "" || w.snap.Swaps > 0 {
		t.Errorf("awaited %v, %d swaps", w.snap.Awaited, w.snap.Swaps)
	}
	if all := w.snap.ObjectConditions(); len(all) != 1 || all[0].Severity != obs.Degraded {
		t.Errorf("objects: %v", all)
	}
}
