package desired

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/stamp"
)

// poll is how often the files are checked.
const poll = 250 * time.Millisecond

// Derive completes what the text of a file says, or returns what is wrong with it.
type Derive func(config.File, config.Source) (config.File, []config.Fault)

// Admit returns what keeps a State from being in force.
type Admit func(*State) []config.Fault

// File is the source that follows a file of objects, and the key file that it names.
// What was read is published if it was the same for two polls and has no fault: a
// file that is being written is not taken for one that says less.
type File struct {
	// Constant after Open.
	path   string
	derive Derive
	admit  Admit
	log    *slog.Logger

	// Of Run alone.
	stamps  stamp.Files
	pending bool // whether the files have changed since they were read

	// mu guards the fields below.
	mu   sync.Mutex
	now  Published
	next chan struct{} // closed when now is replaced
}

// Open reads the file at path for the first time: its error is all that is wrong with
// it. Without a path the source is config.Default, for ever. derive and admit may be
// nil.
func Open(path string, derive Derive, admit Admit, log *slog.Logger) (*File, error) {
	f := &File{path: path, derive: derive, admit: admit, log: log, next: make(chan struct{})}
	state, names, err := f.read()
	if err != nil {
		return nil, err
	}
	f.stamps = stamp.Of(names...)
	f.pending = true // what changed while it was read is found by the second poll
	f.now.State = state
	return f, nil
}

// Latest returns what the source has, and a channel that is closed when there is
// something newer.
func (f *File) Latest() (Published, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now, f.next
}

// Run follows the file until ctx ends.
func (f *File) Run(ctx context.Context) error {
	t := time.NewTicker(poll)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if f.path != "" {
				f.poll()
			}
		}
	}
}

// poll reads the files if they have changed, and stayed so since the last poll.
func (f *File) poll() {
	if f.stamps.Changed() {
		f.stamps, f.pending = f.stamps.Now(), true
		return
	}
	if !f.pending {
		return
	}
	f.pending = false
	before, _ := f.Latest()
	state, names, err := f.read()
	after := stamp.Of(names...)
	if !f.stamps.Agree(after) {
		f.stamps, f.pending = after, true // it changed while it was read
		return
	}
	f.stamps = after
	if err == nil {
		f.publish(Published{State: state})
		return
	}
	faults := config.Faults(err)
	if !slices.Equal(faults, before.Faults) {
		f.log.Warn("configuration refused, what was in force stays", "file", f.path, "faults", len(faults), "error", err)
	}
	f.publish(Published{State: before.State, Faults: faults})
}

func (f *File) publish(p Published) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.State == f.now.State && slices.Equal(p.Faults, f.now.Faults) {
		return
	}
	if p.State != f.now.State {
		f.log.Info("configuration read", "file", f.path, "version", p.State.Version, "models", len(p.State.Models))
	}
	f.now = p
	close(f.next)
	f.next = make(chan struct{})
}

// errEmpty is the fault of a file that says nothing while there is a State: it is
// being written, or was emptied by mistake. At the start it means the defaults.
var errEmpty = errors.New("no object in it; must be at least one: an empty file changes nothing while the mesh runs")

// read returns the State of the file as it is, and the names of all files that it is
// made of.
func (f *File) read() (*State, []string, error) {
	names := []string{f.path}
	var file config.File
	var at config.Source
	if f.path == "" {
		file = config.Default()
	} else {
		text, err := regular.Read(f.path, config.MaxFile)
		if err != nil {
			return nil, names, err
		}
		if file, at, err = config.Read(f.path, text); err != nil {
			return nil, names, err
		}
	}
	before := f.now.State
	if before != nil && at.Empty() {
		return nil, names, config.Fault{File: f.path, Text: errEmpty.Error()}
	}
	file, faults := f.derived(file, at)
	if name := file.Policy.Spec.Sessions.Cookie.KeyFile; name != "" {
		names = append(names, name)
	}
	key, err := cookieKey(file.Policy.Spec.Sessions.Cookie)
	if err != nil {
		faults = append(faults, config.Fault{
			Kind: config.KindPolicy, Name: file.Policy.Metadata.Name, Path: "spec.sessions.cookie.keyFile", Text: err.Error(),
		})
	}
	state := Next(before, file, key)
	if len(faults) == 0 && f.admit != nil && state != before {
		faults = f.admit(state)
	}
	for i := range faults {
		faults[i] = at.Locate(faults[i])
	}
	return state, names, config.Join(faults)
}

func (f *File) derived(file config.File, at config.Source) (config.File, []config.Fault) {
	if f.derive == nil {
		return file, nil
	}
	return f.derive(file, at)
}

// cookieKey returns the key of the key file; nil if none is named.
func cookieKey(c config.Cookie) ([]byte, error) {
	if c.Name == "" || c.KeyFile == "" {
		return nil, nil
	}
	return c.Key()
}
