package drained

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestSet(t *testing.T) {
	path := In(t.TempDir())
	steps := []struct {
		node    string
		drain   bool
		changed bool
		want    string
	}{
		{"node-b", false, false, "[]"},
		{"node-b", true, true, "[node-b]"},
		{"node-b", true, false, "[node-b]"},
		{"node-a", true, true, "[node-a node-b]"},
		{"node-b", false, true, "[node-a]"},
		{"node-a", false, true, "[]"},
	}
	for i, s := range steps {
		changed, err := Set(path, s.node, s.drain, time.Unix(1, 0))
		all, readErr := Read(path)
		if got := fmt.Sprint(Names(all)); err != nil || readErr != nil || changed != s.changed || got != s.want {
			t.Errorf("step %d: %s, changed %t, %v, %v; want %s, %t", i, got, changed, err, readErr, s.want, s.changed)
		}
	}
}

// TestSetByMany: nobody's change is lost.
func TestSetByMany(t *testing.T) {
	path := In(t.TempDir())
	var g sync.WaitGroup
	for i := range 20 {
		g.Go(func() {
			if _, err := Set(path, fmt.Sprintf("node-%c", 'a'+i), true, time.Now()); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if all, err := Read(path); err != nil || len(all) != 20 {
		t.Errorf("%d nodes, %v; want 20", len(all), err)
	}
}

func TestReadRefusesWhatIsNoJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "drained.json")
	if err := os.WriteFile(path, []byte("node-a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || !strings.HasPrefix(err.Error(), path+": ") {
		t.Errorf("Read() = %v, want one that names the file", err)
	}
	if _, err := Set(path, "node-a", true, time.Now()); err == nil {
		t.Error("a file that can't be read was replaced")
	}
}

func TestFollow(t *testing.T) {
	path := In(t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan []string, 1)
	var g sync.WaitGroup
	g.Go(func() {
		_ = Follow(ctx, path, nil, slog.New(slog.DiscardHandler), func(all []Node) { got <- Names(all) })
	})
	for i, want := range []string{"[node-a]", "[]"} {
		if _, err := Set(path, "node-a", i == 0, time.Now()); err != nil {
			t.Fatal(err)
		}
		if names := <-got; fmt.Sprint(names) != want {
			t.Errorf("followed %v, want %s", names, want)
		}
	}
	cancel()
	g.Wait()
}
