package stream

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/extproc/internal/pick"
)

// TestDecisionsAreShown with all that there was to choose from, and what came of them; nothing of
// what was asked is in them.
func TestDecisionsAreShown(t *testing.T) {
	f := newFleet(3, func(t *pick.Table) { t.Models["m"].Endpoints[2].State = pick.NotReady })
	d := NewDecisions()
	f.core.Decides(d)
	x := f.core.Begin()
	answered := answeredBy("127.0.0.1:20000")
	answered.Answer.Usage = "prompt=12,cached=3,completion=5"
	run(x, post(func(h *RequestHead) { h.ID.set([]byte("5d3e1f40-0000-4000-8000-000000000000")) }), bodyOf(hello), answered)
	x.End(epoch.Add(time.Second))
	all, _ := d.Since(0)
	if len(all) != 1 {
		t.Fatalf("%d decisions, want 1", len(all))
	}
	got := all[0]
	if got.ID != "5d3e1f40-0000-4000-8000-000000000000" || got.Reason != "new" || got.Outcome != "ok" || got.Served != "127.0.0.1:20000" || got.Decision.Model != "m" ||
		got.Took != time.Second || !got.Known || got.Usage.Cached != 3 || got.Decision.Choice != nil || got.Decision.Chain != nil {
		t.Errorf("%+v", got)
	}
	if len(got.Candidates) != 3 || got.Candidates[0].Named != 1 || got.Candidates[2].Out != "not ready" || got.Candidates[2].Named != 0 || got.Candidates[0].Terms.Finish() <= 0 {
		t.Errorf("candidates %+v", got.Candidates)
	}
	if text := fmt.Sprintf("%+v", *got); strings.Contains(text, "Hello") {
		t.Errorf("it has words of the prompt: %s", text)
	}
}

// TestDecisionsAreFew: a busy extproc shows some of them, and those that ended badly.
func TestDecisionsAreFew(t *testing.T) {
	f := newFleet(2)
	d := NewDecisions()
	f.core.Decides(d)
	for i := range 100 {
		x := f.core.Begin()
		answer := answeredBy("127.0.0.1:20000")
		if i == 99 {
			answer.Answer.Status = 503
		}
		run(x, post(), bodyOf(hello), answer)
		x.End(epoch)
	}
	all, _ := d.Since(0)
	if n := len(all); n != shownPerSecond+1 {
		t.Errorf("%d of 100 are shown, want %d and the one that failed", n, shownPerSecond)
	}
	if last := all[len(all)-1]; last.Outcome != "failed" || len(last.Candidates) == 0 {
		t.Errorf("the last is %+v", last)
	}
	probe := f.core.Begin()
	run(probe, post(func(h *RequestHead) { h.Probe = true }), bodyOf(hello), answeredBy("127.0.0.1:20000"))
	probe.End(epoch.Add(time.Minute))
	if again, _ := d.Since(0); len(again) != len(all) {
		t.Error("a probe of the mesh's own is shown")
	}
}

func TestIDsAreShortAndPrinted(t *testing.T) {
	var s shortID
	s.set([]byte(strings.Repeat("a", 50)))
	if got := s.String(); got != strings.Repeat("a", 36) {
		t.Errorf("%q", got)
	}
	s.set([]byte("a\n<b>\x00"))
	if got := s.String(); strings.ContainsAny(got, "\n\x00") {
		t.Errorf("%q", got)
	}
}
