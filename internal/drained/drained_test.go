package drained

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace.dev/millrace/internal/obs"
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
	_, err := Set(path, "node-a", true, time.Now())
	if h := (*obs.Hint)(nil); !errors.As(err, &h) || !strings.Contains(h.Next, "remove it") {
		t.Errorf("Set() = %v, want the way out", err)
	}
}

// TestFollowTriesAgain has the file in a state in which it can't be read, and then be read
// though the file itself, as stat shows it, has not changed.
func TestFollowTriesAgain(t *testing.T) {
	path := In(t.TempDir())
	if _, err := Set(path, "node-a", true, time.Now()); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1e9, 0)
	put := func(text []byte) { // the same file, as large and as old
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Error(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Error(err)
		}
	}
	put(bytes.Repeat([]byte("x"), len(good)))
	ctx, cancel := context.WithCancel(t.Context())
	failed, got := make(chan struct{}, 1), make(chan []string, 1)
	var g sync.WaitGroup
	g.Go(func() {
		log := slog.New(slog.NewTextHandler(writer(func() { failed <- struct{}{} }), &slog.HandlerOptions{Level: slog.LevelWarn}))
		_ = Follow(ctx, path, nil, log, func(all []Node) { got <- Names(all) })
	})
	<-failed
	put(good)
	select {
	case names := <-got:
		if fmt.Sprint(names) != "[node-a]" {
			t.Errorf("followed %v", names)
		}
	case <-time.After(10 * time.Second):
		t.Error("a file that could not be read is not tried again")
	}
	cancel()
	g.Wait()
}

// writer calls the function at the first write.
func writer(f func()) io.Writer { return &once{f: f} }

type once struct {
	sync.Once
	f func()
}

func (o *once) Write(b []byte) (int, error) {
	o.Do(o.f)
	return len(b), nil
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
