package jinja

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"
)

// now is the time that oracle.py has.
var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// pair is a template with its variables, and what Jinja2 makes of it.
type pair struct {
	Template string          `json:"t"`
	Vars     json.RawMessage `json:"c"`
	Out      *string         `json:"o"` // nil: it refuses
	Err      string          `json:"e"`
	Family   string          `json:"f"` // of the model whose template it is
}

func readPairs(t testing.TB, name string) (out []pair) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var p pair
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

// tally is how pairs compare.
type tally struct {
	pairs, same, refused int
	unsupported          map[string]int
}

// compare renders a pair. What isn't rendered here is no difference: the count is
// an estimate then.
func (n *tally) compare(t *testing.T, p *pair) {
	n.pairs++
	got, err := renderPair(p)
	switch {
	case errors.Is(err, ErrUnsupported) || errors.Is(err, ErrLimit):
		n.unsupported[err.Error()]++
	case err != nil && p.Out == nil:
		n.refused++
	case err != nil:
		t.Errorf("%s\nwith %s\n%v, want %q", p.Template, p.Vars, err, *p.Out)
	case p.Out == nil:
		t.Errorf("%s\nwith %s\n%q, Jinja2: %s", p.Template, p.Vars, got, p.Err)
	case string(got) != *p.Out:
		t.Errorf("%s\nwith %s\n got %q\nwant %q", p.Template, p.Vars, got, *p.Out)
	default:
		n.same++
	}
}

func renderPair(p *pair) ([]byte, error) {
	t, err := Parse(p.Template)
	if err != nil {
		return nil, err
	}
	vars, err := FromJSON(p.Vars)
	if err != nil {
		return nil, err
	}
	return t.Render(vars.(*Dict), Options{Now: now})
}

func (n *tally) String() string {
	estimates := 0
	for _, c := range n.unsupported {
		estimates += c
	}
	return fmt.Sprintf("%d pairs: %d the same text, %d refused by both, %d not rendered here %v", n.pairs, n.same, n.refused, estimates, n.unsupported)
}

// TestAgreesWithJinja2 has what Jinja2 made of cases.jsonl and of templates by
// chance; `make test-templates` makes more of them, and these anew.
func TestAgreesWithJinja2(t *testing.T) {
	n := &tally{unsupported: map[string]int{}}
	for _, p := range readPairs(t, "testdata/pairs.jsonl") {
		n.compare(t, &p)
	}
	if n.pairs < 800 || n.same < n.pairs/2 {
		t.Errorf("%v; something is lost", n)
	}
	t.Log(n)
}
