package stream

import (
	"strings"
	"testing"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/internal/wire"
)

func TestChoose(t *testing.T) {
	tests := []struct {
		name     string
		edit     func(*fleet)
		priority string
		only     pick.Subset
		before   int // the endpoint that made the response which is continued; below 0: none
		want     []int
		err      string
		says     string
	}{
		{name: "the fastest first, as many as the policy says", before: -1, want: []int{0, 1, 2, 3}},
		{name: "critical", priority: wire.Critical, before: -1, want: []int{0, 1, 2, 3, 4}},
		{name: "sheddable", priority: wire.Sheddable, before: -1, want: []int{0, 1}},
		{name: "who made the response comes first", before: 3, want: []int{3, 0, 1, 2}},
		{name: "only what the gateway allows", only: pick.Subset{"127.0.0.1:20002"}, before: -1, want: []int{2}},
		{name: "it allows nobody that is there", only: pick.Subset{"127.0.0.1:1"}, before: -1, err: "no_replica_in_subset"},
		{name: "nobody is ready", edit: func(f *fleet) {
			for _, e := range f.model.Endpoints {
				e.State, e.Reason = pick.NotReady, "node-a: broken: no such file"
			}
		}, before: -1, err: "no_replica_ready", says: "is ready (node-a: broken: no such file): try"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(6)
			if tt.edit != nil {
				tt.edit(f)
			}
			in := f.inputOf(hello, func(h *RequestHead) { h.Only = tt.only })
			u, n := understood{model: f.model, priority: tt.priority}, counted{prompt: 100, output: 10}
			if tt.before >= 0 {
				n.before = f.model.Endpoints[tt.before].KV.Match(10)
			}
			var (
				found prefix.Found
				c     pick.Choice
			)
			q, err := choose(f.picker, in, &u, &n, mostCandidates(in.table.Policy, u.priority), &found, &c)
			if err != nil || tt.err != "" {
				if err == nil || err.Code != tt.err || !strings.Contains(err.Message, tt.says) {
					t.Fatalf("error = %v, want %q", err, tt.err)
				}
				return
			}
			if q.Most != len(tt.want) && tt.only == nil {
				t.Errorf("asked for %d endpoints", q.Most)
			}
			for i, w := range tt.want {
				if i >= len(c.List) || c.List[i].Endpoint != f.model.Endpoints[w] {
					t.Fatalf("List[%d] of %d is not endpoint %d", i, len(c.List), w)
				}
			}
			if f.leaks() != 0 {
				t.Error("to choose reserves something")
			}
		})
	}
}
