// Package stream answers Envoy's external processing protocol.
//
// Exchange is the state machine of one stream, that is, of one HTTP request and
// its answer; Server is the gRPC service around it. Envoy's messages are decoded
// in envoy.go and encoded in reply.go, and go no further. A decision is made in
// stages, each of which is a function of what the ones before it returned:
//
//	understand  what does the request ask for?       understood
//	count       how many tokens is it?               counted
//	(admit)     is there room for it now?            admission
//	locate      where are prefixes of it cached?     located
//	choose      which endpoints finish it first?     pick.Choice
//	record      what will be cached there?
//
// Its one rule: whatever order events come in, each gets the reply that Envoy waits
// for, and what an exchange has reserved is given back when it ends.
package stream

import (
	"math"
	"time"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/reach"
	"millrace.dev/millrace/internal/wire"
)

// Kind is the part of an HTTP exchange that an Event brings and a Reply answers.
type Kind uint8

// The parts of an exchange.
const (
	RequestHeaders Kind = iota
	RequestBody
	RequestTrailers
	ResponseHeaders
	ResponseBody
	ResponseTrailers
	// Immediate is a Reply only: it answers the client, no engine is asked.
	Immediate
	// Extend is a Reply only: it asks Envoy to wait longer for the next one.
	Extend
)

// Mode is how Envoy sends a body.
type Mode uint8

const (
	// Unseen bodies are not sent.
	Unseen Mode = iota
	// Streamed bodies come in chunks, after the headers have gone on: too late
	// to choose a host by them.
	Streamed
	// Buffered bodies come in one message and hold up the headers.
	Buffered
	// Duplex bodies come in chunks and hold up the headers; what is to be forwarded
	// must be sent back.
	Duplex
)

// Event is one message from Envoy.
type Event struct {
	Kind Kind
	// End is whether nothing follows in the same direction.
	End bool
	// At is when the event came.
	At time.Time
	// Body is the bytes of a body event. They stay until the replies to the event
	// have been written: gRPC's own memory, which the exchange must not keep.
	Body []byte
	// Request is for RequestHeaders. Its modes are there for whatever event is the
	// first: Envoy need not send request headers.
	Request RequestHead
	// Answer is for ResponseHeaders and ResponseTrailers.
	Answer AnswerHead
}

// RequestHead is what the exchange needs of the request headers. A header that
// is missing is empty.
type RequestHead struct {
	Method, Path string
	// ID is x-request-id.
	ID              shortID
	ContentType     string
	ContentEncoding string
	// Length is the content-length; below 0: not said, or NoLength.
	Length int64
	// Headers is how many there are, HeaderBytes how many bytes names and values have.
	Headers, HeaderBytes int
	// Session is the value of the policy's session header.
	Session string
	Cookie  string
	// Priority is the value of the policy's priority header.
	Priority string
	// Objective is the name of the request's objective. Rename is under which name its model
	// is to be forwarded.
	Objective, Rename string
	// Debug is whether the client wants to know why.
	Debug bool
	// Tenant is who asks, as a hash; 0: not said.
	Tenant uint64
	// TenantName is the same for people.
	TenantName string
	// Owner is the tenant's name in full, which may be secret: of the API key, or of the policy's
	// header; empty: there are no tenants.
	Owner string
	// Key is whether it has an API key that is known here.
	Key bool
	// Probe is whether it is a probe of the mesh's own, which is nobody's.
	Probe bool
	// Patience is how long the client waits; 0: not said.
	Patience time.Duration
	// Goal is how fast the client wants its answer.
	Goal pick.Goal
	// Forbidden names the routing headers that the client sent: they must not be forwarded.
	Forbidden []string
	// Only is the endpoints that the gateway allows.
	Only pick.Subset
	// Mode is how the request's body comes, AnswerMode how the answer's does.
	Mode, AnswerMode Mode
}

// AnswerHead is what the exchange needs of response headers and trailers.
type AnswerHead struct {
	pick.Answer
	// Load is endpoint-load-metrics, Usage is x-millrace-usage, Response is
	// x-millrace-response-id.
	Load, Usage, Response string
	// foreign is what headers of others say of usage, gateway what metadata says.
	foreign, gateway usageOf
	// Headers is how many there are, HeaderBytes how many bytes names and values have.
	Headers, HeaderBytes int
}

// NoLength is the Length of a request whose content-length is no length.
const NoLength = math.MinInt64

// Reply is one message to Envoy. Without more than a Kind it changes nothing.
type Reply struct {
	Kind Kind
	// Remove names headers that must not be forwarded.
	Remove []string
	// Decision says where the request goes; nil: says nothing.
	Decision *Decision
	// Duplex is whether Chunk is forwarded in place of what Envoy sent; Replace is the
	// same for a buffered body.
	Duplex, Replace bool
	Chunk           []byte
	// Length is the content-length of a body that is not the one that came; 0: it is.
	Length int
	// End is whether Chunk is the last.
	End bool
	// Cookie is a Set-Cookie header for the client; empty: none.
	Cookie string
	// Explanation is the header that says why; empty: it did not ask.
	Explanation []byte
	// Observed is what came of the request, for the access log; nil: nothing new.
	Observed *Observed
	// Served is the header that shows the conformance suite who answered; empty: none.
	Served string
	// Error is what an Immediate reply answers the client; nil: Answer, which is JSON.
	Error  *openai.Error
	Answer []byte
	// Wait is how long an Extend reply asks for.
	Wait time.Duration
}

// Observed is what came of a request, as its engine says; below 0: not said.
type Observed struct {
	// Tokens of the prompt, those of them that were cached, and generated ones.
	Prompt, Cached, Output int
	// First is the time from the request's arrival to the first token.
	First time.Duration
	// Charged is who has said it, where the tenant pays for tokens; Unanswered: it doesn't.
	Charged flow.Source
}

// Decision is where a request goes, and why.
type Decision struct {
	// Model is the id of the model, Asked the one that the client named if that is
	// another; else empty.
	Model, Asked string
	// Probe is whether it is a probe of the mesh's own.
	Probe bool
	// Session names the conversation, for people.
	Session string
	// Priority is "critical", "standard" or "sheddable".
	Priority string
	// Ranked is whether the engine must be sent the priority: it is not the usual one, or the
	// client has sent another.
	Ranked bool
	// API is the operation.
	API apis.API
	// PromptTokens is the length of the prompt; Exact is whether it was counted
	// by the model's tokenizer, Doubt why not.
	PromptTokens int
	Exact        bool
	Doubt        string
	// OutputTokens is the expected length of the answer.
	OutputTokens int
	// Chain is the keys of the prompt's prefixes, for the engine; nil: it does not get them.
	Chain []prefix.Link
	// Request is the number that the engine names the request by; 0: it needs none.
	Request uint64
	// Owner stands for the tenant, for what the engine stores; empty: there is none, or nothing
	// is stored.
	Owner string
	// Charged is who will say what the tenant is charged for, and Reserved how many tokens it
	// is charged in advance; 0: it does not pay for tokens.
	Charged  flow.Source
	Reserved int
	// Retries is how often Envoy may try again.
	Retries int
	// Hedge is after how long without an answer the next host is to be asked, too.
	Hedge pick.Hedge
	// Choice is the hosts, at least one.
	Choice *pick.Choice
	// Key is what the hosts ask for; nil: nothing.
	Key *reach.Key
	// Queued is how it has waited; the zero Queued: it did not.
	Queued Queued
}

// Queued is how a request has waited in extproc before it was decided.
type Queued struct {
	Since time.Time
	Took  time.Duration
	// Load is whether for a place of its model, or for its being loaded; else for room at an
	// engine.
	Load bool
}

// For names what it has waited for.
func (q Queued) For() string {
	if q.Load {
		return wire.QueuedForLoad
	}
	return wire.QueuedForRoom
}
