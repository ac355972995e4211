// Package state is DIR/state.json: what runs of a mesh, where, and since when.
//
// Written by `millrace up` alone; read by status, chat and anybody who likes.
// Its one rule: what this package reads never has a process as running that does not run.
// The file itself may be out of date, where the disk is full; the lock beside it shows
// whether it is.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/regular"
)

// Process is one process of the mesh.
type Process struct {
	// Name is unique in the mesh, for example "engine@node-a".
	Name string `json:"name"`
	// Role is envoy, xds, extproc, nodeagent, engine, backend or shard.
	Role string `json:"role"`
	// Node is empty for what exists once.
	Node string `json:"node"`
	// PID is 0 while the process is down. Start is when the kernel started it, in ticks
	// since the machine was: another process of the same id has another one.
	PID   int    `json:"pid"`
	Start uint64 `json:"start,omitempty"`
	// Addrs are "ip:port" by use: http, grpc, admin, metrics, rpc.
	Addrs map[string]string `json:"addrs"`
	// Restarts counts the starts after the first one.
	Restarts int `json:"restarts"`
	// Since is when it was started, or when it went down.
	Since time.Time `json:"since"`
	// Status is running, stopped (by SIGSTOP) or down.
	Status string `json:"status"`
	// Reason says why it is down or stopped, for a person; empty while it runs.
	Reason string `json:"reason,omitempty"`
	// LastExit says how it ended the last time; empty if it never did.
	LastExit string `json:"last_exit,omitempty"`
}

// The values of Process.Status.
const (
	Running = "running"
	Stopped = "stopped"
	Down    = "down"
)

// State is the whole file.
type State struct {
	// Listen is "ip:port" of the OpenAI API.
	Listen string `json:"listen"`
	// Ready is whether every replica has answered once and the mesh answers now:
	// Envoy runs and each model has a ready replica, or a ready endpoint of others.
	Ready     bool      `json:"ready"`
	Processes []Process `json:"processes"`
	// PID is `millrace up` itself. When it is gone the file is what it was then,
	// and nothing of the mesh runs.
	PID int `json:"pid"`
	// Started is when `millrace up` began.
	Started time.Time `json:"started"`
	// Dir, Logs and Config are absolute paths; Model is the default model's id.
	Dir    string `json:"dir"`
	Logs   string `json:"logs"`
	Config string `json:"config"`
	Model  string `json:"model"`
	// TLS is the folder of the certificates that the programs show each other, with the
	// operator's own; empty: they speak cleartext.
	TLS string `json:"tls,omitempty"`
	// Traces is the absolute path of the file of spans; empty: there is none.
	Traces string `json:"traces,omitempty"`
	// Stale is whether the file can't be written now, so that it is what was true when it
	// last could be. It is not in the file.
	Stale bool `json:"-"`
	// Faults are what is wrong with the user's configuration, so that what was in force
	// before it still is; empty: nothing.
	Faults []Fault `json:"faults,omitempty"`
}

// Fault is one thing that is wrong with the user's configuration.
type Fault struct {
	// Kind and Name are of the object, Field is the path in it; empty: not known.
	Kind  string `json:"kind,omitempty"`
	Name  string `json:"name,omitempty"`
	Field string `json:"field,omitempty"`
	// Text says what is wrong, with file and line.
	Text string `json:"text"`
}

// Operator returns the identity of who watches the mesh; nil: it speaks cleartext.
func (s State) Operator() (*mtls.Source, error) {
	if s.TLS == "" {
		return nil, nil
	}
	return mtls.Load(mtls.In(s.TLS, mtls.ID{Role: mtls.Operator}), slog.New(slog.DiscardHandler))
}

// Find returns the process of that name, or nil.
func (s *State) Find(name string) *Process {
	for i := range s.Processes {
		if s.Processes[i].Name == name {
			return &s.Processes[i]
		}
	}
	return nil
}

// fileName is the name of the file in the mesh's folder.
const fileName = "state.json"

// maxState is far more than the largest state: 64 nodes with their processes, in bytes.
const maxState = 16 << 20

// ErrNone is returned by Read when no mesh ever ran in the folder.
var ErrNone = errors.New("no mesh was started here")

// Read returns the state of the mesh in dir, and whether its `millrace up` runs.
// When it does not, every process is shown as down: none of them can be left. When the file
// is out of date, nothing of it is taken for true that can't be verified.
func Read(dir string) (s State, running bool, err error) {
	b, err := regular.Read(filepath.Join(dir, fileName), maxState)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, false, fmt.Errorf("%s: %w", dir, ErrNone)
	}
	if err != nil {
		return State{}, false, damaged(dir, err)
	}
	if s, err = Parse(b); err != nil {
		return State{}, false, damaged(dir, fmt.Errorf("%s: %w", filepath.Join(dir, fileName), err))
	}
	running = Locked(dir)
	s.Stale = running && marked(dir)
	s.Ready = s.Ready && running && !s.Stale
	for i := range s.Processes {
		p := &s.Processes[i]
		if !running {
			p.PID, p.Reason = 0, "millrace up has ended"
		}
		if verify(p, time.Now()); s.Stale && p.Status == Down {
			p.Reason = "not known: state.json is out of date, and who ran there then has ended"
		}
	}
	return s, running, nil
}

// damaged adds the way out to an error of a file that can't be read, or makes no sense.
func damaged(dir string, err error) error {
	if Locked(dir) {
		return &obs.Hint{Err: err, Next: "the mesh that runs here replaces the file with its next change: ask again"}
	}
	return &obs.Hint{Err: err, Next: "no mesh runs here: remove the file, or start one, which replaces it"}
}

// Parse reads the text of the file, without asking whether it is still true.
func Parse(text []byte) (State, error) {
	var s State
	err := json.Unmarshal(text, &s)
	return s, err
}
