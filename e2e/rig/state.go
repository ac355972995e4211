package rig

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"millrace.dev/millrace/internal/proc"
)

// State is DIR/state.json as it is promised to everybody. It is spelled out here
// once more, so that a change of the promise shows.
type State struct {
	Listen    string        `json:"listen"`
	TLS       string        `json:"tls"`
	Ready     bool          `json:"ready"`
	Processes []MeshProcess `json:"processes"`
}

// MeshProcess is one process of a mesh.
type MeshProcess struct {
	Name     string            `json:"name"`
	Role     string            `json:"role"`
	Node     string            `json:"node"`
	PID      int               `json:"pid"` // 0: it is down
	Addrs    map[string]string `json:"addrs"`
	Restarts int               `json:"restarts"`
	Since    time.Time         `json:"since"`
}

// ReadState reads state.json.
func (m *Mesh) ReadState() (State, error) {
	var s State
	b, err := os.ReadFile(m.File("state.json"))
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(b, &s)
}

// State is ReadState for tests.
func (m *Mesh) State(t testing.TB) State {
	t.Helper()
	s, err := m.ReadState()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Find returns the process of that name; the zero process if there is none.
func (s State) Find(name string) MeshProcess {
	i := slices.IndexFunc(s.Processes, func(p MeshProcess) bool { return p.Name == name })
	if i < 0 {
		return MeshProcess{}
	}
	return s.Processes[i]
}

// PIDs returns the process ids by name.
func (s State) PIDs() map[string]int {
	all := map[string]int{}
	for _, p := range s.Processes {
		all[p.Name] = p.PID
	}
	return all
}

// Process returns the process of that name, which must be in state.json: "xds",
// "extproc", "envoy", "engine@node-a", "nodeagent@node-a", "backend@node-a",
// "shard@node-a".
func (m *Mesh) Process(t testing.TB, name string) MeshProcess {
	t.Helper()
	p := m.State(t).Find(name)
	if p.Name == "" {
		t.Fatalf("state.json has no process %q", name)
	}
	return p
}

// Addr returns where the process listens for the given use: "http", "grpc",
// "metrics", "admin".
func (m *Mesh) Addr(t testing.TB, name, use string) string {
	t.Helper()
	a := m.Process(t, name).Addrs[use]
	if a == "" {
		t.Fatalf("state.json: %s has no %s address", name, use)
	}
	return a
}

// Down says which processes of the mesh are down.
func (s State) Down() error {
	var errs []error
	for _, p := range s.Processes {
		if p.PID == 0 {
			errs = append(errs, fmt.Errorf("%s is down", p.Name))
			continue
		}
		if st, err := proc.State(p.PID); err != nil || st.State == 'Z' || st.State == 'T' {
			errs = append(errs, fmt.Errorf("%s (pid %d): state %q %v", p.Name, p.PID, st.State, err))
		}
	}
	return errors.Join(errs...)
}

// Restarted says why a process does not run anew, or was not counted.
func (m *Mesh) Restarted(before MeshProcess) error {
	s, err := m.ReadState()
	if err != nil {
		return err
	}
	now := s.Find(before.Name)
	switch {
	case now.PID == before.PID:
		return fmt.Errorf("state.json still shows pid %d", before.PID)
	case now.PID == 0:
		return errors.New("it is down")
	case now.Restarts <= before.Restarts:
		return fmt.Errorf("restarts = %d, were %d", now.Restarts, before.Restarts)
	}
	return nil
}

// Replicas are the nodes of the default configuration, read from what runs: the
// sharded replica's nodes have a shard, the whole one's has only a backend.
type Replicas struct {
	Head  string // node with backend and shard
	Tail  string // node with a shard only
	Whole string // node with a backend only
}

// Replicas finds the default configuration's replicas.
func (m *Mesh) Replicas(t testing.TB) Replicas {
	t.Helper()
	var r Replicas
	s := m.State(t)
	for _, p := range s.Processes {
		if p.Role != "engine" {
			continue
		}
		backend := s.Find("backend@"+p.Node).Name != ""
		shard := s.Find("shard@"+p.Node).Name != ""
		switch {
		case backend && shard:
			r.Head = p.Node
		case shard:
			r.Tail = p.Node
		case backend:
			r.Whole = p.Node
		}
	}
	if r.Head == "" || r.Tail == "" || r.Whole == "" {
		t.Fatalf("state.json: want one replica on two nodes and one on a third, got %+v", r)
	}
	return r
}

func decodeStatus(got Result, v any) error {
	if err := json.Unmarshal([]byte(got.Stdout), v); err != nil {
		return fmt.Errorf("status -json: exit code %d, %w: %s%s", got.Code, err, got.Stdout, got.Stderr)
	}
	return nil
}
