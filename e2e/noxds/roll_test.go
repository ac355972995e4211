package noxds

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// TestRollTwoExtprocs replaces two extprocs, one after the other, as envoy/README.md says,
// under load: no request fails, and none goes without a decision.
func TestRollTwoExtprocs(t *testing.T) {
	f := &fleet{t: t, dir: t.TempDir(), engines: make([]*rig.Process, 3)}
	free := rig.MustPorts(t, 9)
	copy(f.ports.engines[:], free)
	f.ports.gateway, f.ports.admin, f.ports.extproc, f.ports.metric = free[3], free[4], free[5], free[6]
	for i := range f.engines {
		f.startStandIn(i)
	}
	f.write(t, "fleet.yaml", strings.ReplaceAll(f.adapt(t, "fleet.yaml"), "type: llamacpp", "type: openai"))
	two := []*rolled{{grpc: free[5], metric: free[6]}, {grpc: free[7], metric: free[8]}}
	for _, x := range two {
		x.start(f)
	}
	envoy := f.adapt(t, "standalone.yaml")
	for line := range strings.Lines(envoy) {
		if port := fmt.Sprint("port_value: ", free[5]); strings.Contains(line, port) {
			envoy = strings.Replace(envoy, line, line+strings.Replace(line, port, fmt.Sprint("port_value: ", free[7]), 1), 1)
		}
	}
	f.write(t, "envoy.yaml", envoy)
	rig.StartEnvoy(t, filepath.Join(f.dir, "envoy.yaml"), 2)
	f.await(t, "Envoy has all", func() error { return f.hosts(4) })

	l := rig.StartLoadOf(t, 4, func(ctx context.Context, client, n int) (rig.Outcome, error) {
		a, err := rig.Post(ctx, f.url(rig.ChatPath), rig.ShortQuestions(client, n))
		if err == nil && a.Status != 200 {
			err = fmt.Errorf("status %d: %.200s", a.Status, a.Body)
		}
		return rig.Outcome{}, err
	})
	l.More(t, 100)
	for _, x := range two {
		began := l.Done()
		if err := syscall.Kill(x.process.PID(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-x.process.Done()
		x.start(f)
		f.await(t, "the new one is ready", func() error { return rig.Ready(rig.Address(x.metric)) })
		f.await(t, "Envoy has it", func() error { return f.hosts(4) })
		l.More(t, 100)
		t.Logf("%d requests while one was replaced", l.Done()-began)
	}
	l.MustAllSucceed(t)
	undecided := 0
	f.await(t, "the access log has all", func() error {
		text := rig.Read(t, filepath.Join(f.dir, "access.log"))
		if lines := strings.Count(text, "\n"); int64(lines) < l.Done() {
			return fmt.Errorf("%d lines of %d", lines, l.Done())
		}
		undecided = strings.Count(text, `"decision":null`)
		return nil
	})
	if undecided > 0 {
		t.Errorf("%d of %d requests went without a decision", undecided, l.Done())
	}
	t.Logf("%d requests, %d failed, %d without a decision", l.Done(), len(l.Failed()), undecided)
}

// rolled is one of several extprocs.
type rolled struct {
	grpc, metric int
	process      *rig.Process
}

func (x *rolled) start(f *fleet) {
	x.process = rig.StartProgram(f.t, "extproc", "-fleet", filepath.Join(f.dir, "fleet.yaml"), "-leave", (2 * time.Second).String(),
		"-listen", rig.Address(x.grpc), "-metrics", rig.Address(x.metric))
}
