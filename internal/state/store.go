package state

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"millrace.dev/millrace/internal/proc"
)

// Store keeps the file in step with what is reported, and with the kernel: a
// process that has ended is never written as alive.
type Store struct {
	path string // constant

	// mu guards the fields below, and the order of writes.
	mu      sync.Mutex
	state   State
	written []byte // what the file holds
	err     error  // of the last write
}

// Create writes the first state of a mesh to s.Dir.
func Create(s State) (*Store, error) {
	st := &Store{path: filepath.Join(s.Dir, fileName), state: clone(s)}
	return st, st.Update(func(*State) {})
}

// Update changes the state and writes it if anything is different. The error is
// that of the write; the change stands and the next Update tries again.
func (st *Store) Update(change func(*State)) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	change(&st.state)
	for i := range st.state.Processes {
		verify(&st.state.Processes[i], time.Now())
	}
	return st.writeLocked()
}

// State returns a copy of the present state.
func (st *Store) State() State {
	st.mu.Lock()
	defer st.mu.Unlock()
	return clone(st.state)
}

// Err returns the error of the last write.
func (st *Store) Err() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.err
}

func clone(s State) State {
	s.Processes = slices.Clone(s.Processes)
	for i := range s.Processes {
		s.Processes[i].Addrs = maps.Clone(s.Processes[i].Addrs)
	}
	return s
}

// verify asks the kernel about a process that is said to run.
func verify(p *Process, now time.Time) {
	if p.PID == 0 {
		p.Status = Down
		return
	}
	stat, err := proc.State(p.PID)
	switch {
	case err != nil, stat.State == 'Z', stat.State == 'X':
		p.PID, p.Status, p.Since = 0, Down, now.UTC()
		p.Reason = "the process has ended"
	case stat.State == 'T':
		p.Status, p.Reason = Stopped, "stopped by a signal (SIGSTOP); kill -CONT lets it run again"
	default:
		p.Status, p.Reason = Running, ""
	}
}

// writeLocked replaces the file whole, so that a reader sees the old or the new
// state and nothing between.
func (st *Store) writeLocked() error {
	b, err := json.MarshalIndent(st.state, "", "  ")
	if err == nil && bytes.Equal(b, st.written) {
		return nil
	}
	if err == nil {
		err = replace(st.path, append(b, '\n'))
	}
	if st.err = err; err == nil {
		st.written = b
	}
	return err
}

func replace(path string, b []byte) error {
	tmp := path + ".tmp" // one writer: the folder is locked
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
