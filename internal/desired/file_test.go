package desired

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"millrace.dev/millrace/internal/config"
)

// followed is a File that runs in a bubble of fake time over real files.
type followed struct {
	*File
	t    *testing.T
	path string
	log  *bytes.Buffer
}

func start(t *testing.T, path string, derive Derive, admit Admit) *followed {
	t.Helper()
	var log bytes.Buffer
	f, err := Open(path, derive, admit, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- f.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	time.Sleep(3 * poll)
	synctest.Wait()
	return &followed{File: f, t: t, path: path, log: &log}
}

// after lets the polls come that an edit needs.
func (f *followed) after() Published {
	time.Sleep(3 * poll)
	synctest.Wait()
	p, _ := f.Latest()
	return p
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// want checks the models in force and a fault.
func (f *followed) want(p Published, models, fault string) {
	f.t.Helper()
	var names []string
	for _, m := range p.State.Models {
		names = append(names, m.Name)
	}
	if got := strings.Join(names, " "); got != models {
		f.t.Errorf("models %q, want %q", got, models)
	}
	text := ""
	if err := config.Join(p.Faults); err != nil {
		text = err.Error()
	}
	if (fault == "") != (text == "") || !strings.Contains(text, fault) {
		f.t.Errorf("faults %q, want %q", text, fault)
	}
}

func TestFileIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "mesh.yaml")
		write(t, path, modelA)
		f := start(t, path, nil, nil)
		first, next := f.Latest()
		f.want(first, "a", "")

		write(t, path, modelA+"---\n"+modelB) // as an editor that writes in place
		f.want(f.after(), "a b", "")
		select {
		case <-next:
		default:
			t.Error("nobody was called")
		}

		write(t, path+".new", modelB)
		if err := os.Rename(path+".new", path); err != nil { // as an editor that replaces
			t.Fatal(err)
		}
		f.want(f.after(), "b", "")

		write(t, path, strings.Replace(modelA, "weights", "wieghts", 1)+"---\n"+head+"kind: Modle\n")
		p := f.after()
		f.want(p, "b", path+`:4: spec.wieghts: unknown field; did you mean weights?`)
		if len(p.Faults) != 3 || p.Faults[0].Kind != "Model" || p.Faults[0].Name != "a" {
			t.Errorf("%d faults %+v, want all 3, with their object", len(p.Faults), p.Faults)
		}
		again, _ := f.Latest()
		f.after()
		if n := strings.Count(f.log.String(), "refused"); n != 1 {
			t.Errorf("the fault is logged %d times, want once", n)
		}
		if now, _ := f.Latest(); now.State != again.State {
			t.Error("the State is replaced by itself")
		}

		write(t, path, "# soon\n")
		f.want(f.after(), "b", "no object in it")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		f.want(f.after(), "b", "no such file")
		write(t, path, modelB)
		if p := f.after(); p.State != again.State {
			t.Error("what was in force before is a new State")
		}
		f.want(f.after(), "b", "")
	})
}

func TestFileBehindLinksOfAConfigMap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		version := func(name, text string) {
			if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, name, "mesh.yaml"), text)
			if err := os.Symlink(name, filepath.Join(dir, "..tmp")); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
				t.Fatal(err)
			}
		}
		version("..1", modelA)
		path := filepath.Join(dir, "mesh.yaml")
		if err := os.Symlink("..data/mesh.yaml", path); err != nil {
			t.Fatal(err)
		}
		f := start(t, path, nil, nil)
		version("..2", modelB)
		f.want(f.after(), "b", "")
	})
}

func TestFileThatIsBeingWrittenIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "mesh.yaml")
		write(t, path, modelA+"---\n"+modelB)
		f := start(t, path, nil, nil)
		first, _ := f.Latest()
		for range 20 { // never the same for two polls
			write(t, path, "")
			time.Sleep(poll / 2)
			write(t, path, modelA)
			time.Sleep(poll / 2)
		}
		if now, _ := f.Latest(); now.State != first.State || len(now.Faults) > 0 {
			t.Errorf("half a file is in force: %+v", now)
		}
		write(t, path, modelA+"---\n"+modelB)
		if p := f.after(); p.State != first.State {
			t.Error("what was there before is a new State")
		}
	})
}

func TestKeyFileIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		path, key := filepath.Join(dir, "mesh.yaml"), filepath.Join(dir, "key")
		text := modelA + "---\n" + head + "kind: Policy\nmetadata: {name: default}\nspec:\n  sessions:\n    cookie:\n      keyFile: key\n"
		write(t, path, text)
		write(t, key, strings.Repeat("a", 32)+"zz")
		f := start(t, path, nil, nil)
		first, _ := f.Latest()
		write(t, key, strings.Repeat("b", 32)+"zz")
		second := f.after()
		if bytes.Equal(first.State.CookieKey, second.State.CookieKey) || second.State.Policy.Generation != 2 {
			t.Errorf("the key was not read again: %q, %+v", second.State.CookieKey, second.State.Policy)
		}
		write(t, key, "short")
		f.want(f.after(), "a", path+":12: spec.sessions.cookie.keyFile: ")
		if err := os.Remove(key); err != nil {
			t.Fatal(err)
		}
		f.want(f.after(), "a", "no such file")
		write(t, key, strings.Repeat("c", 32)+"zz")
		f.want(f.after(), "a", "")
	})
}

func TestWhatIsNotAdmittedIsAFaultByLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "mesh.yaml")
		write(t, path, modelA)
		admit := func(s *State) []config.Fault {
			if m, ok := s.Model("b"); ok {
				return []config.Fault{{Kind: m.Kind, Name: m.Name, Path: "spec.weights", Text: "never"}}
			}
			return nil
		}
		derive := func(f config.File, at config.Source) (config.File, []config.Fault) {
			if !at.Sets("Model", "a", "spec.replicas") {
				f.Models[0].Spec.Replicas = 7
			}
			return f, nil
		}
		f := start(t, path, derive, admit)
		if p, _ := f.Latest(); p.State.Models[0].Spec.Replicas != 7 {
			t.Error("not derived")
		}
		write(t, path, modelA+"---\n"+modelB)
		f.want(f.after(), "a", path+":9: spec.weights: never")
	})
}

func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	if _, err := Open(path, nil, nil, slog.Default()); err == nil {
		t.Error("a file that is not there is read")
	}
	write(t, path, "# nothing\n")
	for _, name := range []string{path, ""} {
		f, err := Open(name, nil, nil, slog.Default())
		if err != nil {
			t.Fatal(err)
		}
		if p, _ := f.Latest(); p.State.Default() != config.DefaultModel {
			t.Errorf("%q: %+v, want the defaults", name, p.State)
		}
	}
	write(t, path, "kind: Model\n")
	if _, err := Open(path, nil, nil, slog.Default()); err == nil || !strings.Contains(err.Error(), path+":1: ") {
		t.Errorf("error %v, want the faults by line", err)
	}
}
