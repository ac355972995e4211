package turns

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var at = time.Unix(1_000_000, 0)

// ago is so long before.
func ago(d time.Duration) time.Time { return at.Add(-d) }

// placed is a unit on demand with a place, whose model was loaded and last used so long ago.
func placed(model string, began, used time.Duration, nodes ...string) Unit {
	return Unit{
		Model: model, Replica: model + "-0", Stages: len(nodes), OnDemand: true, On: nodes,
		Turn: Turn{Placed: ago(began), Began: ago(began), Used: ago(used), Load: time.Second},
	}
}

func asleep(model string, stages int, nodes ...string) Unit {
	return Unit{Model: model, Replica: model + "-0", Stages: stages, Nodes: nodes, OnDemand: true}
}

func edit(u Unit, f func(*Unit)) Unit {
	f(&u)
	return u
}

func busy(u Unit) Unit { return edit(u, func(u *Unit) { u.Busy, u.Used = true, at }) }

func always(model string, nodes ...string) Unit {
	return Unit{Model: model, Replica: model + "-0", Stages: max(1, len(nodes)), On: nodes}
}

func nodes(names ...string) (all []Node) {
	for _, n := range names {
		all = append(all, Node{Name: n, Usable: true})
	}
	return all
}

// waiting is that one request waits for each of these, the first for longest.
func waiting(models ...string) map[string]Demand {
	all := map[string]Demand{}
	for i, m := range models {
		all[m] = Demand{Waiting: 1, Since: ago(time.Duration(len(models)-i) * time.Second)}
	}
	return all
}

// short writes a decision: a model with a place by its name, with < for whom it is closing.
func short(in Input, places []Place) string {
	var all []string
	for i, p := range places {
		switch {
		case p.For != "":
			all = append(all, in.Units[i].Model+"<"+p.For)
		case p.Has:
			all = append(all, in.Units[i].Model)
		case p.Hopeless:
			all = append(all, "!"+in.Units[i].Model)
		}
	}
	return strings.Join(all, " ")
}

func TestDecide(t *testing.T) {
	hour := time.Hour
	tests := []struct {
		name   string
		units  []Unit
		nodes  []Node
		demand map[string]Demand
		want   string
	}{
		{"room for all", []Unit{asleep("a", 1), asleep("b", 1)}, nodes("x", "y"), nil, "a b"},
		{"in order", []Unit{asleep("a", 1), asleep("b", 1)}, nodes("x"), nil, "a"},
		{"the always loaded first", []Unit{asleep("a", 1), always("b")}, nodes("x"), nil, "b"},
		{"nobody waits", []Unit{placed("a", hour, hour, "x"), asleep("b", 1)}, nodes("x"), nil, "a"},
		{"the idle one goes", []Unit{placed("a", hour, hour, "x"), asleep("b", 1)}, nodes("x"), waiting("b"), "a<b"},
		{"free room comes first", []Unit{placed("a", hour, hour, "x"), asleep("b", 1)}, nodes("x", "y"), waiting("b"), "a b"},
		{"the least recently used", []Unit{placed("a", hour, time.Minute, "x"), placed("b", hour, 2*time.Minute, "y"), asleep("c", 1)}, nodes("x", "y"), waiting("c"), "a b<c"},
		{"used just now", []Unit{placed("a", 4*time.Second, time.Second/2, "x"), asleep("b", 1)}, nodes("x"), waiting("b"), "a"},
		{"loaded just now", []Unit{edit(placed("a", time.Second, time.Second, "x"), func(u *Unit) { u.Asked = true }), asleep("b", 1)}, nodes("x"), waiting("b"), "a"},
		{"its loading took long", []Unit{edit(placed("a", 20*time.Second, 19*time.Second, "x"), func(u *Unit) { u.Load = time.Minute }), asleep("b", 1)}, nodes("x"), waiting("b"), "a"},
		{"busy, its turn not over", []Unit{busy(placed("a", 3*time.Second, 0, "x")), asleep("b", 1)}, nodes("x"), waiting("b"), "a"},
		{"busy, its turn over", []Unit{busy(placed("a", hour, 0, "x")), asleep("b", 1)}, nodes("x"), waiting("b"), "a<b"},
		{"closing, and busy still", []Unit{edit(busy(placed("a", hour, 0, "x")), func(u *Unit) { u.Closing = ago(hour) }), asleep("b", 1)}, nodes("x"), waiting("b"), "a<b"},
		{"closing, and quiet", []Unit{edit(placed("a", hour, 0, "x"), func(u *Unit) { u.Closing, u.Quiet = ago(time.Second), true }), asleep("b", 1)}, nodes("x"), waiting("b"), "b"},
		{"closing, and nobody waits any more", []Unit{edit(busy(placed("a", hour, 0, "x")), func(u *Unit) { u.Closing = ago(hour) }), asleep("b", 1)}, nodes("x"), nil, "a"},
		{"being loaded", []Unit{edit(placed("a", hour, 0, "x"), func(u *Unit) { u.Loading = true }), asleep("b", 1)}, nodes("x"), waiting("b"), "a"},
		{"broken", []Unit{edit(placed("a", 2*time.Second, 0, "x"), func(u *Unit) { u.Broken = true }), asleep("b", 1)}, nodes("x"), waiting("b"), "a<b"},
		{"never used, as nobody waited for it", []Unit{edit(placed("a", 0, 0, "x"), func(u *Unit) { u.Used = time.Time{} }), asleep("b", 1)}, nodes("x"), waiting("b"), "a<b"},
		{"given a place, and not there yet", []Unit{edit(placed("a", 0, 0), func(u *Unit) { u.Stages, u.Began = 1, time.Time{} }), asleep("b", 1)}, nodes("x"), waiting("b"), "a"},
		{"who has waited longest", []Unit{placed("a", hour, hour, "x"), asleep("b", 1), asleep("c", 1)}, nodes("x"), waiting("c", "b"), "a<c"},
		{"never the always loaded", []Unit{always("a", "x"), asleep("b", 1)}, nodes("x"), waiting("b"), "a !b"},
		{"the always loaded takes", []Unit{placed("a", 0, 0, "x"), always("b")}, nodes("x"), nil, "a<b b"},
		{"and waits for what runs", []Unit{busy(placed("a", 0, 0, "x")), always("b")}, nodes("x"), nil, "a<b b"},
		{"a node too few", []Unit{placed("a", hour, hour, "x"), asleep("b", 2)}, nodes("x"), waiting("b"), "a !b"},
		{"too large stops nobody", []Unit{placed("a", hour, hour, "x"), asleep("b", 2), asleep("c", 1)}, nodes("x"), waiting("b", "c"), "a<c !b"},
		{"two give theirs to one", []Unit{placed("a", hour, hour, "x"), placed("b", hour, hour, "y"), asleep("c", 2)}, nodes("x", "y"), waiting("c"), "a<c b<c"},
		{"the first is not lost before the second is", []Unit{placed("a", hour, hour, "x"), busy(placed("b", 0, 0, "y")), asleep("c", 2)}, nodes("x", "y"), waiting("c"), "a b"},
		{"nobody behind overtakes", []Unit{placed("a", hour, hour, "x"), busy(placed("b", 0, 0, "y")), asleep("c", 2), asleep("d", 1)}, nodes("x", "y"), waiting("c", "d"), "a b"},
		{"on the node that it names", []Unit{placed("a", hour, hour, "x"), placed("b", hour, time.Minute, "y"), asleep("c", 1, "y")}, nodes("x", "y"), waiting("c"), "a b<c"},
		{"a named node that is gone", []Unit{placed("a", hour, hour, "x"), asleep("b", 1, "z")}, nodes("x"), waiting("b"), "a !b"},
		{"silent nodes come back", []Unit{asleep("a", 1)}, []Node{{Name: "x"}}, waiting("a"), ""},
		{"gone nodes don't", []Unit{asleep("a", 1)}, []Node{{Name: "x", Gone: true}}, waiting("a"), "!a"},
		{
			"second replicas go first", []Unit{placed("a", hour, time.Minute, "x"), edit(placed("a", hour, time.Minute, "y"), func(u *Unit) { u.Replica = "a-1" }), placed("b", hour, hour, "z"), asleep("c", 1)},
			nodes("x", "y", "z"), waiting("c"), "a a<c b",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := Input{Units: tt.units, Nodes: tt.nodes, Demand: tt.demand, Now: at}
			places := Decide(in)
			if got := short(in, places); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
			for i, p := range places {
				if p.Has != (p.Why == "") {
					t.Errorf("%s: has %t, why %q", in.Units[i].Replica, p.Has, p.Why)
				}
			}
		})
	}
}

// world is nodes and models with requests that come at random, driven by Decide.
type world struct {
	t      *testing.T
	r      *rand.Rand
	in     Input
	runs   []int       // requests at each unit
	ends   []time.Time // when they end
	queued map[string]Demand
	waited time.Duration // the longest that a model was waited for
	swaps  int
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, r: rand.New(rand.NewPCG(seed, 1)), queued: map[string]Demand{}}
	w.in.Now = at
	n := 1 + w.r.IntN(3)
	for i := range n {
		w.in.Nodes = append(w.in.Nodes, Node{Name: fmt.Sprint("n", i), Usable: true})
	}
	for i := range 1 + w.r.IntN(6) {
		m := fmt.Sprint("m", i)
		for j := range 1 + w.r.IntN(2) {
			w.in.Units = append(w.in.Units, Unit{Model: m, Replica: fmt.Sprint(m, "-", j), Stages: 1 + w.r.IntN(n), OnDemand: i > 0 || w.r.IntN(3) > 0})
		}
	}
	w.runs, w.ends = make([]int, len(w.in.Units)), make([]time.Time, len(w.in.Units))
	return w
}

// step is half a second: what was decided is carried out as far as nodes are free.
func (w *world) step() {
	in := w.in
	in.Demand = w.queued
	places := Decide(in)
	if again := Decide(in); !reflect.DeepEqual(places, again) {
		w.t.Fatal("the same input gives another decision")
	}
	w.check(places)
	for i, p := range places {
		u := &w.in.Units[i]
		switch {
		case !p.Has:
			u.On, u.Turn = nil, Turn{Load: u.Load}
			continue
		case u.Placed.IsZero():
			u.Placed = w.in.Now
		}
		u.Asked = p.Asked
		switch {
		case p.For == "":
			u.Closing, u.Quiet = time.Time{}, false
		case u.Closing.IsZero():
			u.Closing = w.in.Now
		default:
			u.Quiet = !u.Busy
		}
		w.lay(u)
	}
	w.in.Now = w.in.Now.Add(500 * time.Millisecond)
	w.requests()
}

// lay gives a unit its nodes if there are some.
func (w *world) lay(u *Unit) {
	if len(u.On) > 0 {
		return
	}
	var free []string
	for _, n := range w.in.Nodes {
		if !slices.ContainsFunc(w.in.Units, func(o Unit) bool { return slices.Contains(o.On, n.Name) }) {
			free = append(free, n.Name)
		}
	}
	if len(free) >= u.Stages {
		u.On, u.Began, u.Load = free[:u.Stages], w.in.Now, 2*time.Second
	}
}

// requests has some come and some end.
func (w *world) requests() {
	for i := range w.in.Units {
		u := &w.in.Units[i]
		if w.runs[i] > 0 && !w.in.Now.Before(w.ends[i]) {
			w.runs[i] = 0
		}
		open := len(u.On) > 0 && u.Closing.IsZero()
		if d, ok := w.queued[u.Model]; ok && open {
			w.waited = max(w.waited, w.in.Now.Sub(d.Since))
			delete(w.queued, u.Model)
			w.runs[i], w.ends[i] = 1, w.in.Now.Add(time.Duration(w.r.IntN(6))*time.Second)
		}
		if w.r.IntN(5) == 0 && open {
			w.runs[i], w.ends[i] = 1, w.in.Now.Add(time.Duration(w.r.IntN(6))*time.Second)
		}
		if u.Busy = w.runs[i] > 0; u.Busy {
			u.Used = w.in.Now
		}
	}
	for _, u := range w.in.Units {
		if _, ok := w.queued[u.Model]; !ok && w.r.IntN(10) == 0 && !w.open(u.Model) {
			w.queued[u.Model] = Demand{Waiting: 1 + w.r.IntN(9), Since: w.in.Now}
		}
		if w.r.IntN(200) == 0 {
			delete(w.queued, u.Model) // the client has left
		}
	}
}

func (w *world) open(model string) bool {
	return slices.ContainsFunc(w.in.Units, func(u Unit) bool { return u.Model == model && len(u.On) > 0 && u.Closing.IsZero() })
}

// check holds a decision against what is promised.
func (w *world) check(places []Place) {
	w.t.Helper()
	need := 0
	for i, p := range places {
		u := &w.in.Units[i]
		if p.Has && u.OnDemand {
			need += u.Stages
		}
		lost := !u.Placed.IsZero() && !p.Has
		switch {
		case !u.OnDemand && (!p.Has || p.For != ""):
			w.t.Fatalf("%s, which is always loaded, loses its place", u.Replica)
		case lost && w.runs[i] > 0:
			w.t.Fatalf("%s loses its place, and a request runs there", u.Replica)
		case lost && u.Closing.IsZero() && len(u.On) > 0:
			w.t.Fatalf("%s loses its place, and gateways send requests there", u.Replica)
		case lost && len(w.queued) == 0:
			w.t.Fatalf("%s loses its place, and nobody waits", u.Replica)
		case p.For != "" && !u.gives(w.in.Now) && !u.idle(w.in.Now) && u.Closing.IsZero():
			w.t.Fatalf("%s is closed before its turn is over", u.Replica)
		}
		if lost {
			w.swaps++
		}
	}
	if need > len(w.in.Nodes) {
		for i, p := range places {
			w.t.Logf("%+v: %+v", w.in.Units[i], p)
		}
		w.t.Fatalf("places on %d nodes, and there are %d: %v", need, len(w.in.Nodes), w.queued)
	}
}

// TestTurns has models wait for each other for ten minutes each time: nobody with a request
// loses a place, and everybody who can have one gets it in bounded time.
func TestTurns(t *testing.T) {
	swaps := 0
	for seed := range uint64(60) {
		w := newWorld(t, seed)
		for range 1200 {
			w.step()
			for m, d := range w.queued {
				if waited := w.in.Now.Sub(d.Since); waited > longest(w) && w.can(m) {
					t.Fatalf("seed %d: %s is waited for since %v: %+v", seed, m, waited, w.in.Units)
				}
			}
		}
		swaps += w.swaps
	}
	if swaps < 500 {
		t.Errorf("%d swaps: nothing was shown", swaps)
	}
}

// longest bounds the wait: each other unit has one turn, and what runs there ends.
func longest(w *world) time.Duration {
	return time.Duration(len(w.in.Units)) * (leastTurn + 8*time.Second)
}

// can reports whether a model can have a place at all.
func (w *world) can(model string) bool {
	free := len(w.in.Nodes)
	for _, u := range w.in.Units {
		if !u.OnDemand {
			free -= u.Stages
		}
	}
	return slices.ContainsFunc(w.in.Units, func(u Unit) bool { return u.Model == model && u.OnDemand && u.Stages <= free })
}
