package conversations

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/wire"
)

// outlives holds a conversation whose engine is killed: the next turn has its history in the cache
// of another engine, and the answer of an undisturbed one. Then all snapshots are damaged, and all
// backends killed: the turn is computed, and has the same answer.
func outlives(t *testing.T, m *rig.Mesh) {
	m.AwaitWhole(t)
	talk := rig.Ask(8, strings.Repeat("We list the rivers of Europe by their length, their source and their mouth. ", 24)+"Name one.")
	next := func() (c rig.Completion, node string) {
		t.Helper()
		c, a, err := rig.Complete(t.Context(), m.URL(t, "/v1/chat/completions"), talk, "x-session-id", "outlives")
		if err != nil {
			t.Fatal(err)
		}
		return c, a.Header.Get(wire.NodeHeader)
	}
	for range 2 {
		c, _ := next()
		talk.Messages = append(talk.Messages, rig.Assistant(c.Text()), rig.User("Name one more."))
	}
	want, node := next()
	settled(t, m)

	rig.Kill(t, m.Process(t, "engine@"+node).PID)
	got, other := next()
	t.Logf("%d tokens of %d were cached at %s, %s was killed; undisturbed: %d", got.Usage.Details.Cached, got.Usage.Prompt, other, node, want.Usage.Details.Cached)
	if other == node || got.Usage.Details.Cached < want.Usage.Prompt/2 {
		t.Errorf("at %s %d tokens of %d were cached, want nearly all, elsewhere than at %s", other, got.Usage.Details.Cached, got.Usage.Prompt, node)
	}
	if got.Text() != want.Text() {
		t.Errorf("restored: %q, undisturbed: %q", got.Text(), want.Text())
	}

	m.AwaitWhole(t)
	settled(t, m)
	flip(t, m)
	for _, p := range m.State(t).Processes {
		if p.Role == "backend" {
			rig.Kill(t, p.PID)
			rig.Wait(t, rig.BackLimit, p.Name+" is back", func() error { return m.Restarted(p) })
		}
	}
	m.AwaitWhole(t)
	got, _ = next()
	if got.Usage.Details.Cached > 0 || got.Text() != want.Text() {
		t.Errorf("computed: %q, %d tokens cached, undisturbed: %q", got.Text(), got.Usage.Details.Cached, want.Text())
	}
	torn := 0.0
	for _, p := range m.State(t).Processes {
		if p.Role == "engine" {
			torn += rig.MustMetric(t, p.Addrs["metrics"], `millrace_engine_snapshots_ignored_total{reason="torn"}`)
		}
	}
	if torn == 0 {
		t.Error("no damaged snapshot was found")
	}
}

// settled waits until every answer is saved and copied.
func settled(t *testing.T, m *rig.Mesh) {
	t.Helper()
	for _, p := range m.State(t).Processes {
		if p.Role != "engine" {
			continue
		}
		rig.Wait(t, rig.BackLimit, p.Name+" has saved what it answered", func() error {
			if n, err := rig.Metric(p.Addrs["metrics"], "millrace_engine_snapshots_settling"); err != nil || n > 0 {
				return fmt.Errorf("settling: %v, %v", n, err)
			}
			return nil
		})
	}
}

// flip changes a bit in the middle of every snapshot.
func flip(t *testing.T, m *rig.Mesh) {
	t.Helper()
	all, err := filepath.Glob(m.File("snapshots-*", "*.kv"))
	if err != nil || len(all) < 2 {
		t.Fatalf("snapshots: %v, %v, want those of two engines", all, err)
	}
	for _, path := range all {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
