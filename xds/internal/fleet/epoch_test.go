package fleet

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/xds/fleetpb"
)

// spoil puts an engine into a state that somebody who reaches it can put it into: a version
// that no control plane has given out, or one whose content was exchanged.
func (c *council) spoil(name string, r *rand.Rand) {
	n := c.nodes[name]
	v := n.status.Version()
	switch r.IntN(5) {
	case 0:
		v.Generation = math.MaxUint64
	case 1:
		v.Epoch += r.Uint64N(1100)
	case 2:
		v = enginepb.Version{Epoch: math.MaxUint64, Generation: math.MaxUint64}
	case 3:
		v = enginepb.Version{Epoch: r.Uint64(), Generation: r.Uint64()}
	}
	a := proto.CloneOf(n.status.GetAssignment())
	if a != nil {
		a.ControlEpoch, a.Generation = v.Epoch, v.Generation
		a.Backend.Weights += "x"
	}
	state := n.status.GetState()
	n.status = idleStatus(name, v)
	n.status.State, n.status.Assignment = state, a
}

// lies are reports of what is not true.
var lies = []func(*fleetpb.NodeReport){
	nil,
	func(r *fleetpb.NodeReport) { r.Term = math.MaxInt64 },
	func(r *fleetpb.NodeReport) { r.Engine.Generation = math.MaxUint64 },
	func(r *fleetpb.NodeReport) { r.Engine.ControlEpoch = math.MaxUint64 },
	func(r *fleetpb.NodeReport) { r.Engine.ControlEpoch++ },
	func(r *fleetpb.NodeReport) {
		r.Refused = &fleetpb.Refusal{Generation: r.GetEngine().GetGeneration() + 1, ControlEpoch: r.GetEngine().GetControlEpoch(), Reason: "no"}
	},
}

// content is what runs, by replica: as many nodes of it as there are, and their weights.
func (c *council) content() string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
		a := c.nodes[name].status.GetAssignment()
		all = append(all, fmt.Sprintf("%s/%d %s", a.GetReplica(), a.GetStage(), a.GetBackend().GetWeights()))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// TestNothingNeedsARestart lets control planes and engines be restarted, clocks jump,
// assignments come late and twice, leaders change, engines be put into any version, and
// nodes lie. When that ends, everybody comes to what is desired by himself, and stays.
func TestNothingNeedsARestart(t *testing.T) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 10))
		c := newCouncil(t, 2, two, "node-a", "node-b", "node-c", "node-d", "node-e")
		c.r, c.late = r, r.IntN(6)
		c.elect(0)
		c.after(5 * time.Second)
		names := slices.Sorted(maps.Keys(c.nodes))
		for range 40 {
			name, i := names[r.IntN(len(names))], r.IntN(len(c.xds))
			switch r.IntN(8) {
			case 0, 1:
				c.spoil(name, r)
			case 2:
				c.nodes[name].status = idleStatus(name, enginepb.Version{}) // its engine is started anew
			case 3:
				c.nodes["node-e"].lie = lies[r.IntN(len(lies))] // a minority
			case 4:
				c.xds[i].skew = time.Duration(r.IntN(240)-120) * time.Hour
			case 5:
				c.start(i)
			case 6:
				c.elect(i)
			case 7:
				c.desire([]string{two, strings.Replace(two, "m.gguf", "n.gguf", 1)}[r.IntN(2)])
			}
			c.after(time.Duration(r.IntN(30)) * 100 * time.Millisecond)
		}
		c.late, c.nodes["node-e"].lie = 0, nil
		c.desire(two)
		c.elect(int(seed % 2))
		c.after(2 * time.Minute)
		want := "/0 , /0 , m-0/0 /m.gguf, m-0/1 /m.gguf, m-1/0 /m.gguf"
		if got := c.content(); got != want {
			t.Errorf("seed %d: the nodes run %s, want %s", seed, got, want)
		}
		first, started := c.served(0), fmt.Sprint(c.starts)
		c.wantServed(fmt.Sprint("seed ", seed), first)
		if n := strings.Count(first, "="); n != 2 {
			t.Errorf("seed %d: %q is served, want 2 replicas", seed, first)
		}
		c.after(time.Minute)
		if got := fmt.Sprint(c.starts); got != started || c.served(0) != first {
			t.Errorf("seed %d: it does not end: %s and %s, then %s and %s", seed, started, first, got, c.served(0))
		}
		if t.Failed() {
			return
		}
	}
}

// TestOneNodesTermEndsNoLeadership has a node claim that somebody leads after whom nobody can.
func TestOneNodesTermEndsNoLeadership(t *testing.T) {
	c := newCouncil(t, 2, two, "node-a", "node-b", "node-c")
	c.elect(0)
	c.after(5 * time.Second)
	c.nodes["node-c"].lie = func(r *fleetpb.NodeReport) { r.Term = math.MaxInt64 }
	for range 50 {
		c.beat()
		if got := c.leader(); !slices.Equal(got, []int{0}) {
			t.Fatalf("%v lead, want xds 0", got)
		}
	}
	c.elect(1)
	c.after(time.Minute)
	if got := c.leader(); !slices.Equal(got, []int{1}) || c.xds[1].snap.Term > 10 {
		t.Errorf("%v lead, xds 1 with term %d; want it with one more than before", got, c.xds[1].snap.Term)
	}
	c.wantServed("led on", twoServed)
}

// TestEngineAheadOfThePlanComesBack is one engine and one control plane, which continues.
func TestEngineAheadOfThePlanComesBack(t *testing.T) {
	for _, ahead := range []enginepb.Version{
		{Generation: math.MaxUint64}, {Epoch: 1, Generation: 1}, {Epoch: 1023, Generation: math.MaxUint64}, {Epoch: math.MaxUint64 / 2},
	} {
		w := up(t)
		n := w.nodes["node-c"]
		mine := n.status.Version()
		other := w.nodes["node-a"].status.Version()
		n.status = proto.CloneOf(n.status)
		n.status.ControlEpoch, n.status.Generation = mine.Epoch+ahead.Epoch, ahead.Generation
		n.status.Assignment.ControlEpoch, n.status.Assignment.Generation = n.status.ControlEpoch, n.status.Generation
		n.status.Assignment.Backend.Weights = "/another.gguf"
		bad := n.status.Version()
		w.run(5 * time.Second)
		w.want("m-0 READY 1000", "m-1 READY 1000")
		got := w.nodes["node-c"].status
		if bad.After(got.Version()) || got.GetAssignment().GetBackend().GetWeights() != "/m.gguf" {
			t.Errorf("%v: the engine has %v of %v", ahead, got.Version(), got.GetAssignment().GetBackend())
		}
		if now := w.nodes["node-a"].status.Version(); now != other {
			t.Errorf("%v: another node was assigned %v anew, was %v", ahead, now, other)
		}
	}
}
