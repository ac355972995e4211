package program

import (
	"context"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/internal/obs"
)

// follow has a memory know its parts.
func follow(t *testing.T, m *Memory, parts ...Part) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // it looks once
	if err := m.Follow(ctx, func() []Part { return parts }); err != nil {
		t.Fatal(err)
	}
}

// limited keeps Go's limit for the tests after it.
func limited(t *testing.T, limit int64) {
	t.Helper()
	was := debug.SetMemoryLimit(limit)
	t.Cleanup(func() { debug.SetMemoryLimit(was) })
}

func codes(all []obs.Condition) string {
	var list []string
	for _, c := range all {
		list = append(list, c.Code)
	}
	return strings.Join(list, " ")
}

const mib = 1 << 20

// TestMemoryFollowsTheBounds: nobody gives a limit, and Go's is that of the bounds, with
// room for garbage; it follows them when they change.
func TestMemoryFollowsTheBounds(t *testing.T) {
	limited(t, math.MaxInt64)
	m := newMemory(slog.New(slog.DiscardHandler), true)
	if got := m.Share(0.25, 7); got != 7 {
		t.Errorf("a share of what nobody gives: %d", got)
	}
	for _, bodies := range []int64{700 * mib, 1500 * mib} {
		follow(t, m, Part{Name: "program", Most: 100 * mib}, Part{Name: "bodies", Most: bodies, Used: func() int64 { return bodies / 2 }})
		if got, want := debug.SetMemoryLimit(-1), (bodies+100*mib)/8*9; got != want {
			t.Errorf("Go's limit is %d, want %d", got, want)
		}
		if got := m.Conditions(); len(got) > 0 {
			t.Errorf("got %+v", got)
		}
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(m)
	w := httptest.NewRecorder()
	obs.Probes(reg, nil, obs.NewWatch(slog.New(slog.DiscardHandler))).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		`millrace_memory_bound_bytes{part="bodies"} 1.572864e+09`, `millrace_memory_used_bytes{part="bodies"} 7.86432e+08`, "millrace_memory_limit_bytes 1.8874368e+09",
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %s in %s", want, w.Body)
		}
	}
}

// TestMemoryIsTheOperators: a limit of his own stays, and a program that may take more says so.
func TestMemoryIsTheOperators(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "400MiB") // as Go has read it at the start
	limited(t, 400*mib)
	m := newMemory(slog.New(slog.DiscardHandler), true)
	if got := m.Share(0.25, 7); got != 100*mib {
		t.Errorf("a quarter of 400 MiB is %d", got)
	}
	full := int64(0)
	blocks := Part{Name: "blocks", Most: 100 * mib, Used: func() int64 { return full }}
	follow(t, m, blocks)
	if got := debug.SetMemoryLimit(-1); got != 400*mib {
		t.Errorf("Go's limit is %d", got)
	}
	if got := m.Conditions(); len(got) > 0 {
		t.Errorf("got %+v", got)
	}
	full = 99 * mib
	if got := codes(m.Conditions()); got != "memory-full" {
		t.Errorf("conditions %q", got)
	}
	follow(t, m, blocks, Part{Name: "bodies", Most: 400 * mib})
	got := m.Conditions()
	if codes(got) != "memory-short memory-full" {
		t.Fatalf("got %+v", got)
	}
	if text, want := got[0].Text, "GOMEMLIMIT allows 400 MiB of memory, and tables, queues and buffers may take 500 MiB when all are full: blocks 100 MiB, bodies 400 MiB"; text != want {
		t.Errorf("got %q, want %q", text, want)
	}
	if want := "give the program 625 MiB"; !strings.HasPrefix(got[0].Next, want) || got[0].Severity != obs.Degraded {
		t.Errorf("got %+v, want %q…", got[0], want)
	}
}

// TestMemoryIsTight while nearly all of the limit is live.
func TestMemoryIsTight(t *testing.T) {
	limited(t, math.MaxInt64)
	m := newMemory(slog.New(slog.DiscardHandler), true)
	follow(t, m, Part{Name: "program", Most: 1})
	if !m.Tight() || codes(m.Conditions()) != "memory-tight" {
		t.Errorf("one byte is enough: %+v", m.Conditions())
	}
	follow(t, m, Part{Name: "program", Most: 1 << 40})
	if m.Tight() {
		t.Error("a tebibyte is not enough")
	}
}
