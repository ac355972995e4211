package alone

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestPlainServers runs the parts in order on one fleet.
func TestPlainServers(t *testing.T) {
	f := newFleet(t)
	t.Run("ten turns stay, by header", func(t *testing.T) {
		f.tenTurns(t, "by header", func(http.Header) []string { return []string{"x-session-id", "ten"} })
	})
	t.Run("ten turns stay, by cookie", func(t *testing.T) {
		f.tenTurns(t, "by cookie", func(last http.Header) []string { return []string{"cookie", cookie(last)} })
	})
	t.Run("ten turns stay, by their beginning", func(t *testing.T) {
		f.tenTurns(t, "by its beginning", func(http.Header) []string { return nil })
	})
	t.Run("conversations spread", f.testSpread)
	t.Run("what engines show is learned", f.testLearned)
	t.Run("bodies are unpacked and renamed", f.testBodies)
	t.Run("the file is read again", f.testReload)
	t.Run("an engine dies and comes back", f.testDeath)
	t.Run("extproc dies", f.testWithoutExtproc)
}

// cookie returns the session cookie that an answer set, as a request sends it.
func cookie(h http.Header) string {
	for _, c := range (&http.Response{Header: h}).Cookies() {
		if c.Name == "millrace-session" {
			return c.Name + "=" + c.Value
		}
	}
	return ""
}

// tenTurns holds a conversation; header returns what a request carries, given the
// header of the last answer with a cookie.
func (f *fleet) tenTurns(t *testing.T, about string, header func(last http.Header) []string) {
	before := f.served(t)
	messages := []message{{"user", "We speak about what is known " + about + ". Say something."}}
	last := http.Header{}
	var cached []int
	for turn := range 10 {
		c, h, err := f.ask(messages, 6, header(last)...)
		if err != nil {
			t.Fatalf("turn %d: %v", turn+1, err)
		}
		if cookie(h) != "" {
			last = h
		}
		cached = append(cached, c.Usage.Details.Cached)
		if turn > 0 && c.Usage.Details.Cached == 0 {
			t.Errorf("turn %d: %d cached tokens of %d", turn+1, c.Usage.Details.Cached, c.Usage.Prompt)
		}
		messages = append(messages, c.Choices[0].Message, message{"user", fmt.Sprintf("Go on, part %d.", turn)})
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
	work := make(chan int)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for i := range work {
				text := strings.Repeat(fmt.Sprintf("%s %d ", about, i), 3)
				if _, _, err := f.ask([]message{{"user", text}}, 4, "x-session-id", fmt.Sprintf("%s-%d", about, i)); err != nil {
					t.Errorf("conversation %d about %s: %v", i, about, err)
				}
			}
		})
	}
	for i := range conversations {
		work <- i
	}
	close(work)
	wg.Wait()
	got = f.served(t)
	for i := range got {
		got[i] -= before[i]
	}
	return got
}

// testLearned shows that extproc has counted cached tokens, which only the engines'
// metrics tell, and has looked at nothing in vain.
func (f *fleet) testLearned(t *testing.T) {
	f.await(t, func() error {
		_, b, err := get("http://" + address(f.ports.metric) + "/metrics")
		switch text := string(b); {
		case err != nil:
			return err
		case !strings.Contains(text, `millrace_extproc_endpoints{state="ready"} 3`):
			return errors.New("not 3 ready endpoints")
		case strings.Contains(text, "millrace_extproc_cached_tokens_total 0\n"):
			return errors.New("no cached tokens seen")
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
	gone := address(f.ports.engines[1])
	var rest []string
	for line := range strings.Lines(whole) {
		if !strings.Contains(line, gone) {
			rest = append(rest, line)
		}
	}
	f.write(t, "fleet.yaml", strings.Join(rest, ""))
	f.await(t, func() error {
		if !strings.Contains(f.log.String(), " endpoints=2 ") {
			return errors.New("extproc has not read the file with two endpoints")
		}
		return nil
	})
	before := f.served(t)
	for i := range 12 {
		if _, _, err := f.ask([]message{{"user", fmt.Sprintf("reload %d", i)}}, 2); err != nil {
			t.Error(err)
		}
	}
	if after := f.served(t); after[1] != before[1] {
		t.Errorf("%s is not in the file and got %d requests", gone, after[1]-before[1])
	}
	f.write(t, "fleet.yaml", whole+"\nendpoint: []\n")
	f.await(t, func() error { return f.troubled("fleet-file") })
	if _, _, err := f.ask([]message{{"user", "with a bad file"}}, 2); err != nil {
		t.Error(err)
	}
	f.write(t, "fleet.yaml", whole)
	f.await(t, f.ready)
}

// testDeath kills an engine under requests: none may fail, and it is said who is
// missing.
func (f *fleet) testDeath(t *testing.T) {
	f.engines[2].Kill()
	<-f.engines[2].Done()
	for i := range 12 {
		if _, _, err := f.ask([]message{{"user", fmt.Sprintf("death %d", i)}}, 2); err != nil {
			t.Error(err)
		}
	}
	f.await(t, func() error { return f.troubled("endpoints-down") })
	f.startEngine(t, 2)
	f.await(t, f.ready)
	if got := f.begin(t, "return", 18); got[2] == 0 {
		t.Errorf("the engine that is back gets nothing: %v\n%s", got, f.decisions(18))
	}
}

// testWithoutExtproc kills extproc under requests: Envoy goes on without it.
func (f *fleet) testWithoutExtproc(t *testing.T) {
	f.extproc.Kill()
	<-f.extproc.Done()
	for i := range 9 {
		if _, _, err := f.ask([]message{{"user", fmt.Sprintf("alone %d", i)}}, 2); err != nil {
			t.Error(err)
		}
	}
	f.startExtproc(t)
	f.await(t, func() error { return f.hosts(3) })
	f.await(t, f.ready)
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
