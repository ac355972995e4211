package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/e2e/rig"
)

// TestModelIsUnloadedAndLoadedOnDemand has a model that nobody asks for give its memory back, and
// those who ask then wait until it is loaded again: all of them get an answer. One that can't be
// loaded says so to who waits, and is loaded once it can be.
func TestModelIsUnloadedAndLoadedOnDemand(t *testing.T) {
	from, err := os.ReadFile(rig.MustCached(t, "models/*.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	weights := rig.Write(t, filepath.Join(dir, "model.gguf"), string(from))
	file := rig.Write(t, filepath.Join(dir, "mesh.yaml"), `apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
spec: {weights: `+weights+`, load: onDemand, keepAlive: 3s, replicas: 1}
`)
	m := own(t, "-nodes", "1", "-config", file)
	m.Engines = 1
	asleep := func() error {
		s, err := m.ReadState()
		if err != nil {
			return err
		}
		if p := s.Find("backend@node-a"); p.Name != "" {
			return fmt.Errorf("the backend is there: %+v", p)
		}
		if !s.Ready {
			return errors.New("the mesh is not ready")
		}
		return nil
	}
	ask := func() (rig.Answer, error) {
		return rig.Post(t.Context(), m.URL(t, "/v1/chat/completions"), rig.Ask(8, "Hello!"))
	}
	// The start proves the mesh without it: a backend that was started has a log.
	if _, err := os.Stat(m.File("logs", "backend@node-a.log")); !os.IsNotExist(err) {
		t.Errorf("a backend was started before anybody has asked: its log: %v", err)
	}
	for range 2 { // before anybody has asked, and afterwards
		rig.Wait(t, rig.BackLimit, "the model is unloaded", asleep)
		if got := rig.Millrace(t, "", "status", "-dir", m.Dir); !strings.Contains(got.Stdout, "not loaded") || strings.Contains(got.Stdout, "is down") {
			t.Errorf("status of what is not loaded:\n%s", got.Stdout)
		}
		var g errgroup.Group
		for range 6 { // more than there are slots
			g.Go(func() error {
				a, err := ask()
				if err == nil && a.Status != http.StatusOK {
					err = fmt.Errorf("status %d: %.300s", a.Status, a.Body)
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if p := m.Process(t, "backend@node-a"); p.PID == 0 {
			t.Errorf("the backend after the answers: %+v", p)
		}
	}
	// The engine says why, and Envoy passes it on, as there is nobody else to try.
	rig.Wait(t, rig.BackLimit, "the model is unloaded", asleep)
	if err := os.Rename(weights, weights+".away"); err != nil {
		t.Fatal(err)
	}
	for n := range 3 { // asleep, then known to be broken
		a, err := ask()
		if err != nil || a.Status != http.StatusServiceUnavailable || !strings.Contains(string(a.Body), "weights: open "+weights) {
			t.Errorf("try %d of what can't be loaded: status %d, %v: %.300s", n+1, a.Status, err, a.Body)
		}
	}
	rig.Wait(t, rig.BackLimit, "status has why it can't be loaded", func() error { // xds has it with the engine's next report
		if got := rig.Millrace(t, "", "status", "-dir", m.Dir); !strings.Contains(got.Stdout, "weights: open") {
			return fmt.Errorf("status of what can't be loaded:\n%s", got.Stdout)
		}
		return nil
	})
	if err := os.Rename(weights+".away", weights); err != nil {
		t.Fatal(err)
	}
	rig.Wait(t, rig.BackLimit, "it is loaded once it can be", func() error {
		a, err := ask()
		if err == nil && a.Status != http.StatusOK {
			err = fmt.Errorf("status %d: %.300s", a.Status, a.Body)
		}
		return err
	})
}
