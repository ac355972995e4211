// Package backend is the interface to the inference engine that serves requests,
// without naming a product: how it is started, probed and sent requests,
// and what its answers mean.
//
// Its kinds are packages of their own; main lists them, and api, meter, status and
// supervise know them by this package alone. Its one rule: no name or form of a
// product is in it but that of the OpenAI and Anthropic APIs, which all speak.
package backend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os/exec"
	"slices"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/resume"
	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/blocks"
)

// Role is what a process does for a replica.
type Role int

// The processes that an engine keeps, at most one of each.
const (
	// Shard holds some layers for the head on another node.
	Shard Role = iota
	// Head answers for the whole replica.
	Head
	// Roles is how many there are.
	Roles
)

// String returns the role's name in the contract.
func (r Role) String() string {
	if r == Shard {
		return "shard"
	}
	return "backend"
}

// Kind is a kind of inference engine: all that engine asks of it. Its methods are
// called from many goroutines, and keep nothing of an assignment.
type Kind interface {
	// Check returns everything that keeps this node from serving an assignment of
	// the kind, each by its field; nil: nothing does.
	Check(*enginepb.Assignment) error
	// Capabilities says what the backend can do as the assignment has it run.
	Capabilities(*enginepb.Assignment) *enginepb.Capabilities
	// Process returns a process of the replica, not yet started.
	Process(Role, *enginepb.Assignment) (Process, error)
	// Probe has the whole replica generate so many tokens, and measures it.
	Probe(ctx context.Context, a *enginepb.Assignment, tokens int) (Speed, error)
	// Room says what the caches hold at most, as far as it is known before a start.
	Room(*enginepb.Assignment) (KV, error)
	// Blocks is the log of what the KV cache holds, where the backend that an
	// assignment has run publishes it; nil: it does not.
	Blocks(*enginepb.Assignment) *blocks.Log
	// States saves and restores what the KV cache has; nil: the backend can't.
	States(*enginepb.Assignment) States
	// Load asks the head how busy and how full it is. What it does not say is 0.
	Load(context.Context, *enginepb.Assignment) (Load, error)
	// URL is where the head answers; the API's paths, "/v1/…", follow it.
	URL(*enginepb.Assignment) string
	// Passes reports whether a request for a path that is none of the API's in
	// engine is forwarded as it is.
	Passes(path string) bool
	Dialect
}

// Dialect is how a backend's answers differ from those of the API, and how it is to
// be asked so that they don't.
type Dialect interface {
	// Closed are the fields that are not the client's to set.
	Closed() Closed
	// Prepare says how a request is sent. It may use the memory behind r.Body.
	Prepare(a *enginepb.Assignment, r Request) Way
	// Usage reads the account at the end of an answer, unary or a stream's last
	// UsageTail bytes.
	Usage(end []byte) (Usage, bool)
	// Error reads an answer whose status is not 2xx, or an error within a stream.
	Error(status int, body []byte) Error
}

// Process is one process of a replica, as it is to be started.
type Process struct {
	// Cmd starts it; nil: it runs elsewhere.
	Cmd *exec.Cmd
	// Ready returns nil once it can be used, else what is missing.
	Ready func(context.Context) error
	// Beside, if not nil, runs as long as the process does.
	Beside func(context.Context)
	// Group is whether it has processes of its own, all in one group.
	Group bool
	// Opaque is whether its use of the CPU does not show whether it makes progress.
	Opaque bool
}

// Speed is what one sequence gets, in tokens per second; 0: not known.
type Speed struct{ Prefill, Decode float64 }

// KV is what the KV caches of a backend hold at most, in tokens; 0: not known.
type KV struct {
	// Total is the room for running sequences and for what they leave behind.
	Total uint64
	// Host is the room for what left there, in the host's memory.
	Host uint64
}

// Load is how busy and how full a backend is, by its own account.
type Load struct {
	Running, Waiting uint32
	// Used is how many tokens of its KV cache are in use; Total the room, 0: as Room
	// has it.
	Used, Total uint64
	// Speed is that of what it did since it was last asked.
	Speed Speed
}

// Closed are fields that a backend has beside the API and that are for whoever runs it:
// by name, the values in JSON that change nothing.
type Closed map[string][]string

// Set returns the first by name of a request's fields that is closed, and would change
// something; "": none is.
func (c Closed) Set(fields map[string]json.RawMessage) string {
	first := ""
	for name, harmless := range c {
		v, ok := fields[name]
		if ok && string(v) != "null" && !slices.Contains(harmless, string(v)) && (first == "" || name < first) {
			first = name
		}
	}
	return first
}

// Error is what the backend answers instead of a completion, in OpenAI's terms.
type Error struct {
	// Status is the HTTP status for the client.
	Status int
	// Message is for a person; Type and Code are for programs.
	Message, Type, Code string
	// Param is the field of the request that is wrong; empty: not known.
	Param string
}

// Request is a request of the API as the client sent it.
type Request struct {
	// API is the operation.
	API apis.API
	// Body is a JSON object, Fields its fields.
	Body   []byte
	Fields map[string]json.RawMessage
	// Stream is whether the client wants a stream.
	Stream bool
	// Completion is whether it asks for a completion, chat or not, whose answer can
	// be put together from a stream.
	Completion bool
	// Limit is the largest number of tokens to generate; 0: not said.
	Limit int64
}

// Answer is what is done with a backend's answer.
type Answer int

// Ways to hand an answer on.
const (
	// AsIs forwards it unchanged.
	AsIs Answer = iota
	// Assemble makes the unary answer of a stream.
	Assemble
	// DropUsage forwards a stream without the account at its end.
	DropUsage
)

// Way is how a request goes to the backend, and how its answer comes back.
type Way struct {
	// Refused is why the request is not sent at all; nil: it is.
	Refused *Error
	// Path is the backend's operation; empty: the one that the client asked for.
	Path string
	// Body is what is sent.
	Body []byte
	// Parts are sent instead of Body, one after the other, and Join makes one answer of
	// theirs, which are whole: so that a backend that finishes what it has begun stops soon
	// after the client has left. nil: there is Body alone.
	Parts iter.Seq[[]byte]
	Join  func(answers [][]byte) ([]byte, error)
	// Batch is how many inputs the backend works on at once, where requests like this one but for
	// their inputs may be sent as one; 0: it is sent alone. BatchTokens is how many tokens these
	// may have together, and BatchEqual whether all must have equally many.
	Batch       int
	BatchTokens int64
	BatchEqual  bool
	// Single is whether nothing else of the kind may be in the backend meanwhile.
	Single bool
	// Choices is how many there are of one prompt; 0: one.
	Choices int
	// Other is whether the prompt is another than the client's, so that nobody else
	// knows its keys.
	Other bool
	// Reform makes the client's answer of what comes; nil: they are the same.
	Reform Reform
	// Answer is what is done with what comes.
	Answer Answer
	// Close is whether the backend closes the connection after the answer, whatever
	// its headers say.
	Close bool
	// Timed is whether the first event of a stream is the first token, so that the
	// time to it is that of the prompt, where the account has no times.
	Timed bool
	// Continue is how the rest of a stream is asked for whose backend was lost; nil: such
	// a stream ends with an error.
	Continue *Continue
}

// Continue is how the rest of a stream is asked for.
type Continue struct {
	resume.Way
	// Choices is how many choices there are; each has an account.
	Choices int
	// Count returns how many tokens the prompt of a request has, by the backend.
	Count func(ctx context.Context, a *enginepb.Assignment, request map[string]json.RawMessage) (uint64, error)
}

// BatchTokens is how many tokens several inputs may have together where a backend does not say
// how many it works on at once.
const BatchTokens = 2048

// Room is how much a Dialect may add to a body in place, in bytes.
const Room = 64

// Kinds are the kinds that this engine can run.
type Kinds map[enginepb.Backend_Kind]Kind

// Of returns the kind of an assignment's backend.
func (k Kinds) Of(a *enginepb.Assignment) Kind { return k[a.GetBackend().GetKind()] }

// Check returns why an assignment can't be served here, each fault by its field.
func (k Kinds) Check(a *enginepb.Assignment) error {
	kind := k.Of(a)
	if kind == nil {
		return fmt.Errorf("backend.kind: %s: this engine can't run it", a.GetBackend().GetKind())
	}
	return kind.Check(a)
}

// ErrStages is returned for a replica on several nodes by kinds that have no shards.
var ErrStages = errors.New("this kind has no shards")
