package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/xds/fleetpb"
)

// planned is a model of our own that needs 246 MiB in one process: nobody writes its layout.
func planned(t *testing.T, more string) string {
	t.Helper()
	return rig.Write(t, filepath.Join(t.TempDir(), "mesh.yaml"), `apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
spec: {weights: `+rig.MustCached(t, "models/*.gguf")+`, backend: {slots: 2, contextTokens: 2048}`+more+"}\n")
}

// greedy returns the answers to five prompts, as likely as they can be.
func (m *mesh) greedy(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, prompt := range []string{
		"The sea is", "In 1969 the first", "def fibonacci(n):", "The capital of France", "Once upon a time, there was a",
	} {
		c, a, err := rig.Complete(t.Context(), m.URL(t, "/v1/completions"), map[string]any{
			"model": rig.Model, "prompt": prompt, "max_tokens": 24, "temperature": 0,
		})
		if err != nil || len(c.Choices) == 0 {
			t.Fatalf("%s: %v %.200s", prompt, err, a.Body)
		}
		all = append(all, c.Choices[0].Text)
	}
	return all
}

// stages returns the nodes of the model's only replica, the head first, if it takes requests.
func stages(v *fleetpb.FleetView) []string {
	for _, n := range v.GetNodes() {
		a := n.GetReport().GetEngine().GetAssignment()
		if n.GetState() != fleetpb.EndpointState_READY || a.GetReplica() != "smollm2-0" || a.GetStage() != 0 {
			continue
		}
		var names []string
		for _, s := range a.GetStages() {
			names = append(names, s.GetNode())
		}
		return names
	}
	return nil
}

func (m *mesh) stages(t *testing.T) []string {
	t.Helper()
	v, err := m.Fleet(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return stages(v)
}

// TestPlannedLayouts has a model that fits no node alone served by two and by three, without a
// layout; by others when one is lost; and its greedy answers are those of one process.
func TestPlannedLayouts(t *testing.T) {
	file := planned(t, ", replicas: 1")
	whole := own(t, "-nodes", "1", "-config", file)
	want := whole.greedy(t)
	if err := whole.End(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	same := func(m *mesh, what string) {
		t.Helper()
		if got := m.greedy(t); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	three := own(t, "-nodes", "3", "-config", file, "-memory", "node-a=150Mi,node-b=140Mi,node-c=140Mi")
	if got := three.stages(t); len(got) != 3 {
		t.Errorf("nodes of 150, 140, 140 MiB: on %v", got)
	}
	same(three, "three stages")
	if err := three.End(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}

	m := own(t, "-nodes", "3", "-config", planned(t, ""), "-memory", "node-a=180Mi,node-b=190Mi,node-c=185Mi")
	had := m.stages(t)
	if len(had) != 2 {
		t.Fatalf("nodes of 180, 190, 185 MiB: on %v", had)
	}
	table := m.StatusTable(t)
	if t.Log(table); !strings.Contains(table, "2 stages on "+had[0]+" and "+had[1]) || !strings.Contains(table, "node-b alone lacks") {
		t.Error("status does not say how the model lies, and why")
	}
	same(m, "two stages")
	for _, lost := range []int{1, 0} { // a shard, then a head
		now := m.lose(t, had[lost])
		same(m, fmt.Sprintf("on %v, without %s", now, had[lost]))
		had = now
	}
}

// lose has a node away until a model is served without it, and back: what runs stays then. It
// returns where that is.
func (m *mesh) lose(t *testing.T, node string) (now []string) {
	t.Helper()
	back := rig.Suspend(t, m.Process(t, "nodeagent@"+node).PID)
	rig.Kill(t, m.Process(t, "engine@"+node).PID)
	died := time.Now()
	var laid time.Duration
	took := rig.Wait(t, rig.BackLimit, "the model is served without "+node, func() error {
		v, err := m.Fleet(t.Context())
		if err != nil {
			return err
		}
		for _, n := range v.GetNodes() {
			a := n.GetReport().GetEngine().GetAssignment()
			with := false
			for _, s := range a.GetStages() {
				with = with || s.GetNode() == node
			}
			if a != nil && !with && laid == 0 {
				laid = time.Since(died)
			}
		}
		if now = stages(v); now == nil || slices.Contains(now, node) {
			return errors.New(m.StatusTable(t))
		}
		return nil
	})
	t.Logf("%s lost: laid out anew on %v after %v, served after %v", node, now, laid.Round(time.Millisecond), took.Round(time.Millisecond))
	back()
	rig.Wait(t, rig.BackLimit, node+" is back", func() error {
		v, err := m.Fleet(t.Context())
		if err != nil {
			return err
		}
		for _, n := range v.GetNodes() {
			if n.GetNode() == node && time.Since(n.GetLastReport().AsTime()) < 2*time.Second && n.GetReport().GetEngine() != nil {
				if got := stages(v); !slices.Equal(got, now) {
					return rig.Final(fmt.Errorf("on %v, was on %v", got, now))
				}
				return nil
			}
		}
		return errors.New("it does not report")
	})
	return now
}

// TestASlowNodeIsLastChosen lays a model out on a node that is said to be fast.
func TestASlowNodeIsLastChosen(t *testing.T) {
	m := own(t, "-nodes", "3", "-config", planned(t, ", replicas: 1"), "-memory", "node-a=1Gi,node-b=1Gi,node-c=300Mi", "-capacity", "node-a=10,node-b=20,node-c=80")
	if got := m.stages(t); !slices.Equal(got, []string{"node-c"}) {
		t.Errorf("on %v, want node-c", got)
	}
}

// TestAModelThatCannotFit says what is missing, harms nobody, and is served once it is less.
func TestAModelThatCannotFit(t *testing.T) {
	file := planned(t, "")
	rig.PauseShared(t)
	started, err := rig.StartMesh(t.TempDir(), "-nodes", "2", "-config", file, "-memory", "node-a=140Mi,node-b=140Mi")
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{Mesh: started}
	t.Cleanup(func() {
		if err := m.End(syscall.SIGTERM); err != nil {
			t.Error(err)
			m.Abandon()
		}
	})
	m.ShowLogs(t)
	rig.Wait(t, rig.StartLimit, "status says what is missing", func() error {
		got := rig.Millrace(t, "", "status", "-dir", m.Dir)
		if !strings.Contains(got.Stdout, "replica smollm2-0 is not placed: it needs ") || !strings.Contains(got.Stdout, " MiB more") {
			return fmt.Errorf("%s%s", got.Stdout, got.Stderr)
		}
		return nil
	})
	rig.Replace(t, file, strings.Replace(rig.Read(t, file), "slots: 2, contextTokens: 2048", "slots: 1, contextTokens: 512", 1))
	if err := m.Ready(); err != nil {
		t.Fatal(err)
	}
	if got := m.stages(t); len(got) != 2 {
		t.Errorf("on %v, want two nodes", got)
	}
}
