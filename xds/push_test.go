package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/internal/fleet"
	"millrace.dev/millrace/xds/internal/translate"
)

// stateOf returns what a text asks for, after before.
func stateOf(t *testing.T, before *desired.State, models ...string) *desired.State {
	t.Helper()
	var text string
	for _, m := range models {
		text += "---\napiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: " + m + "}\nspec: {weights: /w.gguf}\n"
	}
	f, err := config.Parse("mesh.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return desired.Next(before, f, nil)
}

// clients is what Envoy and extproc have.
type clients struct{ clusters, routes, models string }

// have returns which models the resources name.
func have(all translate.Resources, models ...string) clients {
	var c clients
	routes := all[translate.RouteType]["gateway"]
	for _, m := range models {
		if all[translate.ClusterType][translate.EnginesCluster(m)] != nil && all[translate.EndpointsType][translate.EnginesCluster(m)] != nil {
			c.clusters += m
		}
		if strings.Contains(textOf(routes), `"`+translate.EnginesCluster(m)+`"`) {
			c.routes += m
		}
		if all[wire.ModelType][m] != nil {
			c.models += m
		}
	}
	return c
}

// TestStepsOfAState: what is named comes before what names it, and goes after it.
func TestStepsOfAState(t *testing.T) {
	first := stateOf(t, nil, "a", "b")
	second := stateOf(t, first, "a", "c")
	r := &rollout{site: translate.Site{Gateway: "127.0.0.1:1"}}
	now := time.Unix(1000, 0)
	busy := func(types ...string) bool { return false }
	step := func(s *desired.State) bool {
		t.Helper()
		ok, err := r.step(&fleet.Snapshot{Settled: true, Desired: s}, busy, now)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	resources := func() clients {
		return have(r.resources(&fleet.Snapshot{}), "a", "b", "c")
	}
	if ok, _ := r.step(&fleet.Snapshot{Desired: first}, busy, now); ok {
		t.Error("something is pushed before the fleet is settled")
	}
	if !step(first) || !r.done() || resources() != (clients{"ab", "ab", "ab"}) {
		t.Fatalf("the first state: done %v, %+v", r.done(), resources())
	}
	steps := []clients{
		stepClusters: {"abc", "ab", "ab"},
		stepRoutes:   {"abc", "abc", "ab"},
		stepPolicy:   {"abc", "abc", "ac"},
		stepForget:   {"abc", "ac", "ac"},
		stepDone:     {"ac", "ac", "ac"},
	}
	for i, want := range steps {
		if !step(second) || resources() != want {
			t.Fatalf("step %d: %+v, want %+v", i, resources(), want)
		}
		if i == stepDone {
			break
		}
		r.published(quiet[i], now)
		if step(second) {
			t.Fatalf("step %d is over before the push is on its way", i)
		}
		now = now.Add(pushFirst)
		busy = func(types ...string) bool { return slices.Equal(types, quiet[i]) }
		if step(second) {
			t.Fatalf("step %d is over before the clients have answered", i)
		}
		if i%2 == 0 {
			busy = func(...string) bool { return false }
		} else {
			now = now.Add(pushLatest) // one that never answers
		}
	}
	if !r.done() || step(second) {
		t.Error("not done")
	}
}

// TestStateThatComesBetween: nothing is taken away that a client may still name.
func TestStateThatComesBetween(t *testing.T) {
	first := stateOf(t, nil, "a", "b")
	second := stateOf(t, first, "a", "c")
	third := stateOf(t, second, "a", "d")
	idle := func(...string) bool { return false }
	for at := stepClusters; at <= stepDone; at++ {
		r := &rollout{site: translate.Site{Gateway: "127.0.0.1:1"}}
		step := func(s *desired.State) clients {
			if _, err := r.step(&fleet.Snapshot{Settled: true, Desired: s}, idle, time.Now()); err != nil {
				t.Fatal(err)
			}
			return have(r.resources(&fleet.Snapshot{}), "a", "b", "c", "d")
		}
		step(first)
		var before clients
		for range at + 1 {
			before = step(second)
		}
		now := step(third)
		if now.routes != before.routes || now.models != before.models || now.clusters != before.clusters+"d" {
			t.Errorf("after step %d: %+v became %+v", at, before, now)
		}
		for range stepDone {
			now = step(third)
		}
		if want := (clients{"ad", "ad", "ad"}); now != want {
			t.Errorf("in the end %+v, want %+v", now, want)
		}
	}
}

// textOf returns a message as text.
func textOf(m proto.Message) string { return prototext.Format(m) }
