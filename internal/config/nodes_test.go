package config

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestBadNodes(t *testing.T) {
	const name = "testdata/badnodes/all.yaml"
	_, err := LoadNodes(name)
	if err == nil {
		t.Fatal("took a bad file")
	}
	if diff := cmp.Diff(wanted(t, name), err.Error()); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
	for _, text := range []string{"", "nodes: []", "---\n---\n"} {
		if _, err := ParseNodes("n.yaml", []byte(text)); err == nil {
			t.Errorf("%q: taken", text)
		}
	}
}

func TestGoodNodes(t *testing.T) {
	n, err := ParseNodes("n.yaml", []byte(`
measuredWith: tiny
nodes:
  - {name: a, memory: 24Gi, devices: 2, decode: 48.5, prefill: 900, domain: rack-1, link: {bandwidth: 50G, latency: 10us}}
  - {name: b, memory: 8Gi}
link: {bandwidth: 1G}
links: [{between: [a, b], latency: 200us}]
`))
	want := Nodes{
		MeasuredWith: "tiny",
		Nodes: []PlanNode{
			{Name: "a", Memory: 24 << 30, Devices: 2, Decode: 48.5, Prefill: 900, Domain: "rack-1", Link: PlanLink{Bandwidth: 50e9, Latency: Duration{10 * time.Microsecond}}},
			{Name: "b", Memory: 8 << 30},
		},
		Link:  PlanLink{Bandwidth: 1e9},
		Links: []PlanLink{{Between: []string{"a", "b"}, Latency: Duration{200 * time.Microsecond}}},
	}
	if diff := cmp.Diff(want, n); diff != "" || err != nil {
		t.Errorf("nodes (-want +got): %v\n%s", err, diff)
	}
}

func FuzzNodes(f *testing.F) {
	f.Add([]byte("nodes:\n- {name: a, memory: 1Gi, decode: 3}\nlinks: []\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		n, err := ParseNodes("n.yaml", text)
		if err == nil && (len(n.Nodes) == 0 || n.Nodes[0].Memory <= 0) {
			t.Errorf("no nodes, and no error: %+v", n)
		}
	})
}
