package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/internal/proc"
)

// state is DIR/state.json as it is promised to everybody. It is spelled out here
// once more, so that a change of the promise shows.
type state struct {
	Listen    string    `json:"listen"`
	Ready     bool      `json:"ready"`
	Processes []process `json:"processes"`
}

type process struct {
	Name     string            `json:"name"`
	Role     string            `json:"role"`
	Node     string            `json:"node"`
	PID      int               `json:"pid"`
	Addrs    map[string]string `json:"addrs"`
	Restarts int               `json:"restarts"`
	Since    time.Time         `json:"since"`
}

func (m *mesh) read() (state, error) {
	var s state
	b, err := os.ReadFile(filepath.Join(m.dir, "state.json"))
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(b, &s)
}

func (m *mesh) state(t *testing.T) state {
	t.Helper()
	s, err := m.read()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// find returns the process of that name; the zero process if there is none.
func (s state) find(name string) process {
	i := slices.IndexFunc(s.Processes, func(p process) bool { return p.Name == name })
	if i < 0 {
		return process{}
	}
	return s.Processes[i]
}

func (m *mesh) process(t *testing.T, name string) process {
	t.Helper()
	p := m.state(t).find(name)
	if p.Name == "" {
		t.Fatalf("state.json has no process %q", name)
	}
	return p
}

// addr returns where the process listens for the given use.
func (m *mesh) addr(t *testing.T, name, use string) string {
	t.Helper()
	a := m.process(t, name).Addrs[use]
	if a == "" {
		t.Fatalf("state.json: %s has no %s address", name, use)
	}
	return a
}

// running says which processes of the mesh are down.
func (s state) running() error {
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

// replicas are the layout of the default configuration, read from what runs: the
// sharded replica's nodes have a shard, the whole one's has only a backend.
type replicas struct {
	head  string // node with backend and shard
	tail  string // node with a shard only
	whole string // node with a backend only
}

func (s state) replicas() replicas {
	var r replicas
	for _, p := range s.Processes {
		if p.Role != "engine" {
			continue
		}
		backend := s.find("backend@"+p.Node).Name != ""
		shard := s.find("shard@"+p.Node).Name != ""
		switch {
		case backend && shard:
			r.head = p.Node
		case shard:
			r.tail = p.Node
		case backend:
			r.whole = p.Node
		}
	}
	return r
}

func (m *mesh) replicas(t *testing.T) replicas {
	t.Helper()
	r := m.state(t).replicas()
	if r.head == "" || r.tail == "" || r.whole == "" {
		t.Fatalf("state.json: want one replica on two nodes and one on a third, got %+v", r)
	}
	return r
}

// marked returns the processes that inherited the mark of a mesh.
func marked(mark string) []int {
	var pids []int
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || !slices.Contains(strings.Split(string(b), "\x00"), markKey+"="+mark) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(f, "/proc/%d/environ", &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// describe names processes for a person.
func describe(pids []int) []string {
	var lines []string
	for _, pid := range pids {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		lines = append(lines, fmt.Sprintf("%d %.120s", pid, strings.Join(args, " ")))
	}
	return lines
}
