package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/e2e/rig"
)

// TestModelsTakeTurns has one node, and three models that are loaded on demand: each request is
// answered by the model that it names, whoever has the place when it comes, also while xds is
// restarted; who has left is not waited for.
func TestModelsTakeTurns(t *testing.T) {
	weights := rig.MustCached(t, "models/*.gguf")
	names := []string{"ant", "bee", "cat"}
	var file strings.Builder
	for _, name := range names {
		fmt.Fprintf(&file, "---\napiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: %s}\nspec: {weights: %s, load: onDemand, replicas: 1}\n", name, weights)
	}
	file.WriteString("---\napiVersion: millrace.dev/v1alpha1\nkind: Policy\nmetadata: {name: default}\nspec: {flow: {maxWait: {standard: 54s}}}\n") // a busy machine loads slowly
	m := own(t, "-nodes", "1", "-config", rig.Write(t, filepath.Join(t.TempDir(), "mesh.yaml"), file.String()))
	m.Engines = 1
	url := m.URL(t, "/v1/chat/completions")
	request := func(model string, tokens int) rig.Chat {
		c := rig.Ask(tokens, "Hello!")
		c.Model = model
		return c
	}
	ask := func(ctx context.Context, model string) error {
		a, err := rig.Post(ctx, url, request(model, 8))
		if err != nil {
			return err
		}
		var c rig.Completion
		if err := json.Unmarshal(a.Body, &c); err != nil || a.Status != http.StatusOK || c.Model != model {
			return fmt.Errorf("%s: status %d from %q: %.300s", model, a.Status, c.Model, a.Body)
		}
		return nil
	}
	sleeps := func() []string {
		view, err := m.Fleet(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, u := range view.GetUnplaced() {
			if !u.GetAsleep() {
				t.Errorf("%s: %s", u.GetReplica(), u.GetReason())
			}
			all = append(all, u.GetModel())
		}
		return all
	}
	if got := sleeps(); !slices.Equal(got, names[1:]) {
		t.Errorf("asleep at the start: %v", got)
	}
	if got := rig.Millrace(t, "", "status", "-dir", m.Dir); !strings.Contains(got.Stdout, "its place is held by ant") || strings.Contains(got.Stdout, "degraded") {
		t.Errorf("status:\n%s", got.Stdout)
	}
	// In turn, each once loaded by its first request.
	for _, name := range []string{"cat", "bee", "ant", "bee"} {
		s, err := rig.Stream(t.Context(), url, streamed(request(name, 8)), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Logf("%s, asleep: first token after %v", name, s.First.Round(time.Millisecond))
	}
	// All at the same time.
	var g errgroup.Group
	for i := range 12 {
		g.Go(func() error { return ask(t.Context(), names[i%len(names)]) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	// xds is away when they come.
	had := m.Process(t, "xds")
	rig.Kill(t, had.PID)
	for _, name := range sleepers(names, "ant") {
		g.Go(func() error { return ask(t.Context(), name) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	rig.Wait(t, rig.BackLimit, "xds is back", func() error { return m.Restarted(had) })
	t.Run("who leaves", func(t *testing.T) { leavesQueue(t, m, url, request) })
}

// sleepers are the names, those that are not the first behind it.
func sleepers(names []string, first string) []string {
	return append(slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == first }), first)
}

func streamed(c rig.Chat) rig.Chat {
	c.Stream = true
	return c
}

// leavesQueue has a client wait for a place that another model needs, and leave.
func leavesQueue(t *testing.T, m *mesh, url string, request func(model string, tokens int) rig.Chat) {
	busy, begun := make(chan error, 1), make(chan struct{})
	go func() {
		first := true
		_, err := rig.Stream(t.Context(), url, streamed(request("ant", 400)), func(string) error {
			if first {
				close(begun)
			}
			first = false
			return nil
		})
		busy <- err
	}()
	select {
	case <-begun:
	case err := <-busy:
		t.Fatal(err)
	}
	xds := m.Addr(t, "xds", "metrics")
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := rig.Post(ctx, url, request("bee", 8))
		gone <- err
	}()
	waits := func(want float64) func() error {
		return func() error {
			n, err := rig.Metric(xds, "millrace_xds_requests_awaiting_place")
			if err == nil && n != want {
				err = fmt.Errorf("%v wait, want %v", n, want)
			}
			return err
		}
	}
	rig.Wait(t, rig.BackLimit, "it waits", waits(1))
	leave()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the client that has left: %v", err)
	}
	rig.Wait(t, rig.BackLimit, "nobody waits", waits(0))
	if err := <-busy; err != nil {
		t.Errorf("who was answered meanwhile: %v", err)
	}
}
