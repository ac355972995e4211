// Package desired is the desired state of a mesh: one immutable State, published whole
// by a source, which is followed while programs run. Called by xds, whose fleet,
// resources and directives are made of it, and by `millrace up`.
//
// Its one rule: a State that was published is never changed, and one with a fault is
// never published. File is the source on a laptop, xds/internal/kube the one in a cluster.
package desired

import (
	"reflect"
	"slices"
	"strconv"

	"millrace.dev/millrace/internal/config"
)

// State is all that is desired at one moment.
type State struct {
	// Version grows with each State of a source.
	Version uint64
	// Models in the order of the source; one of them is the default.
	Models []Object[config.ModelSpec]
	// Endpoints are engines that are run by somebody else, in the order of the source.
	Endpoints []Object[config.EndpointsSpec]
	// Policy for all requests.
	Policy Object[config.PolicySpec]
	// CookieKey is what the policy's key file holds; nil: it names none.
	CookieKey []byte
}

// Object is one object of a State.
type Object[S any] struct {
	// Kind and Name of the object, unique in its State.
	Kind, Name string
	// Generation is the version of the object's content: it grows when that changes. That
	// of a file begins at 1 when the source starts: nobody may compare it over a restart.
	// 0: there is no such object, what is in force is by default.
	Generation int64
	// Spec is the content.
	Spec S
}

// Ref names an object.
type Ref struct{ Kind, Name string }

// Model returns a model by its name.
func (s *State) Model(name string) (Object[config.ModelSpec], bool) {
	return find(s.Models, name)
}

func find[S any](all []Object[S], name string) (Object[S], bool) {
	i := slices.IndexFunc(all, func(o Object[S]) bool { return o.Name == name })
	if i < 0 {
		return Object[S]{}, false
	}
	return all[i], true
}

// Default returns the name of the model for requests that name none.
func (s *State) Default() string {
	for _, m := range s.Models {
		if m.Spec.Default {
			return m.Name
		}
	}
	if len(s.Models) == 0 {
		return ""
	}
	return s.Models[0].Name
}

// Replica returns the fleet-wide name of one replica of a model, from 0.
func Replica(model string, replica int) string { return model + "-" + strconv.Itoa(replica) }

// Next returns the State of a file with the content of its cookie key, after before;
// before itself if nothing has changed. before may be nil.
func Next(before *State, f config.File, key []byte) *State {
	if before == nil {
		before = &State{}
	}
	next := &State{Version: before.Version + 1, CookieKey: key}
	for _, m := range f.Models {
		had, _ := before.Model(m.Metadata.Name)
		next.Models = append(next.Models, follow(had, config.KindModel, m.Metadata.Name, m.Spec))
	}
	for _, e := range f.Endpoints {
		had, _ := find(before.Endpoints, e.Metadata.Name)
		next.Endpoints = append(next.Endpoints, follow(had, config.KindEndpoints, e.Metadata.Name, e.Spec))
	}
	next.Policy = follow(before.Policy, config.KindPolicy, f.Policy.Metadata.Name, f.Policy.Spec)
	if before.Version > 0 && !slices.Equal(before.CookieKey, key) && next.Policy.Generation == before.Policy.Generation {
		next.Policy.Generation++
	}
	if before.Version > 0 && next.same(before) {
		return before
	}
	return next
}

// Known returns the State of objects whose generations their source knows, with the key
// of cookies, after before; before itself if nothing has changed. before may be nil. A
// generation may be lower than before: the object was deleted and made anew.
func Known(before *State, f config.File, generation func(kind, name string) int64, key []byte) *State {
	next := &State{Version: 1, CookieKey: key}
	for _, m := range f.Models {
		next.Models = append(next.Models, known(generation, config.KindModel, m.Metadata.Name, m.Spec))
	}
	for _, e := range f.Endpoints {
		next.Endpoints = append(next.Endpoints, known(generation, config.KindEndpoints, e.Metadata.Name, e.Spec))
	}
	next.Policy = known(generation, config.KindPolicy, f.Policy.Metadata.Name, f.Policy.Spec)
	if before != nil {
		next.Version = before.Version
		if reflect.DeepEqual(before, next) {
			return before
		}
		next.Version++
	}
	return next
}

func known[S any](generation func(kind, name string) int64, kind, name string, spec S) Object[S] {
	return Object[S]{Kind: kind, Name: name, Generation: generation(kind, name), Spec: spec}
}

// File returns the state as the objects of a file.
func (s *State) File() config.File {
	f := config.File{Policy: config.Policy{
		APIVersion: config.APIVersion, Kind: config.KindPolicy, Metadata: config.Metadata{Name: s.Policy.Name}, Spec: s.Policy.Spec,
	}}
	for _, m := range s.Models {
		f.Models = append(f.Models, config.Model{
			APIVersion: config.APIVersion, Kind: m.Kind, Metadata: config.Metadata{Name: m.Name}, Spec: m.Spec,
		})
	}
	for _, e := range s.Endpoints {
		f.Endpoints = append(f.Endpoints, config.Endpoints{
			APIVersion: config.APIVersion, Kind: e.Kind, Metadata: config.Metadata{Name: e.Name}, Spec: e.Spec,
		})
	}
	return f
}

// follow returns an object that was had before; had is zero if it was not there.
func follow[S any](had Object[S], kind, name string, spec S) Object[S] {
	if had.Generation > 0 && reflect.DeepEqual(had.Spec, spec) {
		return had
	}
	return Object[S]{Kind: kind, Name: name, Generation: had.Generation + 1, Spec: spec}
}

// same reports whether both say the same, in the same order.
func (s *State) same(o *State) bool {
	return equal(s.Models, o.Models) && equal(s.Endpoints, o.Endpoints) && s.Policy.Generation == o.Policy.Generation
}

func equal[S any](a, b []Object[S]) bool {
	return slices.EqualFunc(a, b, func(a, b Object[S]) bool { return a.Name == b.Name && a.Generation == b.Generation })
}

// Published is what a source has at one moment.
type Published struct {
	// State is the last good one; nil: there was none yet.
	State *State
	// Faults is what is wrong with what the source has now, so that it is not in force;
	// empty: State is what the source has. A source that takes each object by itself has
	// faults of objects that are in force without what they name.
	Faults []config.Fault
	// Observed is the generation of what such a source has of each object with a fault;
	// nil: it is the one after that in force.
	Observed map[Ref]int64
	// Stale is why State is not what the source has but a copy of what it had before this
	// program started; empty: it is what the source has.
	Stale string
}
