package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/e2e/rig"
)

// TestReplicasFollowDemand from zero to two and back to zero: every request is answered, those
// too that come while there is no replica, and while replicas end.
func TestReplicasFollowDemand(t *testing.T) {
	weights := rig.MustCached(t, "models/*.gguf")
	file := "apiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: ant}\nspec: {weights: " + weights + ", layout: [{stages: 1}], backend: {slots: 1}, goal: {firstToken: 1s}, " +
		"scaling: {minReplicas: 0, maxReplicas: 2, scaleDownAfter: 4s}}\n---\n" +
		"apiVersion: millrace.dev/v1alpha1\nkind: Policy\nmetadata: {name: default}\nspec: {flow: {maxWait: {standard: 54s}}}\n"
	m := own(t, "-nodes", "2", "-config", rig.Write(t, filepath.Join(t.TempDir(), "mesh.yaml"), file))
	m.Engines = 2
	url := m.URL(t, "/v1/chat/completions")
	request := func(tokens int) rig.Chat {
		c := rig.Ask(tokens, "Hello!")
		c.Model = "ant"
		return c
	}
	ask := func(tokens int) error {
		a, err := rig.Post(t.Context(), url, request(tokens))
		if err != nil {
			return err
		}
		var c rig.Completion
		if err := json.Unmarshal(a.Body, &c); err != nil || a.Status != http.StatusOK {
			return fmt.Errorf("status %d: %.300s", a.Status, a.Body)
		}
		return nil
	}
	xds := m.Addr(t, "xds", "metrics")
	replicas := func() (float64, error) { return rig.Metric(xds, `millrace_xds_scale_current_replicas{model="ant"}`) }
	want := func(n float64) func() error {
		return func() error {
			got, err := replicas()
			if err == nil && got != n {
				err = fmt.Errorf("%v replicas, want %v", got, n)
			}
			return err
		}
	}
	rig.Wait(t, rig.BackLimit, "it is decided that there are none", func() error {
		if got := rig.Millrace(t, "", "status", "-dir", m.Dir); !strings.Contains(got.Stdout, "Asleep") || strings.Contains(got.Stdout, "degraded") {
			return fmt.Errorf("status:\n%s", got.Stdout)
		}
		return want(0)()
	})
	s, err := rig.Stream(t.Context(), url, streamed(request(8)), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("from zero: first token after %v", s.First.Round(time.Millisecond))
	// More at a time than one can do, until there are two: the last of them waits for far longer than the
	// goal allows, on a quick machine, too.
	var g errgroup.Group
	two := make(chan struct{})
	for range 16 {
		g.Go(func() error {
			for {
				if err := ask(24); err != nil {
					return err
				}
				select {
				case <-two:
					return nil
				default:
				}
			}
		})
	}
	rig.Wait(t, rig.BackLimit, "there are two", want(2))
	close(two)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	rig.Wait(t, rig.BackLimit, "one has ended", func() error {
		n, err := replicas()
		if err == nil && n > 1 {
			err = fmt.Errorf("%v replicas", n)
		}
		return err
	})
	if err := ask(4); err != nil {
		t.Errorf("while they end: %v", err)
	}
	rig.Wait(t, rig.BackLimit, "there are none again", want(0))
	if err := ask(4); err != nil {
		t.Errorf("from zero again: %v", err)
	}
}
