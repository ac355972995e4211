package pick

import (
	"slices"
	"sync/atomic"
)

// loadAdapter is what it takes to load a LoRA adapter, in milliseconds, from the
// engine's host. No engine says how long it took, so it is not learned: 50 MB, as an
// adapter of rank 16 for a model of 8 B has, are read, unpacked and copied to the GPU
// in about that. It is enough to keep an adapter where it is, and little beside a wait.
const loadAdapter = 100

// Adapters is which LoRA adapters an engine has loaded, as far as it shows. Engines
// show those at work. They keep them loaded until others need the room, the last used
// the longest, and so does this.
type Adapters struct {
	state atomic.Pointer[loaded] // nil: the engine has shown nothing
}

// loaded never changes.
type loaded struct {
	most    int      // how many may be loaded at a time; 0: the engine takes none
	running int      // how many are at work
	names   []string // the last used first, at most most
}

// Report takes in what an engine shows: how many adapters it loads at a time (0: it
// takes none), and which are at work and asked for.
func (a *Adapters) Report(most int, running, waiting []string) {
	for {
		old := a.state.Load()
		s := &loaded{most: max(0, most), running: len(running)}
		s.names = append(slices.Clone(running), waiting...)
		if old != nil {
			s.names = append(s.names, old.names...)
		}
		s.bound()
		if a.state.CompareAndSwap(old, s) {
			return
		}
	}
}

// Forget says that nothing is known, as after a restart.
func (a *Adapters) Forget() { a.state.Store(nil) }

// use records that a request for an adapter was sent.
func (a *Adapters) use(name string) {
	old := a.state.Load()
	if old == nil || old.most == 0 || len(old.names) > 0 && old.names[0] == name {
		return
	}
	s := &loaded{most: old.most, running: old.running, names: make([]string, 1, len(old.names)+1)}
	s.names[0] = name
	for _, other := range old.names { // each is there once
		if other != name && len(s.names) < s.most {
			s.names = append(s.names, other)
		}
	}
	a.state.CompareAndSwap(old, s) // if the engine has just shown more, that counts
}

// bound keeps each name once, and no more than fit.
func (s *loaded) bound() {
	kept := s.names[:0]
	for _, name := range s.names {
		if len(kept) < s.most && !slices.Contains(kept, name) {
			kept = append(kept, name)
		}
	}
	s.names = kept
}

// Adapter returns the LoRA adapter that a model is at the endpoint; empty: it is none,
// as far as the engine has shown. An engine that takes adapters serves one model, the
// first, and its adapters.
func (e *Endpoint) Adapter(m *Model) string {
	if e.Adapters == nil || m == nil || m.Name == e.Base {
		return ""
	}
	if s := e.Adapters.state.Load(); s == nil || s.most == 0 {
		return ""
	}
	return m.Name
}

// Unclear is whether a model may be an adapter at the endpoint as well as another name
// of its base: the engine has shown nothing yet, or not since its restart.
func (e *Endpoint) Unclear(m *Model) bool {
	return e.Adapters != nil && m.Name != e.Base && e.Adapters.state.Load() == nil
}

// loadTime is how long it takes until the model's adapter is loaded there: 0 if it is,
// or the model is none. Where there is no room the one that makes room will be asked
// for again; where all that are loaded are at work, one of them must end first.
func (e *Endpoint) loadTime(m *Model, w *work, p *pace) float64 {
	name := e.Adapter(m)
	if name == "" {
		return 0
	}
	s := e.Adapters.state.Load()
	if s == nil || slices.Contains(s.names, name) {
		return 0
	}
	ms := float64(loadAdapter)
	if len(s.names) >= s.most {
		ms += loadAdapter
	}
	if s.running >= s.most {
		ms += w.output * p.decode
	}
	return ms
}
