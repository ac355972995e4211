package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChosen(t *testing.T) {
	tests := []struct {
		only string
		want []string
		err  string
	}{
		{"P", []string{"P1", "P2", "P3", "P4", "P5", "P6"}, ""},
		{"P2, E1", []string{"E1", "P2"}, ""},
		{"P7a", []string{"P7a"}, ""},
		{"", nil, `no row ""`},
		{"P1,X9", nil, `no row "X9"; there are P1,P2`},
	}
	for _, tt := range tests {
		t.Run(tt.only, func(t *testing.T) {
			got, err := chosen(tt.only)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("chosen() = %v, want %q", err, tt.err)
				}
				return
			}
			if diff := cmp.Diff(tt.want, slices.Sorted(maps.Keys(got))); diff != "" || err != nil {
				t.Errorf("chosen() = %v (-want +got):\n%s", err, diff)
			}
		})
	}
	if _, err := chosen(names()); err != nil {
		t.Errorf("the default: %v", err)
	}
}

// TestFiguresExplainThemselves holds that whoever has a line or the table alone knows
// what was measured, how, and what the floor is.
func TestFiguresExplainThemselves(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	if err := r.add(figure{Row: "P9", What: "Envoy + extproc", Value: 2, Unit: "µs", Floor: 1, Ratio: 2, Goal: "≤ 1.05 × floor"}); err != nil {
		t.Fatal(err)
	}
	if err := r.add(figure{Row: "L4", What: "cached", Value: 2, Unit: "%", Floor: 1, FloorIs: "another"}); err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(out.String(), "\n")
	var f figure
	if err := json.Unmarshal([]byte(lines[0]), &f); err != nil {
		t.Fatal(err)
	}
	if want := explained("P9"); f.How != want.how || f.FloorIs != want.floor {
		t.Errorf("the line of P9 says %q and floor %q", f.How, f.FloorIs)
	}
	if err := json.Unmarshal([]byte(lines[1]), &f); err != nil || f.FloorIs != "another" {
		t.Errorf("the figure's own floor is lost: %q, %v", f.FloorIs, err)
	}
	out.Reset()
	r.table()
	for _, want := range []string{explained("P9").what, explained("P9").how, explained("P9").floor, "≤ 1.05 × floor", "another", explained("L4").what} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, out.String())
		}
	}
}

func TestHelpExplainsEveryRow(t *testing.T) {
	var out bytes.Buffer
	explain(&out)
	for _, r := range rows() {
		if !strings.Contains(out.String(), r.what) || !strings.Contains(out.String(), r.how) || r.what == "" || r.how == "" || r.took == 0 {
			t.Errorf("%s is not explained", r.name)
		}
	}
}
