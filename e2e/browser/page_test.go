//go:build page

package browser_test

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/browser"
	"millrace.dev/millrace/e2e/rig"
)

func TestMain(m *testing.M) { os.Exit(rig.Main(m)) }

// TestPageOfAMesh: what a real mesh's page shows while one chats, an engine is killed, xds is
// killed; and what 50 viewers cost.
func TestPageOfAMesh(t *testing.T) {
	m := rig.OwnMesh(t)
	address := m.Addr(t, "xds", "metrics")
	if !strings.Contains(m.Out.String(), "page: http://"+address+"/page/") {
		t.Errorf("millrace up does not print where the page is: %s", m.Out)
	}
	b := browser.Start(t)
	b.Do("open", "url", "http://"+address+"/page/")
	b.Do("await", "health", "well", "text", "smollm2-1")
	said := b.Do("chat", "words", "Say hello in five words.")
	if want := regexp.MustCompile(`^node-[a-c] smollm2-[01] · TTFT [\d,.]+ m?s · [\d.]+ tok/s · \d+ tokens · \d+ of \d+ prompt tokens cached$`); !want.MatchString(said.Text) || said.Answer == "" {
		t.Errorf("the chat's answer %q has %q", said.Answer, said.Text)
	}
	if why := b.Do("explain").Text; !strings.Contains(why, "✓ answered") || !strings.Contains(why, "Predicted") || strings.Contains(why, "five words") {
		t.Errorf("the decision is explained as %q", why)
	}
	b.Check("mesh-well")
	cost(t, m, address)

	t.Run("an engine is killed", func(t *testing.T) {
		before := m.Process(t, "engine@node-c")
		rig.Kill(t, before.PID)
		b.Do("await", "health", "degraded", "text", "smollm2-1 takes no requests")
		b.Check("mesh-dying")
		rig.Wait(t, rig.BackLimit, "the engine is back", func() error { return m.Restarted(before) })
		b.Do("await", "health", "well")
	})
	t.Run("xds is killed", func(t *testing.T) {
		before := m.Process(t, "xds")
		rig.Kill(t, before.PID)
		b.Do("await", "health", "lost", "text", "xds does not answer")
		rig.Wait(t, rig.BackLimit, "xds is back", func() error { return m.Restarted(before) })
		b.Do("await", "health", "well", "text", "xds was started")
	})
}

// cost prints what 50 viewers cost xds of a mesh that works, so that there is something new twice a
// second, beside what it takes without them.
func cost(t *testing.T, m *rig.Mesh, address string) {
	load := m.StartLoad(t, 2)
	defer load.Stop()
	pid := m.Process(t, "xds").PID
	took := func() float64 {
		before, began := cpu(t, pid), time.Now()
		frames(t, address, 1, 20) // as long as a viewer gets so many beats
		return 100 * (cpu(t, pid) - before).Seconds() / time.Since(began).Seconds()
	}
	took() // until the load has begun
	alone := took()
	stop := frames(t, address, 50, 0)
	with := took()
	if n := rig.MustMetric(t, address, "millrace_xds_page_viewers"); n < 51 {
		t.Errorf("%v viewers follow, want 51 or more", n)
	}
	stop()
	fmt.Printf("page: xds takes %.2f %% of a core with 2 viewers, %.2f %% with 52: 50 viewers cost %.2f %%\n", alone, with, with-alone)
}

// cpu is what the threads of a process have run, to the nanosecond: clock ticks are too coarse.
func cpu(t *testing.T, pid int) (sum time.Duration) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d: %v", pid, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that has ended
		}
		var ns int64
		if _, err := fmt.Sscan(string(b), &ns); err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// frames has so many viewers follow the page: until each has had beats, or, with none, until stop
// is called.
func frames(t *testing.T, address string, viewers, beats int) (stop func()) {
	var open []*http.Response
	done := make(chan struct{}, viewers)
	for range viewers {
		resp, err := http.Get("http://" + address + "/page/stream")
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, resp)
		go func() { // ends with the stream, which stop closes
			defer func() { done <- struct{}{} }()
			n := 0
			for lines := bufio.NewScanner(resp.Body); lines.Scan() && (beats == 0 || n < beats); {
				if lines.Text() == "event: beat" {
					n++
				}
			}
		}()
	}
	stop = func() {
		for _, resp := range open {
			_ = resp.Body.Close()
		}
		for range viewers {
			<-done
		}
	}
	if beats > 0 {
		for range viewers {
			<-done
		}
		for range viewers {
			done <- struct{}{}
		}
		stop()
	}
	return stop
}
