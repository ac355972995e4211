package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
	meshstatus "millrace.dev/millrace/internal/status"
)

// drainedTokens is how long the streams of TestDrain are: longer than it takes to notice a drain.
const drainedTokens = 60

// drainLimit is how long a few of these streams may take on a busy machine.
const drainLimit = 4 * time.Minute

// TestDrain empties nodes one after the other and takes them back, under streams and
// conversations of ten turns, of which none fails and none is cut.
func TestDrain(t *testing.T) {
	file := rig.Write(t, filepath.Join(t.TempDir(), "mesh.yaml"), `apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
spec: {replicas: 2, layout: [{stages: 1}], backend: {slots: 4, queue: 64}}
`)
	m := own(t, "-nodes", "3", "-config", file)
	streams := rig.StartLoadOf(t, 2, func(ctx context.Context, client, n int) (rig.Outcome, error) {
		s, err := rig.Stream(ctx, m.URL(t, chatPath), map[string]any{
			"model": rig.Model, "messages": []rig.Message{rig.User(fmt.Sprintf("Stream %d of client %d: count.", n, client))},
			"max_tokens": drainedTokens, "ignore_eos": true, "stream": true, "stream_options": map[string]any{"include_usage": true},
		}, nil)
		if err == nil && s.Usage.Completion != drainedTokens {
			err = fmt.Errorf("%d tokens, want %d", s.Usage.Completion, drainedTokens)
		}
		return rig.Outcome{Replica: s.Header.Get("x-millrace-replica")}, err
	})
	talks := rig.StartLoadOf(t, 2, func(ctx context.Context, client, n int) (rig.Outcome, error) {
		session := fmt.Sprintf("drain-%d-%d", client, n)
		turns, err := rig.Converse(ctx, m.URL(t, chatPath), rig.Ask(4, "Talk "+session+" of ten turns."), 10,
			func(http.Header) []string { return []string{"x-session-id", session} })
		if err == nil && len(turns) != 10 {
			err = fmt.Errorf("%d turns", len(turns))
		}
		return rig.Outcome{}, err
	})
	more := func() {
		t.Helper()
		s, c := streams.Done(), talks.Done()
		rig.Wait(t, drainLimit, "streams and conversations end", func() error {
			if s, c := streams.Done()-s, talks.Done()-c; s < 2 || c < 1 {
				return fmt.Errorf("%d streams, %d conversations", s, c)
			}
			return nil
		})
	}
	on := func(command, node string, code int, want string, flags ...string) {
		t.Helper()
		got := rig.Millrace(t, "", append([]string{command, node, "-dir", m.Dir}, flags...)...)
		if t.Logf("%s %s %v: %d\n%s%s", command, node, flags, got.Code, got.Stdout, got.Stderr); got.Code != code || !strings.Contains(got.Stdout+got.Stderr, want) {
			t.Fatalf("want %d and %q", code, want)
		}
		if code == 0 { // what is refused changes nothing
			more()
		}
	}
	more()
	serving, free := m.serving(t)
	on("drain", serving[0], 0, "drained: nothing runs there")
	if n := m.node(t, serving[0]); n.Replica != "" || n.Running > 0 || n.Drain == nil || !n.Drain.Done {
		t.Errorf("the drained node: %+v, %+v", n, n.Drain)
	}
	xds := m.Process(t, "xds")
	rig.Kill(t, xds.PID)
	rig.Wait(t, rig.BackLimit, "xds is back, and knows what is drained", func() error {
		if err := m.Restarted(xds); err != nil {
			return err
		}
		var r meshstatus.Report
		if err := m.Status(t.Context(), &r); err != nil {
			return err
		}
		for _, n := range r.Nodes {
			if n.Node == serving[0] && n.Drain != nil && n.Drain.Done {
				return nil
			}
		}
		return errors.New("it does not")
	})
	on("drain", serving[1], 0, "it stays loaded as the last resort")
	on("drain", free, 1, free+" is the only node that serves smollm2")
	on("drain", "node-ab", 2, `unknown node "node-ab"; did you mean node-a?`)
	on("undrain", serving[1], 0, "in service, with smollm2-1")
	on("undrain", serving[0], 0, "in service")
	rig.Wait(t, rig.BackLimit, "all is as before", func() error {
		var r meshstatus.Report
		if err := m.Status(t.Context(), &r); err != nil {
			return err
		}
		for _, n := range r.Nodes {
			if n.Drain != nil || n.Replica != "" && n.State != "READY" {
				return fmt.Errorf("%+v", n)
			}
		}
		return nil
	})
	more()
	streams.MustAllSucceed(t)
	talks.MustAllSucceed(t)
	t.Logf("streams of %d tokens: %v; conversations of ten turns: %v", drainedTokens, streams, talks)

	if got := rig.Millrace(t, "", "drain", free, "-dir", m.Dir); got.Code != 0 {
		t.Fatalf("drain: %+v", got)
	}
	if err := m.End(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	again, err := rig.StartMesh(m.Dir, "-nodes", "3", "-config", file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := again.End(syscall.SIGTERM); err != nil {
			t.Errorf("after SIGTERM: %v", err)
			again.Abandon()
		}
	})
	m.Mesh = again
	if err := again.Ready(); err != nil {
		t.Fatal(err)
	}
	if n := m.node(t, free); n.Replica != "" || n.Drain == nil {
		t.Errorf("the node is drained no more when the mesh is started again: %+v", n)
	}
}

// serving returns the nodes of both replicas, in their order, and a node without one.
func (m *mesh) serving(t *testing.T) (nodes []string, free string) {
	t.Helper()
	var r meshstatus.Report
	if err := m.Status(t.Context(), &r); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(r.Nodes, func(a, b meshstatus.Node) int { return strings.Compare(a.Replica, b.Replica) })
	return []string{r.Nodes[1].Node, r.Nodes[2].Node}, r.Nodes[0].Node
}

// node returns what status has of a node.
func (m *mesh) node(t *testing.T, name string) meshstatus.Node {
	t.Helper()
	var r meshstatus.Report
	if err := m.Status(t.Context(), &r); err != nil {
		t.Fatal(err)
	}
	for _, n := range r.Nodes {
		if n.Node == name {
			return n
		}
	}
	t.Fatalf("no node %s: %+v", name, r.Nodes)
	return meshstatus.Node{}
}
