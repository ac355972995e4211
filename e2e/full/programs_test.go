package full

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

const (
	ready       = 30 * time.Second // a program says what it may take
	processEnds = 10 * time.Second
)

// TestBoundsFitTheChart starts each program in a container of the size that the chart gives
// it: all that it may hold, with what Go and the kernel need beside that, fits.
func TestBoundsFitTheChart(t *testing.T) {
	fleet := rig.Write(t, filepath.Join(t.TempDir(), "fleet.yaml"), "endpoints: [{address: \"127.0.0.1:1\", models: [m]}]\n")
	for name, args := range map[string][]string{
		"xds": {"-listen"}, "extproc": {"-fleet", fleet, "-listen"},
		"nodeagent": {"-node", "a", "-engine", "127.0.0.1:1", "-xds", "127.0.0.1:1"},
	} {
		t.Run(name, func(t *testing.T) {
			at := rig.MustAddresses(t, 2)
			if args[len(args)-1] == "-listen" {
				args = append(args, at[0])
			}
			size := chartLimit(t, name)
			c := newContainer(t, size)
			c.start(t, name, append(args, "-metrics", at[1])...)
			need, limit := 0.0, 0.0
			rig.Wait(t, ready, "the program says what it may take", func() (err error) {
				if need, err = rig.SumMetric(at[1], "millrace_memory_bound_bytes"); err == nil && need == 0 {
					err = fmt.Errorf("nothing yet")
				}
				return err
			})
			limit = rig.MustMetric(t, at[1], "millrace_memory_limit_bytes")
			t.Logf("bounds %.0f MiB, Go's limit %.0f MiB, the chart's %d MiB", need/(1<<20), limit/(1<<20), size>>20)
			if 1.25*need > float64(size) {
				t.Errorf("all parts take %.0f MiB, with a quarter more than the chart's %d MiB", need/(1<<20), size>>20)
			}
			if limit > float64(size) || limit < 0.85*float64(size) {
				t.Errorf("Go's limit is %.0f MiB in a container of %d MiB", limit/(1<<20), size>>20)
			}
		})
	}
}

// TestTooSmallAContainerIsSaid gives extproc less than it may take.
func TestTooSmallAContainerIsSaid(t *testing.T) {
	fleet := rig.Write(t, filepath.Join(t.TempDir(), "fleet.yaml"), "endpoints: [{address: \"127.0.0.1:1\", models: [m]}]\n")
	at := rig.MustAddresses(t, 2)
	p := newContainer(t, 512<<20).start(t, "extproc", "-fleet", fleet, "-listen", at[0], "-metrics", at[1])
	rig.Wait(t, ready, "the condition memory-short", func() error { return rig.HasCondition(at[1], "memory-short") })
	if out := p.Out.String(); !strings.Contains(out, "memory is short") {
		t.Errorf("nothing in the log: %s", out)
	}
}
