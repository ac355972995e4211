package fleet

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/xds/fleetpb"
)

// council is several xds with the nodes that report to all of them, and a model of the
// lease: who has it, and how often it has changed hands.
type council struct {
	t     *testing.T
	now   time.Time
	state *desired.State
	xds   []*member
	nodes map[string]*subject

	holder int // index of the xds that has the lease; -1: nobody yet
	term   uint64
	away   bool // whether the API server is
	stream uint64
	// starts counts the processes that were started, by replica.
	starts map[string]int
	// late is how many of 8 assignments reach their engine late; nobody's do where it is 0.
	late int
	r    *rand.Rand
}

// member is one xds.
type member struct {
	*Fleet
	up   bool
	snap *Snapshot
	// skew is by how much its clock is wrong; paused is whether it does not run.
	skew   time.Duration
	paused bool
}

// subject is one node, agent and engine: it obeys the highest term that somebody has named
// within 30 s.
type subject struct {
	status  *enginepb.Status
	term    uint64
	named   map[uint64]time.Time   // when each term was last named
	want    *enginepb.Assignment   // nil: nothing
	onTheir []*enginepb.Assignment // way to the engine
	lie     func(*fleetpb.NodeReport)
	streams map[int]uint64 // by index of the xds
	seq     uint64
}

// fence takes in a term that is named now; 0: none is.
func (n *subject) fence(now time.Time, term uint64) {
	n.named[term] = now
	n.term = 0
	for t, last := range n.named {
		if now.Sub(last) < 30*time.Second {
			n.term = max(n.term, t)
		}
	}
}

func newCouncil(t *testing.T, xds int, text string, nodes ...string) *council {
	c := &council{t: t, now: epoch, nodes: map[string]*subject{}, holder: -1, starts: map[string]int{}}
	for _, name := range nodes {
		c.nodes[name] = &subject{status: idleStatus(name, enginepb.Version{}), streams: map[int]uint64{}, named: map[uint64]time.Time{}}
	}
	for range xds {
		c.xds = append(c.xds, &member{})
	}
	c.desire(text)
	for i := range xds {
		c.start(i)
	}
	return c
}

func idleStatus(name string, v enginepb.Version) *enginepb.Status {
	return &enginepb.Status{
		Node: name, State: enginepb.State_IDLE, Generation: v.Generation, ControlEpoch: v.Epoch, HttpAddress: address(name, 80),
		GrpcAddress: address(name, 81), ShardAddress: address(name, 82),
	}
}

func (c *council) desire(text string) {
	c.t.Helper()
	f, err := config.Parse("mesh.yaml", []byte(text))
	if err != nil {
		c.t.Fatal(err)
	}
	c.state = desired.Next(c.state, f, nil)
	for i := range c.xds {
		c.publish(i)
	}
}

// publish gives an xds what is desired, as its clients know it.
func (c *council) publish(i int) {
	if x := c.xds[i]; x.up {
		x.Step(c.clock(i), Desired{desired.Published{State: c.state}})
		x.Step(c.clock(i), Pushed{c.state.Version})
	}
}

func (c *council) clock(i int) time.Time { return c.now.Add(c.xds[i].skew) }

// start starts an xds that knows nothing.
func (c *council) start(i int) {
	c.xds[i] = &member{Fleet: Follower(2500*time.Millisecond, c.clock(i)), up: true, skew: c.xds[i].skew}
	c.publish(i)
	c.xds[i].Step(c.clock(i), ClusterObserved{})
	for _, n := range c.nodes {
		c.stream++
		n.streams[i] = c.stream
	}
}

// elect gives the lease to an xds.
func (c *council) elect(i int) {
	if c.holder != i {
		c.term++
	}
	c.holder = i
	c.renew()
}

// renew lets all xds that run see the lease.
func (c *council) renew() {
	if c.away || c.holder < 0 {
		return
	}
	for i, x := range c.xds {
		switch {
		case !x.up || x.paused:
		case i == c.holder:
			x.Step(c.clock(i), Leads{c.term})
		default:
			x.Step(c.clock(i), Leads{})
		}
	}
}

// beat lets 100 ms pass, in which every node reports and every xds decides.
func (c *council) beat() {
	c.now = c.now.Add(100 * time.Millisecond)
	c.renew()
	for name, n := range c.nodes {
		for i, x := range c.xds {
			if !x.up || x.paused {
				continue
			}
			n.seq++
			r := &fleetpb.NodeReport{
				Node: name, Seq: n.seq, Sent: timestamppb.New(c.now), Engine: n.status, Term: n.term,
				Telemetry: &fleetpb.Telemetry{Source: fleetpb.Telemetry_HOST, Cpus: 1},
			}
			if n.lie != nil {
				r = proto.CloneOf(r)
				n.lie(r)
			}
			x.Step(c.clock(i), Reported{Stream: n.streams[i], Report: r})
		}
	}
	for i, x := range c.xds {
		if !x.up || x.paused {
			continue
		}
		x.snap = x.Decide(c.clock(i))
		answer(x.Fleet, x.snap, c.clock(i))
		if x.snap.Term == 0 && len(x.snap.Directives) > 0 {
			c.t.Fatalf("xds %d directs %v and does not lead", i, x.snap.Directives)
		}
		for name, n := range c.nodes {
			if n.fence(c.now, x.snap.Term); x.snap.Term == n.term && x.snap.Directives[name] != nil {
				n.want = x.snap.Directives[name]
			}
		}
	}
	for name, n := range c.nodes {
		c.assert(name, n)
	}
}

// assert lets an agent give its engine what is wanted, as agents do: until it is there, or
// refused.
func (c *council) assert(name string, n *subject) {
	if n.want != nil && n.status.Version() != n.want.Version() {
		n.onTheir = append(n.onTheir, n.want)
	}
	var later []*enginepb.Assignment
	for _, a := range n.onTheir {
		if c.late > 0 && c.r.IntN(8) < c.late {
			later = append(later, a)
		} else if !c.obey(name, n, a) && n.want != nil && a.Version() == n.want.Version() {
			n.want = nil
		}
	}
	n.onTheir = later
}

// obey lets an engine take an assignment as engines do, and returns whether it does.
func (c *council) obey(name string, n *subject, a *enginepb.Assignment) bool {
	switch had := n.status.Version(); {
	case had.After(a.Version()):
		return false // it refuses what is older
	case had == a.Version():
		return proto.Equal(a, n.status.GetAssignment()) || a.Releases() && n.status.GetAssignment() == nil
	case a.Releases():
		n.status = idleStatus(name, a.Version())
		return true
	case n.status.GetAssignment() == nil || !enginepb.SameProcess(n.status.GetAssignment(), a):
		c.starts[a.GetReplica()]++
	}
	n.status = idleStatus(name, a.Version())
	n.status.State, n.status.Assignment = enginepb.State_READY, a
	return true
}

func (c *council) after(d time.Duration) {
	for end := c.now.Add(d); c.now.Before(end); {
		c.beat()
	}
}

// served returns what the xds pushes: who takes requests, by name of the replica.
func (c *council) served(i int) string {
	var all []string
	for _, e := range c.xds[i].snap.Endpoints {
		if e.Membership == Healthy {
			all = append(all, e.Replica+"="+strings.Join(e.Nodes, ","))
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func (c *council) wantServed(when, want string) {
	c.t.Helper()
	for i, x := range c.xds {
		if !x.up || x.paused {
			continue
		}
		if got := c.served(i); got != want || !x.snap.Settled {
			c.t.Errorf("%s: xds %d (term %d, settled %t) pushes %q, want %q", when, i, x.snap.Term, x.snap.Settled, got, want)
		}
	}
}

// leader returns who sends directives that are obeyed.
func (c *council) leader() (leaders []int) {
	for i, x := range c.xds {
		if x.up && !x.paused && x.snap.Term > 0 {
			leaders = append(leaders, i)
		}
	}
	return leaders
}

const twoServed = "m-0=node-a,node-b m-1=node-c"

func TestAllXDSPushTheSameAndOneLeads(t *testing.T) {
	c := newCouncil(t, 2, two, "node-a", "node-b", "node-c", "node-d")
	c.after(5 * time.Second)
	if got := c.leader(); len(got) != 0 {
		t.Errorf("%v lead without the lease", got)
	}
	c.elect(0)
	c.after(5 * time.Second)
	c.wantServed("first leader", twoServed)
	started := fmt.Sprint(c.starts)

	c.elect(1)
	c.after(time.Minute)
	c.wantServed("another leader", twoServed)

	c.xds[1].up = false // killed
	c.after(time.Minute)
	c.wantServed("nobody leads", twoServed)
	c.start(1)
	c.elect(0)
	c.after(time.Minute)
	c.wantServed("restarted", twoServed)

	c.away = true
	c.after(10 * time.Minute)
	c.wantServed("the API server is away", twoServed)
	if got := c.leader(); !slices.Equal(got, []int{0}) {
		t.Errorf("%v lead, want the last leader", got)
	}
	if got := fmt.Sprint(c.starts); got != started {
		t.Errorf("processes were started again: %s, before %s", got, started)
	}
	delete(c.nodes, "node-c") // the last leader lays out anew what is lost
	c.after(2 * time.Minute)
	c.wantServed("a node is lost meanwhile", "m-0=node-a,node-b m-1=node-d")
}

func TestReplacedLeaderStops(t *testing.T) {
	c := newCouncil(t, 2, two, "node-a", "node-b", "node-c")
	c.elect(0)
	c.after(5 * time.Second)
	c.xds[0].paused = true
	c.after(20 * time.Second)
	c.elect(1)
	c.after(5 * time.Second)
	c.away = true // so that nobody but the nodes can say so
	c.xds[0].paused = false
	c.desire(strings.Replace(two, "m.gguf", "n.gguf", 1))
	c.after(300 * time.Millisecond)
	if got := c.leader(); !slices.Equal(got, []int{1}) {
		t.Errorf("%v lead, want xds 1 alone", got)
	}
	c.after(time.Minute)
	c.wantServed("changed by the successor", twoServed)
}

func TestLeaseThatWasMadeAnewCountsOn(t *testing.T) {
	c := newCouncil(t, 2, two, "node-a", "node-b", "node-c")
	c.term = 7
	c.elect(0)
	c.after(5 * time.Second)
	c.term = 0 // somebody has deleted the lease
	c.elect(1)
	c.after(time.Minute)
	if got := c.leader(); !slices.Equal(got, []int{1}) || c.xds[1].snap.Term != 9 {
		t.Errorf("%v lead, xds 1 with term %d, want it alone with 9", got, c.xds[1].snap.Term)
	}
}

// TestLeaderChangesAtRandom lets leaders change, die, sleep and return with wrong clocks
// while what is desired changes and the API server comes and goes.
func TestLeaderChangesAtRandom(t *testing.T) {
	texts := []string{
		two,
		strings.Replace(two, "m.gguf", "n.gguf", 1),
		head + "kind: Model\nmetadata: {name: m}\nspec: {weights: /m.gguf, replicas: 3}\n",
		two + head + "kind: Model\nmetadata: {name: o}\nspec: {weights: /o.gguf}\n",
	}
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 2))
		c := newCouncil(t, 3, texts[0], "node-a", "node-b", "node-c", "node-d", "node-e")
		for i := range c.xds {
			c.xds[i].up = false
			c.xds[i].skew = time.Duration(r.IntN(120)-60) * time.Second
			c.start(i)
		}
		for range 40 {
			i := r.IntN(len(c.xds))
			switch r.IntN(8) {
			case 0, 1:
				if x := c.xds[i]; x.up && !x.paused && !c.away {
					c.elect(i)
				}
			case 2:
				c.xds[i].up = false
			case 3:
				if !c.xds[i].up {
					c.start(i)
				}
			case 4:
				c.xds[i].paused = !c.xds[i].paused
			case 5:
				c.away = !c.away
			case 6:
				if !c.away {
					c.desire(texts[r.IntN(len(texts))])
				}
			}
			c.after(time.Duration(r.IntN(40)) * 100 * time.Millisecond)
		}
		c.away = false
		for i, x := range c.xds {
			if x.paused = false; !x.up {
				c.start(i)
			}
		}
		c.desire(texts[3])
		c.elect(int(seed % 3))
		c.after(3 * time.Minute)
		if got := c.leader(); len(got) != 1 || got[0] != c.holder {
			t.Errorf("seed %d: %v lead, want %d", seed, got, c.holder)
		}
		started := fmt.Sprint(c.starts)
		first := c.served(0)
		if n := strings.Count(first, "="); n != 3 {
			t.Errorf("seed %d: %q is served, want 3 replicas", seed, first)
		}
		c.wantServed(fmt.Sprint("seed ", seed), first)
		c.after(time.Minute)
		c.wantServed(fmt.Sprint("seed ", seed, ", later"), first)
		if got := fmt.Sprint(c.starts); got != started {
			t.Errorf("seed %d: processes are started without end: %s, then %s", seed, started, got)
		}
		if t.Failed() {
			return
		}
	}
}
