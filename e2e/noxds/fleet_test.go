package noxds

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// TestFleetFile runs the parts in order on one fleet.
func TestFleetFile(t *testing.T) {
	f := newFleet(t)
	t.Run("ten turns stay, by header", func(t *testing.T) {
		f.tenTurns(t, "by header", func(http.Header) []string { return []string{"x-session-id", "ten"} })
	})
	t.Run("ten turns stay, by cookie", func(t *testing.T) {
		f.tenTurns(t, "by cookie", func(last http.Header) []string { return []string{"cookie", rig.SessionCookie(last)} })
	})
	t.Run("ten turns stay, by their beginning", func(t *testing.T) {
		f.tenTurns(t, "by its beginning", func(http.Header) []string { return nil })
	})
	t.Run("conversations spread", f.testSpread)
	t.Run("what engines show is learned", f.testLearned)
	t.Run("what can't fit reaches no engine", f.testContext)
	t.Run("bodies are unpacked and renamed", f.testBodies)
	t.Run("the file is read again", f.testReload)
	t.Run("an engine dies and comes back", f.testDeath)
	t.Run("extproc dies", f.testWithoutExtproc)
}

// tenTurns holds a conversation; header returns what a request carries, given the
// header of the last answer with a cookie.
func (f *fleet) tenTurns(t *testing.T, about string, header func(last http.Header) []string) {
	before := f.served(t)
	messages := []rig.Message{rig.User("We speak about what is known " + about + ". Say something.")}
	last := http.Header{}
	var cached []int
	for turn := range 10 {
		c, h, err := f.ask(messages, 6, header(last)...)
		if err != nil {
			t.Fatalf("turn %d: %v", turn+1, err)
		}
		if rig.SessionCookie(h) != "" {
			last = h
		}
		cached = append(cached, c.Usage.Details.Cached)
		if turn > 0 && c.Usage.Details.Cached == 0 {
			t.Errorf("turn %d: %d cached tokens of %d", turn+1, c.Usage.Details.Cached, c.Usage.Prompt)
		}
		messages = append(messages, c.Choices[0].Message, rig.User(fmt.Sprintf("Go on, part %d.", turn)))
	}
	after, hosts := f.served(t), 0
	for i := range after {
		if n := after[i] - before[i]; n == 10 {
			hosts++
		} else if n != 0 {
			t.Errorf("engine %d got %d of the ten turns", i, n)
		}
	}
	if hosts != 1 {
		t.Errorf("%d engines served all turns, want 1", hosts)
	}
	t.Logf("cached tokens by turn %v", cached)
}

// testContext sends prompts that are longer than the context that engines say they have: the
// file says nothing of it, and has no tokenizer.
func (f *fleet) testContext(t *testing.T) {
	text := strings.Repeat("Some words of a long text. ", 6000)
	tests := map[string]struct{ fields, want string }{
		"/v1/chat/completions": {`"messages":[{"role":"user","content":"` + text + `"}]`, `"code":"context_length_exceeded"`},
		"/v1/completions":      {`"prompt":"` + text + `"`, `"code":"context_length_exceeded"`},
		"/v1/responses":        {`"input":"` + text + `"`, `"code":"context_length_exceeded"`},
		"/v1/embeddings":       {`"input":"` + text + `"`, `"code":"context_length_exceeded"`},
		"/v1/messages":         {`"max_tokens":1,"messages":[{"role":"user","content":"` + text + `"}]`, "prompt is too long: "},
	}
	before := f.served(t)
	for path, tt := range tests {
		status, b, err := f.post(path, []byte(`{"model":"smollm2",`+tt.fields+`}`))
		if err != nil || status != http.StatusBadRequest || !strings.Contains(string(b), tt.want) {
			t.Errorf("%s: status %d, %v: %.300s; want %s", path, status, err, b, tt.want)
		}
	}
	if after := f.served(t); after != before {
		t.Errorf("engines got %v requests, had %v", after, before)
	}
}

// testSpread begins conversations under load: three equal engines get a third each.
func (f *fleet) testSpread(t *testing.T) {
	const conversations, band = 90, 0.15
	got := f.begin(t, "topic", conversations)
	for i := range got {
		share := float64(got[i]) / conversations
		t.Logf("engine %d: %.0f %% of the conversations", i, 100*share)
		if share < 1.0/3-band || share > 1.0/3+band {
			t.Errorf("engine %d got %.2f of the conversations, want 0.33 ± %.2f", i, share, band)
		}
	}
}

// begin begins so many conversations, six at a time, and returns how many each
// engine got.
func (f *fleet) begin(t *testing.T, about string, conversations int) (got [3]int) {
	before := f.served(t)
	rig.Each(conversations, 6, func(i int) {
		text := strings.Repeat(fmt.Sprintf("%s %d ", about, i), 3)
		if _, _, err := f.ask([]rig.Message{rig.User(text)}, 4, "x-session-id", fmt.Sprintf("%s-%d", about, i)); err != nil {
			t.Errorf("conversation %d about %s: %v", i, about, err)
		}
	})
	got = f.served(t)
	for i := range got {
		got[i] -= before[i]
	}
	return got
}

// testLearned shows that extproc has counted cached tokens, which only the engines'
// metrics have, and has no failed scrape.
func (f *fleet) testLearned(t *testing.T) {
	f.await(t, "extproc has learned", func() error {
		m, err := rig.Metrics(f.admin())
		switch {
		case err != nil:
			return err
		case m[`millrace_extproc_endpoints{state="ready"}`] != 3:
			return errors.New("not 3 ready endpoints")
		case m[`millrace_extproc_cached_tokens_total{model="smollm2"}`] == 0:
			return errors.New("no cached tokens counted")
		case m[`millrace_extproc_expected_cached_tokens_total{model="smollm2"}`] == 0:
			return errors.New("no tokens were expected to be cached")
		}
		return nil
	})
	if err := f.ready(); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(filepath.Join(f.dir, "access.log"))
	if err != nil || !strings.Contains(string(b), `"decision":"sticky `) {
		t.Errorf("the access log tells no decision: %v %.500s", err, b)
	}
}

// testReload takes an engine out of the file, breaks the file, and makes it good
// again.
func (f *fleet) testReload(t *testing.T) {
	whole := f.adapt(t, "fleet.yaml")
	gone := rig.Address(f.ports.engines[1])
	var rest []string
	for line := range strings.Lines(whole) {
		if !strings.Contains(line, gone) {
			rest = append(rest, line)
		}
	}
	f.write(t, "fleet.yaml", strings.Join(rest, ""))
	f.await(t, "extproc has read the file", func() error {
		if !strings.Contains(f.extproc.Out.String(), " endpoints=2 ") {
			return errors.New("extproc has not read the file with two endpoints")
		}
		return nil
	})
	before := f.served(t)
	for i := range 12 {
		if _, _, err := f.ask([]rig.Message{rig.User(fmt.Sprintf("reload %d", i))}, 2); err != nil {
			t.Error(err)
		}
	}
	if after := f.served(t); after[1] != before[1] {
		t.Errorf("%s is not in the file and got %d requests", gone, after[1]-before[1])
	}
	f.write(t, "fleet.yaml", whole+"\nendpoint: []\n")
	f.await(t, "extproc complains of the file", func() error { return rig.HasCondition(f.admin(), "fleet-file") })
	if _, _, err := f.ask([]rig.Message{rig.User("with a bad file")}, 2); err != nil {
		t.Error(err)
	}
	f.write(t, "fleet.yaml", whole)
	f.await(t, "extproc has no condition", f.ready)
}

// testDeath kills an engine under requests: none may fail, and it is said who is
// missing.
func (f *fleet) testDeath(t *testing.T) {
	f.engines[2].KillAndWait()
	for i := range 12 {
		if _, _, err := f.ask([]rig.Message{rig.User(fmt.Sprintf("death %d", i))}, 2); err != nil {
			t.Error(err)
		}
	}
	f.await(t, "extproc complains of an engine", func() error { return rig.HasCondition(f.admin(), "endpoints-down") })
	f.startEngine(2)
	f.await(t, "extproc has no condition", f.ready)
	if got := f.begin(t, "return", 18); got[2] == 0 {
		t.Errorf("the engine that is back gets nothing: %v\n%s", got, f.decisions(18))
	}
}

// testWithoutExtproc kills extproc under requests: Envoy continues without it.
func (f *fleet) testWithoutExtproc(t *testing.T) {
	f.extproc.KillAndWait()
	for i := range 9 {
		if _, _, err := f.ask([]rig.Message{rig.User(fmt.Sprintf("alone %d", i))}, 2); err != nil {
			t.Error(err)
		}
	}
	f.startExtproc()
	f.await(t, "Envoy has all", func() error { return f.hosts(3) })
	f.await(t, "extproc has no condition", f.ready)
	f.tenTurns(t, "after a restart", func(http.Header) []string { return []string{"x-session-id", "again"} })
}

// decisions returns the last so many, by the access log.
func (f *fleet) decisions(n int) string {
	b, err := os.ReadFile(filepath.Join(f.dir, "access.log"))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
