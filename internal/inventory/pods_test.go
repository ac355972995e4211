package inventory

import (
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/internal/config"
)

// pod is a Pod that is an endpoint of every pool of its namespace that selects app=m.
func pod(name, ip string, change func(*Pod)) Pod {
	p := Pod{
		Namespace: "ns", Name: name, UID: "uid-" + name, IP: ip, Node: "n1", Zone: "z1", Ready: true,
		Labels: map[string]string{"app": "m", "other": "x"}, Created: time.Unix(100, 0),
	}
	if change != nil {
		change(&p)
	}
	return p
}

func TestOfPods(t *testing.T) {
	pool := Pool{Namespace: "ns", Name: "p", Selector: map[string]string{"app": "m"}, Ports: []int{8000}}
	ranks := pool
	ranks.Ports = []int{8000, 8001}
	entry := func(address, name string) Entry {
		return Entry{Endpoint: config.Endpoint{Address: address, Node: "n1", Zone: "z1"}, UID: "uid-" + name, Source: "Pod/" + name}
	}
	with := func(e Entry, change func(*Entry)) Entry { change(&e); return e }
	tests := []struct {
		name string
		pool Pool
		pods []Pod
		want []Entry
	}{
		{"none at addresses that are no host's", pool, []Pod{
			pod("a", "169.254.0.9", nil), pod("b", "0.0.0.0", nil), pod("c", "224.0.0.1", nil), pod("d", "::ffff:10.0.0.1", nil), pod("e", "fe80::1", nil), pod("f", "10.0.0.1", nil),
		}, []Entry{entry("10.0.0.1:8000", "f")}},
		{"a Ready one, whatever order they come in", pool, []Pod{pod("b", "10.0.0.2", nil), pod("a", "10.0.0.1", nil)}, []Entry{entry("10.0.0.1:8000", "a"), entry("10.0.0.2:8000", "b")}},
		{"not one that is not Ready", pool, []Pod{pod("a", "10.0.0.1", func(p *Pod) { p.Ready = false })}, []Entry{}},
		{"not one that terminates, Ready or not", pool, []Pod{pod("a", "10.0.0.1", func(p *Pod) { p.Terminating = true })}, []Entry{}},
		{"not one without an address", pool, []Pod{pod("a", "", nil)}, []Entry{}},
		{"not one of another namespace", pool, []Pod{pod("a", "10.0.0.1", func(p *Pod) { p.Namespace = "other" })}, []Entry{}},
		{"not one that lacks a label", pool, []Pod{pod("a", "10.0.0.1", func(p *Pod) { p.Labels = nil })}, []Entry{}},
		{"nobody for a pool that selects nothing", Pool{Namespace: "ns", Ports: []int{80}}, []Pod{pod("a", "10.0.0.1", nil)}, []Entry{}},
		{"a pool that was deleted has nobody", Pool{}, []Pod{pod("a", "10.0.0.1", nil)}, []Entry{}},
		{"every port is an endpoint", ranks, []Pod{pod("a", "10.0.0.1", nil)}, []Entry{entry("10.0.0.1:8000", "a"), entry("10.0.0.1:8001", "a")}},
		{"only ports that the Pod says are active", ranks, []Pod{pod("a", "10.0.0.1", func(p *Pod) { p.Active = []int{8001, 9000} })}, []Entry{entry("10.0.0.1:8001", "a")}},
		{"no port is active", ranks, []Pod{pod("a", "10.0.0.1", func(p *Pod) { p.Active = []int{} })}, []Entry{}},
		{
			"the younger one of two with an address", pool,
			[]Pod{pod("old", "10.0.0.1", nil), pod("new", "10.0.0.1", func(p *Pod) { p.Created = time.Unix(200, 0) })},
			[]Entry{entry("10.0.0.1:8000", "new")},
		},
		{
			"events come from the next port for the next rank", ranks, []Pod{pod("a", "10.0.0.1", func(p *Pod) { p.Events = Announced{Port: 5557, Topic: "kv"} })},
			[]Entry{
				with(entry("10.0.0.1:8000", "a"), func(e *Entry) { e.KVEvents = config.KVEvents{Connect: "10.0.0.1:5557", Topic: "kv"} }),
				with(entry("10.0.0.1:8001", "a"), func(e *Entry) { e.KVEvents = config.KVEvents{Connect: "10.0.0.1:5558", Topic: "kv"} }),
			},
		},
		{
			"IPv6 addresses, and a node that is not known", pool, []Pod{pod("a", "fd00::1", func(p *Pod) { p.Node = "" })},
			[]Entry{with(entry("[fd00::1]:8000", "a"), func(e *Entry) { e.Node = "fd00::1" })},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, OfPods(&tt.pool, tt.pods)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestOfPodsInAnyOrder has the same endpoints in whatever order Pods come: pickers agree.
func TestOfPodsInAnyOrder(t *testing.T) {
	pool := Pool{Namespace: "ns", Name: "p", Selector: map[string]string{"app": "m"}, Ports: []int{8000, 8001}}
	var pods []Pod
	for i := range 40 {
		pods = append(pods, pod(strconv.Itoa(i), "10.0.0."+strconv.Itoa(i%25), func(p *Pod) { p.Created = time.Unix(int64(i/30), 0) }))
	}
	want := OfPods(&pool, pods)
	for range 20 {
		rand.Shuffle(len(pods), func(i, j int) { pods[i], pods[j] = pods[j], pods[i] })
		if diff := cmp.Diff(want, OfPods(&pool, pods)); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	}
}

func TestEqual(t *testing.T) {
	a := Entry{Endpoint: config.Endpoint{Address: "a", Models: []string{"m"}}, UID: "1"}
	b := a
	b.Models = []string{"m"}
	if !a.Equal(b) {
		t.Error("equal entries differ")
	}
	for _, change := range []func(*Entry){
		func(e *Entry) { e.Models = []string{"n"} }, func(e *Entry) { e.UID = "2" }, func(e *Entry) { e.Slots = 1 },
		func(e *Entry) { e.Source = "Pod/x" }, func(e *Entry) { e.KVEvents.Topic = "t" },
	} {
		b = a
		if change(&b); a.Equal(b) {
			t.Errorf("%+v and %+v are equal", a, b)
		}
	}
}
