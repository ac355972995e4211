package fleet

import (
	"slices"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/xds/internal/scale"
	"millrace.dev/millrace/xds/internal/turns"
)

// scaledTo is a model whose replicas follow demand.
func scaledTo(settings string) string {
	return head + "kind: Model\nmetadata: {name: m}\nspec: {weights: /m.gguf, layout: [{stages: 1}], scaling: {" + settings + "}}\n"
}

// scaling3 is a world with three nodes.
func scaling3(t *testing.T, settings string) *world {
	w := newWorld(t)
	w.desire(scaledTo(settings))
	w.join("node-a", "node-b", "node-c")
	w.run(4 * time.Second)
	return w
}

// runs returns which replicas take requests, by name.
func (w *world) runs() (names []string) {
	for _, e := range w.snap.Endpoints {
		if e.State == ready {
			names = append(names, e.Replica)
		}
	}
	slices.Sort(names)
	return names
}

func (w *world) wantRuns(names ...string) {
	w.t.Helper()
	if got := w.runs(); !slices.Equal(got, names) {
		w.t.Errorf("%v take requests, want %v: %+v", got, names, w.snap.Scaled["m"])
	}
	for _, c := range append(w.snap.ObjectConditions(), w.snap.Conditions...) {
		if c.Code != "object-not-scaled" {
			w.t.Errorf("something is wrong: %v", c)
		}
	}
}

// waits has requests wait in an extproc, for so long.
func (w *world) waits(n int, busy bool, d time.Duration) {
	since := w.now
	for end := w.now.Add(d); w.now.Before(end); {
		ev := Demanded{Stream: 1, Models: map[string]turns.Demand{"m": {Waiting: n, Since: since}}}
		if busy {
			ev.Models, ev.Queued = nil, ev.Models
		}
		w.fleet.Step(w.now, ev)
		w.run(500 * time.Millisecond)
	}
	w.fleet.Step(w.now, Demanded{Stream: 1})
	w.beat()
}

func TestScaledFromZeroAndBack(t *testing.T) {
	w := scaling3(t, "minReplicas: 0, maxReplicas: 2, scaleDownAfter: 1m")
	w.wantRuns()
	if why := w.snap.Awaited["m"]; !strings.Contains(why, "no replica runs") {
		t.Errorf("requests wait for %q", why)
	}
	w.run(time.Hour)
	w.wantRuns()
	w.waits(1, false, 2*time.Second)
	w.wantRuns("m-0")
	if w.snap.Awaited["m"] == "" {
		t.Error("gateways do not know that it is awaited")
	}
	w.run(30 * time.Second)
	w.wantRuns("m-0")
	w.run(2 * time.Minute)
	w.wantRuns()
	for name, n := range w.nodes {
		if a := n.status.GetAssignment(); a != nil {
			t.Errorf("%s still runs %s", name, a.GetReplica())
		}
	}
}

// TestScaledDownByDraining has the replica end that has less to lose, once what it runs has
// ended; and it is taken back where demand comes back first.
func TestScaledDownByDraining(t *testing.T) {
	w := scaling3(t, "minReplicas: 1, maxReplicas: 2, scaleDownAfter: 1m")
	w.wantRuns("m-0")
	w.waits(9, true, 10*time.Second)
	w.wantRuns("m-0", "m-1")
	of := map[string]*sim{}
	for _, n := range w.nodes {
		of[n.status.GetAssignment().GetReplica()] = n
	}
	of["m-0"].status.Load = &enginepb.Load{CachedTokens: 10, Running: 1, Slots: 4}
	of["m-1"].status.Load = &enginepb.Load{CachedTokens: 5000, Slots: 4}
	w.until(3*time.Minute, func() bool { return len(w.runs()) == 1 })
	w.wantRuns("m-1")
	i := slices.IndexFunc(w.snap.Endpoints, func(e Endpoint) bool { return e.Replica == "m-0" })
	if i < 0 || w.snap.Endpoints[i].Membership != Healthy || !strings.Contains(w.snap.Endpoints[i].Reason, "more than demand needs") {
		t.Fatalf("m-0 runs a request and is not closing: %+v", w.snap.Endpoints)
	}
	w.waits(9, true, 3*time.Second)
	w.wantRuns("m-0", "m-1")
	of["m-0"].status.Load = &enginepb.Load{CachedTokens: 10, Slots: 4}
	w.until(5*time.Minute, func() bool { return len(w.snap.Endpoints) == 1 })
	w.wantRuns("m-1")
	w.restart()
	w.run(2 * time.Minute)
	w.wantRuns("m-1")
}

func TestScalingIsOnlyRecommended(t *testing.T) {
	w := newWorld(t)
	w.desire(strings.Replace(scaledTo("mode: recommend, minReplicas: 0, maxReplicas: 3"), "scaling:", "replicas: 1, scaling:", 1))
	w.join("node-a", "node-b", "node-c")
	w.run(4 * time.Second)
	w.waits(9, true, 10*time.Second)
	w.wantRuns("m-0")
	if s := w.snap.Scaled["m"]; s.Desired < 2 || s.Phase != scale.Growing || s.Current != 1 {
		t.Errorf("recommended is %+v", s)
	}
}

// TestScalingStopsAtRoom and says so.
func TestScalingStopsAtRoom(t *testing.T) {
	w := scaling3(t, "maxReplicas: 9")
	w.waits(99, true, time.Minute)
	w.wantRuns("m-0", "m-1", "m-2")
	i := slices.IndexFunc(w.snap.Objects, func(o Object) bool { return o.Name == "m" })
	c := w.snap.Objects[i].Conditions[3]
	if c.Type != scaledType || c.Status || c.Reason != "Limited" || !strings.Contains(c.Message, "no more room") {
		t.Errorf("the condition is %+v", c)
	}
}

// until runs until f holds, for so long at most.
func (w *world) until(d time.Duration, f func() bool) {
	w.t.Helper()
	for end := w.now.Add(d); !f(); {
		if w.now.After(end) {
			w.t.Fatalf("nothing came of it in %s: %+v", d, w.snap.Scaled)
		}
		w.run(500 * time.Millisecond)
	}
}

// TestZeroIsOnlyRecommended wakes a model that something else scaled to zero.
func TestZeroIsOnlyRecommended(t *testing.T) {
	w := newWorld(t)
	at := func(replicas string) {
		w.desire(strings.Replace(scaledTo("mode: recommend, minReplicas: 0, maxReplicas: 2, scaleDownAfter: 5s"), "scaling:", "replicas: "+replicas+", scaling:", 1))
	}
	at("2")
	w.join("node-a", "node-b", "node-c")
	w.run(10 * time.Second)
	w.until(time.Minute, func() bool { return w.snap.Scaled["m"].Desired <= 1 })
	at("1")
	w.until(time.Minute, func() bool { return w.snap.Scaled["m"].Desired == 0 })
	at("0")
	w.run(5 * time.Second)
	w.wantRuns()
	if s := w.snap.Scaled["m"]; s.Desired != 0 || w.snap.Awaited["m"] == "" {
		t.Errorf("nobody asks: %+v, awaited %q", s, w.snap.Awaited["m"])
	}
	w.waits(1, false, 2*time.Second)
	if s := w.snap.Scaled["m"]; s.Desired != 1 {
		t.Errorf("a request waits: %+v", s)
	}
}
