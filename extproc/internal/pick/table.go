// Package pick chooses the engine that finishes a request first.
//
// fleet publishes an immutable Table of what xds says; stream asks Pick for
// each request and reports what came of it. Its one rule: a decision reads the
// Table and atomics, takes no lock, and allocates nothing.
package pick

import (
	"iter"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/reach"
)

// MaxCandidates is the most hosts that an answer names.
const MaxCandidates = 16

// State is what xds says of an endpoint.
type State uint8

const (
	// NotReady takes no new requests.
	NotReady State = iota
	// Suspect has gone silent: it is named only when nobody else is ready.
	Suspect
	// Ready takes requests.
	Ready
)

// Endpoint is one replica, as it is in one Table. It never changes; what moves
// is in Live, which all versions of the endpoint share.
type Endpoint struct {
	// Address is "ip:port", the host's name in EDS.
	Address string
	// Replica names the replica, Nodes the nodes that hold its parts.
	Replica string
	Nodes   []string
	// Zone is the failure domain; empty: the node is its own.
	Zone  string
	State State
	// Reason is why it is not ready, for a person.
	Reason string
	// Weight is the host's weight in EDS.
	Weight uint32
	// Slots is how many requests are worked on at a time; 0: unknown.
	Slots int
	// Health is the share of normal speed left, above 0 to 1.
	Health float64
	// Prior is what the engine measured of itself.
	Prior Speed
	// Context is how long one sequence may be, in tokens, as the engine says; 0: it does not.
	Context int
	// KV is what is in the engine's cache: another one after every start of the
	// engine.
	KV *prefix.Cache
	// Blocks is what the engine itself reports of its cache; nil: it never does.
	Blocks *blocks.Set
	// Base is the id of the first model that it serves. Adapters is which LoRA adapters
	// are loaded there, if the others are such; nil: there are no others.
	Base     string
	Adapters *Adapters
	// Engine is what renders its conversations; of our own replicas the model says it.
	Engine Engine
	// Key is what requests must have there; nil: nothing.
	Key *reach.Key
	*Live
}

// Ours reports whether the endpoint is a replica of Millrace's own: those of others have no
// name but their address.
func (e *Endpoint) Ours() bool { return e.Replica != "" && !strings.HasPrefix(e.Replica, e.Address) }

// Speed is the time of one sequence alone, in milliseconds per token; 0: unknown.
type Speed struct {
	// Prefill is for a prompt token that is not cached.
	Prefill float64
	// Decode is for a generated token.
	Decode float64
}

// Counter counts the prompt tokens of a request; doubt is why that is an estimate,
// one of Doubts.
type Counter interface {
	Count(r *openai.Request) (n int, doubt string)
}

// Certain is no doubt: the prompt's tokens were counted exactly.
const Certain = ""

// Doubts are why a prompt's tokens may be an estimate.
var Doubts = []string{
	"tokenizer", // the model has none, or it is not read yet
	"template",  // the chat template has what is not rendered here
	"refused",   // the template or the engine refuses the conversation
	"tools",     // tools and calls of them, whose fields engines rewrite
	"fields",    // fields that engines follow in ways of their own
	"engine",    // what engines render each in its own way: which one, or its version, is not known, or they differ
	"harmony",   // conversations with gpt-oss, which vLLM renders without its template
	"clock",     // the date or the time, which the template prints: the engine's may be another one
	"media",     // content that is not text
	"words",     // words too long to be merged to the end
	"texts",     // texts that the engine puts together by rules of its own
	"previous",  // a response that the request continues
}

// Engine is who renders a model's conversations, each kind and version in its own way.
type Engine struct {
	// Kind is the engine's type as configuration names it, Version what it calls its own;
	// empty: not known.
	Kind, Version string
	// Args are the JSON of the arguments that it gives its template by default: those of the
	// model, and those of the endpoint, which win.
	Args [2]string
}

// Tailor is a Counter that counts in another way for other engines.
type Tailor interface {
	// For returns the Counter for engines any of which may serve a request.
	For(engines []Engine) Counter
}

// Caveat is why a Counter has all conversations of a model, or some, be estimates.
type Caveat struct {
	Reason string // one of Doubts
	Text   string // for a person
	// Now is whether it is so now; nil: always.
	Now func() bool
}

// Doubter is a Counter that says why it will estimate.
type Doubter interface {
	Caveats() []Caveat
}

// Identifier is a Counter that also says which tokens a prompt has.
type Identifier interface {
	Counter
	// IDs appends their ids to dst: none if they are not known; exact is false if some
	// may be others.
	IDs(dst []uint32, r *openai.Request) (ids []uint32, exact bool)
}

// Model is a model that is served.
type Model struct {
	// Name is the id in the API.
	Name string
	// Seed is the session key of an empty conversation.
	Seed session.Key
	// Endpoints are the model's replicas in the order of their addresses.
	Endpoints []*Endpoint
	// WithBlocks is the Endpoints that have Blocks.
	WithBlocks []*Endpoint
	// Context is how many tokens a prompt and its answer may have: what the configuration
	// says, or the longest of its endpoints' if all of these say; 0: not known.
	Context int
	// Least is the shortest context of its endpoints; 0: none says.
	Least int
	// Awaited is whether endpoints come by themselves: a request may wait for the first one.
	// Asleep is why there may be none now, for a person; empty: nobody has said.
	Awaited bool
	// Unwoken is whether nobody sees to that now.
	Unwoken bool
	Asleep  string
	// Rests is whether its endpoints may have it unloaded while nobody asks for it, which
	// may not be reported yet.
	Rests bool
	// Key is what requests get for all of Endpoints; nil: nothing.
	Key *reach.Key
	*Learned

	dense atomic.Pointer[index] // nil: nobody asked yet, or there are few endpoints
}

// Why returns why none of the model's endpoints is ready, for a person; empty: one is, or
// nobody has said.
func (m *Model) Why() (why string) {
	for _, e := range m.Endpoints {
		switch {
		case e.State == Ready:
			return ""
		case why == "":
			why = e.Reason
		}
	}
	if len(m.Endpoints) == 0 {
		return m.Asleep
	}
	return why
}

// Peers know then, too, what is cached where.
type Peers interface {
	// Place says what is cached at an address. It does not wait, and keeps nothing of p.
	Place(address string, p prefix.Placement)
}

// Policy is the rules for requests.
type Policy struct {
	// SessionHeader names a session, in lower case.
	SessionHeader string
	// Cookies is nil if there are none.
	Cookies *session.Cookies
	// Prefixes remembers where prompts are cached.
	Prefixes *prefix.Index
	// Peers are the other extprocs of the same endpoints, where engines do not report to all
	// what they have cached; nil: there are none.
	Peers Peers
	// Candidates, Critical and Sheddable are the most hosts named for a standard,
	// a critical and a sheddable request; 1 to MaxCandidates.
	Candidates, Critical, Sheddable int
	// PriorityHeader names a request's priority, in lower case; Priority is that
	// of a request that names none.
	PriorityHeader, Priority string
	// Ours is whether the engines are Millrace's own: they get the keys of each
	// prompt's prefixes, and report which of these are cached.
	Ours bool
	// MaxBody is the largest request body, in bytes; 0: none is too large.
	MaxBody int64
	// MaxInFlight is the most bytes of all bodies that are held at a time; 0: they are not
	// bounded.
	MaxInFlight int64
	// Rewrites are by the name that clients use for a model.
	Rewrites map[string]*Rewrite
	// Rewrite is for requests whose model has none of Rewrites; nil: those keep theirs.
	Rewrite *Rewrite
	// Picker is whether headers of the endpoint-picker protocol's clients count: which
	// objective a request has, who is to be treated fairly, under which name its model is
	// forwarded. Objectives are the priorities of objectives by their name.
	Picker     bool
	Objectives map[string]string
	// Conformance is whether the headers count, and are set, by which the conformance suite
	// of the inference extension steers a picker and sees what it does.
	Conformance bool
	// HedgeAfter is how long an attempt is waited for, at least, before the next endpoint is
	// asked, too; 0: as long as it takes.
	HedgeAfter time.Duration
	// HedgeOthers is that for endpoints that others run, where HedgeAfter is 0.
	HedgeOthers time.Duration
	// Explain is whether clients that ask get to know why a request went where it went.
	Explain bool
	// Flow is the rules for when endpoints are busy; nil: none ever are.
	Flow *flow.Policy
}

// Table is the fleet at one moment.
type Table struct {
	// Policy is never nil in a published Table.
	Policy *Policy
	// Models is keyed by id.
	Models map[string]*Model
	// Default serves requests that name no known model on paths that we do not
	// know; nil: none does.
	Default *Model
	// Any serves requests that name a model that is not in Models: its endpoints know names
	// that we don't; nil: none does.
	Any *Model
}

// Model returns the model with an id, or nil.
func (t *Table) Model(name []byte) *Model { return t.Models[string(name)] }

// Tokenizers returns how many models have one.
func (t *Table) Tokenizers() (n int) {
	for _, m := range t.Models {
		if m.Counter() != nil {
			n++
		}
	}
	return n
}

// All returns all models, Any among them.
func (t *Table) All() iter.Seq[*Model] {
	return func(yield func(*Model) bool) {
		for _, m := range t.Models {
			if !yield(m) {
				return
			}
		}
		if t.Any != nil {
			yield(t.Any)
		}
	}
}

// Named returns the model with a name of ours, or nil: one of Models, or Any.
func (t *Table) Named(name string) *Model {
	if t.Any != nil && t.Any.Name == name {
		return t.Any
	}
	return t.Models[name]
}

// Serving returns the model that serves requests for an id, or nil.
func (t *Table) Serving(name []byte) *Model {
	if m := t.Model(name); m != nil {
		return m
	}
	return t.Any
}

// Endpoint returns the model's endpoint with an address, or nil.
func (m *Model) Endpoint(address string) *Endpoint {
	for _, e := range m.Endpoints {
		if e.Address == address {
			return e
		}
	}
	return nil
}

// Picker holds the table in force.
type Picker struct {
	table   atomic.Pointer[Table]
	known   chan struct{} // closed by the first Publish
	once    sync.Once     // for known
	turn    atomic.Uint64 // where the walk over the endpoints begins
	metrics *metrics
}

// Publish replaces the table. Decisions in flight keep the one they began with.
func (p *Picker) Publish(t *Table) {
	p.table.Store(t)
	p.metrics.models.keep(t)
	p.once.Do(func() { close(p.known) })
}

// Known is closed when there is a table.
func (p *Picker) Known() <-chan struct{} { return p.known }

// Table returns the table in force, or nil before xds has said all once.
func (p *Picker) Table() *Table { return p.table.Load() }
