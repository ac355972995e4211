package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"millrace.dev/millrace/internal/proc"
	"millrace.dev/millrace/internal/regular"
)

// Store keeps the file in step with what is reported, and with the kernel: a
// process that has ended is never written as alive.
type Store struct {
	// Constant.
	path string
	lock *os.File // to say by it that the file can't be written

	// mu guards the fields below, and the order of writes.
	mu      sync.Mutex
	state   State
	written []byte // what the file holds
	err     error  // of the last write
}

// Create writes the first state of a mesh to s.Dir.
func Create(s State) (*Store, error) {
	lock, err := openLock(s.Dir) // until the process ends
	if err != nil {
		return nil, err
	}
	st := &Store{path: filepath.Join(s.Dir, fileName), lock: lock, state: clone(s)}
	return st, st.Update(func(*State) {})
}

// Update changes the state and writes it if anything is different. The error is
// that of the write; the change stands and the next Update tries again.
func (st *Store) Update(change func(*State)) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	before := make(map[string]int, len(st.state.Processes)) // process ids by name
	for _, p := range st.state.Processes {
		before[p.Name] = p.PID
	}
	change(&st.state)
	for i := range st.state.Processes {
		p := &st.state.Processes[i]
		if p.PID != before[p.Name] {
			p.Start = 0 // it is another one
		}
		verify(p, time.Now())
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

// verify asks the kernel about a process that is said to run. One that has its id and was
// started at another time is another one. A Start that is not known yet becomes known.
func verify(p *Process, now time.Time) {
	if p.PID == 0 {
		p.Status, p.Start = Down, 0
		return
	}
	stat, err := proc.State(p.PID)
	if p.Start == 0 {
		p.Start = stat.Start
	}
	switch {
	case err != nil, stat.State == 'Z', stat.State == 'X', stat.Start != p.Start:
		p.PID, p.Start, p.Status, p.Since = 0, 0, Down, now.UTC()
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
	return errors.Join(err, mark(st.lock, err != nil))
}

func replace(path string, b []byte) error {
	tmp := path + ".tmp" // one writer: the folder is locked
	if err := regular.Write(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
