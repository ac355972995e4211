package layout

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
)

// moving is a fleet of which nodes do what they are asked when the test says so.
type moving struct {
	t        *testing.T
	nodes    map[string]*Node
	order    []string
	specs    []Spec
	previous Plan
	leaves   map[string]string // why nodes leave, by name
	amnesia  bool              // whether each plan is made by an xds that was just started
	at       int               // seconds that have passed
}

func newMoving(t *testing.T, specs []Spec, names ...string) *moving {
	m := &moving{t: t, nodes: map[string]*Node{}, leaves: map[string]string{}, order: names, specs: specs}
	for _, n := range names {
		m.nodes[n] = &Node{Name: n, Usable: true, Engine: n + ":1", Shard: n + ":2"}
	}
	return m
}

func (m *moving) input() Input {
	m.at++
	in := Input{Specs: m.specs, Previous: m.previous, Published: true, Now: day.Add(time.Duration(m.at) * time.Second)}
	for _, n := range m.order {
		node := *m.nodes[n]
		node.Answers = node.Ready
		if why := m.leaves[n]; why != "" {
			node.Cordoned, node.Usable, node.Ready = why, false, false
		}
		in.Nodes = append(in.Nodes, node)
	}
	if m.amnesia {
		in.Previous = Plan{}
	}
	return in
}

// plan makes the next plan, and returns where replicas are: * takes requests, - is left
// behind; then what is to end.
func (m *moving) plan() string {
	in := m.input()
	p := Make(in)
	m.previous = p
	return m.show(p)
}

func (m *moving) show(p Plan) string {
	var all []string
	for _, r := range p.Replicas {
		mark := "*"
		for i, s := range r.Stages {
			n := m.nodes[s.GetNode()]
			if !n.Ready || n.Running.GetReplica() != r.Spec.Replica || !enginepb.SameProcess(n.Running, r.Assignment(i)) {
				mark = ""
			}
		}
		all = append(all, fmt.Sprintf("%s=%s%s", r.Name(), strings.Join(r.Nodes(), ","), mark))
	}
	for _, t := range p.Retiring {
		all = append(all, "-"+t.Had.GetReplica()+"="+strings.Join(t.Nodes, ","))
	}
	return strings.Join(all, " ")
}

// obey lets nodes carry out the last plan; ready is whether what they start is at once.
func (m *moving) obey(ready bool) {
	for _, t := range m.previous.Retiring {
		for _, name := range t.Nodes {
			n := m.nodes[name]
			n.Running, n.Ready, n.Version = nil, false, t.Version
		}
	}
	for _, r := range m.previous.Replicas {
		for i, s := range r.Stages {
			n := m.nodes[s.GetNode()]
			if r.Version.After(n.Running.Version()) {
				n.Running, n.Version, n.Ready = r.Assignment(i), r.Version, false
			}
			n.Ready = n.Ready || ready
		}
	}
}

func TestReplicasMoveAwayFromACordonedNodeBeforeTheyLeave(t *testing.T) {
	for _, amnesia := range []bool{false, true} {
		t.Run(fmt.Sprintf("a new leader each time: %t", amnesia), func(t *testing.T) {
			m := newMoving(t, []Spec{spec("m-0", 1)}, "a", "b", "c")
			m.plan()
			m.obey(true)
			m.amnesia = amnesia
			want := func(when, want string) {
				t.Helper()
				if got := m.plan(); got != want {
					t.Errorf("%s: %q, want %q", when, got, want)
				}
			}
			want("at rest", "m-0=a*")
			m.nodes["a"].Cordoned, m.nodes["b"].Cordoned = "cordoned", "cordoned"
			want("cordoned", "m-0=c m-0@a=a*")
			m.obey(false)
			want("starting elsewhere", "m-0=c m-0@a=a*")
			if got := m.show(Observe(m.input())); got != "m-0=a*" {
				t.Errorf("an xds that follows serves %q", got)
			}
			m.obey(true)
			want("it takes requests there", "m-0=c* -m-0=a")
			m.obey(true)
			want("it has moved", "m-0=c*")
			m.nodes["a"].Cordoned = ""
			want("uncordoned", "m-0=c*")
		})
	}
}

func TestReplicaThatCannotMoveStays(t *testing.T) {
	m := newMoving(t, []Spec{spec("m-0", 1), spec("m-1", 1, "b")}, "a", "b")
	m.plan()
	m.obey(true)
	m.nodes["a"].Cordoned, m.nodes["b"].Cordoned = "cordoned", "drained"
	if got := m.plan(); got != "m-0=a* m-1=b*" {
		t.Errorf("plan %q, want all as it was", got)
	}
	if got, want := m.previous.Waits["m-0"], "must move from a (cordoned); it needs 1 free node, and there is none"; got != want {
		t.Errorf("m-0 waits: %q, want %q", got, want)
	}
	if got, want := m.previous.Waits["m-1"], "can't move from b (drained), which its spec.layout names: name another node there, or none"; got != want {
		t.Errorf("m-1 waits: %q, want %q", got, want)
	}
}

// TestReplicaThatLeavesIsKept until it takes requests elsewhere, whatever is desired
// meanwhile: it is the last resort of its model.
func TestReplicaThatLeavesIsKept(t *testing.T) {
	edited := func(s Spec) Spec {
		s.Backend = proto.CloneOf(s.Backend)
		s.Backend.Slots = 7
		return s
	}
	m0, m1 := spec("m-0", 1), spec("m-1", 1)
	tests := []struct {
		name  string
		specs []Spec
		nodes []string
		then  []Spec // desired once node a leaves
		want  []string
	}{
		{"it moves", []Spec{m0}, []string{"a", "b"}, nil, []string{"m-0=b m-0@a=a", "m-0=b* -m-0=a", "m-0=b*"}},
		{"it can't move", []Spec{m0, m1}, []string{"a", "b"}, nil, []string{"m-0=a m-1=b*"}},
		{"it is edited, and can't move", []Spec{m0, m1}, []string{"a", "b"}, []Spec{edited(m0), m1}, []string{"m-0=a m-1=b*"}},
		{"all are edited, and none can move", []Spec{m0, m1}, []string{"a", "b"}, []Spec{edited(m0), edited(m1)}, []string{"m-0=a m-1=b", "m-0=a m-1=b*"}},
		{"its layout names another node", []Spec{spec("m-0", 1, "a")}, []string{"a", "b"}, []Spec{spec("m-0", 1, "b")}, []string{"m-0=b m-0@a=a", "m-0=b* -m-0=a", "m-0=b*"}},
		{"another is not desired any more", []Spec{m0, m1}, []string{"a", "b"}, []Spec{m0}, []string{"m-0=a -m-1=b", "m-0=b m-0@a=a", "m-0=b* -m-0=a"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMoving(t, tt.specs, tt.nodes...)
			m.plan()
			m.obey(true)
			if m.leaves["a"] = "drained"; tt.then != nil {
				m.specs = tt.then
			}
			for i, want := range tt.want {
				m.plan()
				got := m.previous
				if s := m.kept(got); s != want {
					t.Errorf("plan %d: %q, want %q; waits %v", i, s, want, got.Waits)
				}
				m.obey(true)
			}
		})
	}
}

// kept shows a plan in which nothing that leaves takes requests.
func (m *moving) kept(p Plan) string {
	all := strings.Fields(m.show(p))
	for i, s := range all {
		if strings.HasSuffix(s, "=a*") {
			all[i] = strings.TrimSuffix(s, "*")
		}
	}
	return strings.Join(all, " ")
}

// TestObserveShowsWhatRuns: a plan that is not followed yet changes nothing of it.
func TestObserveShowsWhatRuns(t *testing.T) {
	m := newMoving(t, []Spec{spec("m-0", 2), spec("m-1", 1)}, "a", "b", "c", "d")
	observe := func() string { return m.show(Observe(m.input())) }
	if got := Observe(m.input()); len(got.Replicas) != 0 || got.Complete() || len(got.Waits) != 2 {
		t.Errorf("nothing runs: %+v", got)
	}
	m.plan()
	if got := observe(); got != "" {
		t.Errorf("before it runs: %q", got)
	}
	m.obey(true)
	if got := observe(); got != "m-0=a,b* m-1=c*" || !Observe(m.input()).Complete() {
		t.Errorf("it runs: %q", got)
	}
	m.specs = []Spec{spec("m-0", 1), spec("n-0", 1)} // another layout, another model
	m.plan()
	if got := observe(); got != "m-0=a,b* m-1=c*" {
		t.Errorf("something else is desired: %q", got)
	}
	m.nodes["c"].Ready = false
	if got := observe(); got != "m-0=a,b*" {
		t.Errorf("what is not desired has ended: %q", got)
	}
	m.nodes["b"].Lost = true
	if got := observe(); got != "" {
		t.Errorf("a part of it is lost: %q", got)
	}
}
