package workload

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/extproc/internal/replay"
)

func TestScenariosAreRepeatableAndDiffer(t *testing.T) {
	for _, s := range Of(Training, 1) {
		again := newScenario(s.family, s.Seed)
		a, fleet := s.At(10)
		b, _ := again.At(10)
		if !reflect.DeepEqual(a, b) { // cmp takes minutes for what is so large
			t.Errorf("%s %d is not what it was", s.Family, s.Seed)
		}
		if c, _ := newScenario(s.family, s.Seed+1).At(10); reflect.DeepEqual(a.Requests, c.Requests) {
			t.Errorf("%s: two seeds make the same requests", s.Family)
		}
		if len(fleet.Engines) < 3 || fleet.Age == 0 || s.Pickers < 1 {
			t.Errorf("%s: %d engines, reports %g ms old, %d pickers", s.Family, len(fleet.Engines), fleet.Age, s.Pickers)
		}
	}
}

func TestHalvesHaveNothingInCommon(t *testing.T) {
	for h, scenarios := range map[Half][]*Scenario{Training: Of(Training, 3), Evaluation: Of(Evaluation, 3)} {
		if want := 3 * len(Families()); len(scenarios) != want {
			t.Errorf("%d scenarios, want %d", len(scenarios), want)
		}
		for _, s := range scenarios {
			if s.Seed%2 != uint64(h) {
				t.Errorf("%s %d is in half %d", s.Family, s.Seed, h)
			}
		}
	}
}

// TestRequestsAreWhole holds each request to what must be true of any.
func TestRequestsAreWhole(t *testing.T) {
	for _, s := range Of(Evaluation, 1) {
		tr, _ := s.At(20)
		if n := len(tr.Requests); n < requests {
			t.Errorf("%s: %d requests", s.Family, n)
		}
		for i, r := range tr.Requests {
			if r.Parent >= i || r.Input < 1 || r.Output < 1 || len(r.Blocks) != r.Input/block || r.Goal == (replay.Goal{}) {
				t.Fatalf("%s: request %d: %d after %d, %d tokens in %d blocks, %d out, goal %v", s.Family, i, i, r.Parent, r.Input, len(r.Blocks), r.Output, r.Goal)
			}
			if p := r.Parent; p >= 0 && tr.Requests[p].Session == r.Session {
				if before := tr.Requests[p]; !slices.Equal(r.Blocks[:len(before.Blocks)], before.Blocks) {
					t.Fatalf("%s: request %d does not begin with its turn before", s.Family, i)
				}
			}
		}
	}
}

// TestArrivals holds rates and irregularity to what they are said to be.
func TestArrivals(t *testing.T) {
	const n = 20000
	tests := []struct {
		name    string
		of      []float64
		low, up float64 // coefficient of variation of the gaps
	}{
		{"poisson", poisson(random("x", 1, ""), n), 0.9, 1.1},
		{"bursts", bursts(random("x", 1, ""), n), 1.8, 5.5},
		{"day", day(random("x", 1, ""), n), 1, 1.7},
		{"flash", flash(random("x", 1, ""), n), 1, 1.6},
	}
	for _, tt := range tests {
		sum, squares, last := 0.0, 0.0, 0.0
		for _, at := range tt.of {
			gap := at - last
			if gap < 0 {
				t.Fatalf("%s: %g after %g", tt.name, at, last)
			}
			sum, squares, last = sum+gap, squares+gap*gap, at
		}
		mean := sum / n
		if cv := math.Sqrt(squares/n-mean*mean) / mean; cv < tt.low || cv > tt.up || math.Abs(mean-1) > 0.02 {
			t.Errorf("%s: one in %g s with a variation of %g", tt.name, mean, cv)
		}
	}
}

func TestCapacityIsWhereTheOracleIsAtItsEnd(t *testing.T) {
	s := newScenario(&families[0], 0)
	at := func(rate float64) float64 {
		tr, f := s.At(rate)
		return replay.Grade(tr, f, replay.Oracular, replay.Pickers{N: 1}, 1).Goodput
	}
	if c := s.Capacity(); c == 0 || at(c) < enough || at(1.1*c) >= enough {
		t.Errorf("capacity %g: goodput %g there, %g at a tenth more", c, at(c), at(1.1*c))
	}
}

// TestRunReportsAll runs a few policies, of which one engine dies, and checks what is written of them.
func TestRunReportsAll(t *testing.T) {
	var results []*Result
	s := newScenario(&families[len(families)-1], 1)
	policies := []string{"least request", "Dynamo", replay.Oracular, replay.Ours}
	if err := Run(context.Background(), []*Scenario{s}, policies, []float64{0.5, 1.2}, func(r *Result) { results = append(results, r) }); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	Print(&text, Verdicts(results))
	PrintRivals(&text, results)
	for _, want := range append([]string{"died", "≤ 100", "120"}, policies...) {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	dir := t.TempDir()
	if err := Plot(dir, results); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "died.svg")); err != nil || !strings.Contains(string(b), "<svg") {
		t.Errorf("died.svg: %v", err)
	}
}

func TestVerdictComparesWithTheBestByEachFigure(t *testing.T) {
	r := &Result{Family: "chat", Load: 0.5, Scores: []replay.Score{
		{Policy: "a", Goodput: 0.5, P99: 100, E2E: 900}, {Policy: "b", Goodput: 0.8, P99: 200, E2E: 500},
		{Policy: replay.Oracular, Goodput: 1, P99: 1, E2E: 1}, {Policy: replay.Ours, Goodput: 0.4, P99: 110, E2E: 400},
	}}
	got, ok := r.Compare()
	if want := (Ratios{0.5, 1.1, 0.8, "a"}); !ok || got != want {
		t.Errorf("Compare() = %v, %v, want %v", got, ok, want)
	}
	want := Verdict{Family: "chat", Load: 0.5, N: 1, Goodput: 0.5, P99: 1.1, E2E: 0.8, LowGoodput: 1, Worse: 1, Mine: 0.4, Oracle: 1}
	all := Verdicts([]*Result{r})
	near := cmp.Comparer(func(a, b float64) bool { return math.Abs(a-b) < 1e-9 })
	if d := cmp.Diff(want, all[0], near); d != "" || len(all) != 3 {
		t.Errorf("%d verdicts: %s", len(all), d)
	}
}
