package stream

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/extproc/internal/pick"
)

func within(hosts ...string) func(*RequestHead) {
	return func(h *RequestHead) { h.Only = append(pick.Subset{}, hosts...) }
}

func TestSubsetIsKept(t *testing.T) {
	tests := []struct {
		name string
		only func(*RequestHead)
		want []string // all that are named, in order; none: 503
	}{
		{"two", within("127.0.0.1:20001", "127.0.0.1:20002"), []string{"127.0.0.1:20001", "127.0.0.1:20002"}},
		{"one that is not known", within("10.0.0.1:1", "127.0.0.1:20002"), []string{"127.0.0.1:20002"}},
		{"none that is known", within("10.0.0.1:1"), nil},
		{"any port elsewhere", within("10.0.0.1"), nil},
		{"none at all", within(), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, n := range []int{3, 200} { // by walking, and where there is an index
				f := newFleet(n)
				out := run(f.core.Begin(), post(tt.only), bodyOf(hello))
				last := out[len(out)-1]
				if len(tt.want) == 0 {
					if last.Error == nil || last.Error.Status != 503 || last.Error.Code != "no_replica_in_subset" {
						t.Errorf("%d endpoints: reply %+v, want a 503", n, last)
					}
					continue
				}
				if got, want := string(last.Decision.appendHosts(nil)), strings.Join(tt.want, ","); got != want {
					t.Errorf("of %d endpoints %s are named, want %s", n, got, want)
				}
			}
		})
	}
}

func TestSubsetOfAnyPort(t *testing.T) {
	f := newFleet(3)
	out := run(f.core.Begin(), post(within("127.0.0.1")), bodyOf(hello))
	if d := out[1].Decision; d == nil || len(d.Choice.List) != 3 {
		t.Errorf("reply %+v, want all three hosts of the ip", out[1])
	}
}

func TestSubsetBeforeTheFleetIsKnown(t *testing.T) {
	reg := prometheus.NewRegistry()
	core := NewCore(pick.New(reg), reg)
	for _, m := range []Mode{Buffered, Duplex, Streamed, Unseen} {
		out := run(core.Begin(), post(by(m), within("127.0.0.1:20001")), bodyOf(hello))
		if last := out[len(out)-1]; last.Error == nil || last.Error.Status != 503 {
			t.Errorf("mode %d: reply %+v, want a 503: nobody may be named", m, last)
		}
	}
}

func TestSubsetOfAnUnknownPath(t *testing.T) {
	f := newFleet(3, func(t *pick.Table) { t.Default = nil })
	out := run(f.core.Begin(), post(within("127.0.0.1:20001"), func(h *RequestHead) { h.Path = "/v1/x" }), bodyOf(hello))
	if last := out[len(out)-1]; last.Decision == nil && last.Error == nil {
		t.Errorf("reply %+v lets Envoy choose freely", last)
	}
}
