package fleet

import (
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/internal/kvevents"
)

// telling is three endpoints of which the first publishes events: nobody is there.
var telling = strings.Replace(three, "type: vllm", `type: vllm, kvEvents: {connect: "127.0.0.1:1"}`, 1)

// TestLocalHearsOfRestarts forgets a cache when the events say that the engine began
// anew, unless that was noticed before.
func TestLocalHearsOfRestarts(t *testing.T) {
	l, w := newLocal(t, telling)
	e := w.table().Models["m"].Endpoints[0]
	p := l.plains[e.Address]
	if e.Blocks == nil || len(w.table().Models["m"].WithBlocks) != 1 {
		t.Fatalf("endpoint %+v does not tell", e)
	}
	p.due.Store(1 << 60)
	l.heard(e.Address, p.hearing, kvevents.Lost, time.Now())
	if p.due.Load() != 0 {
		t.Error("the publisher is lost, and its engine is not looked at")
	}
	if w.table().Models["m"].Endpoints[0].KV == e.KV {
		t.Error("the publisher is lost, and its engine's cache is still believed in")
	}
	e = w.table().Models["m"].Endpoints[0]
	l.heard(e.Address, p.hearing, kvevents.Restarted, time.Now())
	again := w.table().Models["m"].Endpoints[0]
	if again.KV == e.KV || again.Blocks != e.Blocks {
		t.Error("the engine began anew, and its cache is still believed in")
	}
	l.heard(e.Address, p.hearing, kvevents.Lost, time.Now())
	again = w.table().Models["m"].Endpoints[0]
	p.restart()
	l.heard(e.Address, p.hearing, kvevents.Restarted, time.Now())
	if w.table().Models["m"].Endpoints[0].KV != again.KV {
		t.Error("a restart that was noticed counts twice")
	}
	l.heard(e.Address, &hearing{}, kvevents.Restarted, time.Now())
	l.heard("10.0.0.9:80", p.hearing, kvevents.Restarted, time.Now())
}

// TestLocalHearsWhomTheFileNames begins and ends with the file.
func TestLocalHearsWhomTheFileNames(t *testing.T) {
	l, w := newLocal(t, three)
	l.run(t, func() {
		write(t, l.path, telling)
		until(t, func() bool { return len(l.Conditions()) == 1 && l.Conditions()[0].Code == "no-kv-events" })
		if c := l.Conditions()[0]; !strings.Contains(c.Text, "1 of 3") || !strings.Contains(c.Text, "127.0.0.1:1") {
			t.Errorf("condition %q", c.Text)
		}
		if n, blocks := l.known(); n != 0 || blocks != 0 {
			t.Errorf("%d endpoints and %d blocks are known", n, blocks)
		}
		write(t, l.path, three)
		until(t, func() bool { return len(l.Conditions()) == 0 && len(w.table().Models["m"].WithBlocks) == 0 })
	})
}

// until waits for something that real files and connections bring about.
func until(t *testing.T, done func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("not within 20 s")
		}
	}
}
