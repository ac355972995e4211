package stream

import (
	"time"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/extproc/internal/unpack"
)

// chunk is the most bytes of a Duplex reply: Envoy takes up to 64 KiB a message.
const chunk = 62 << 10

// phase is how far an exchange is.
type phase uint8

const (
	waiting phase = iota // for the request headers
	reading              // the request; nothing is decided
	decided
	over      // answered by us: nothing more is said
	suspended // waits in the queue; the decision comes later
)

// Exchange is the state of one stream. It does no I/O and reads no clock, but to
// measure itself. It is used by one goroutine; the zero Exchange is not usable: see Core.Begin.
type Exchange struct {
	core  *Core
	phase phase
	table *pick.Table // of the whole exchange; nil: xds has said nothing yet
	head  RequestHead
	api   openai.API

	// Set by the decision.
	decision Decision
	model    *pick.Model // nil: no decision
	sent     time.Time
	named    session.Key // of the client's name for the session; 0: none
	first    session.Key // of its first messages: names it to people
	cookie   uint64      // session to give the client; 0: none
	shape    pick.Shape
	asked    string       // the model's name at the client, if we changed it
	forward  []byte       // what goes on in place of the body; nil: the body as it came
	plain    bool         // whether a content encoding was undone
	before   prefix.Match // where the response is that the request continues
	why      []byte       // for a client that asked; nil: it didn't
	held     pick.Reservation
	flow     held
	passed   int64 // bytes of the body that came since
	laps     laps

	// Set by the answer.
	begun  bool           // whether its headers came
	served *pick.Endpoint // who answered; nil: not known
	good   bool           // whether the status is 2xx
	taught bool           // whether its usage was taken in
	looked bool           // whether the answer's body was looked at for its id

	*memory
}

// memory is what exchanges hand on to each other, so that it is allocated
// seldom.
type memory struct {
	request openai.Request
	choice  pick.Choice
	chain   []prefix.Link // beginnings of the prompt, the shortest first
	found   prefix.Found
	body    []byte // of a request in several messages
	bare    []byte // the same without its content encoding
	renamed []byte // the same with another model
	in      inbound
	out     outbound
	turn    uint32 // decisions made with this memory
}

// Step advances the exchange by one event and appends the replies to out.
func (x *Exchange) Step(ev *Event, out []Reply) []Reply {
	if x.phase == suspended {
		out = x.hurry(ev.At, out)
	}
	if x.phase == over {
		return out
	}
	if x.phase == waiting && ev.Kind < Immediate && ev.Kind != RequestHeaders {
		// Envoy does not send request headers. It has chosen a host when it sends what
		// comes behind them.
		x.phase = decided
		x.head.Mode, x.head.AnswerMode = ev.Request.Mode, ev.Request.AnswerMode
	}
	switch ev.Kind {
	case RequestHeaders:
		return x.requestHeaders(ev, out)
	case RequestBody:
		return x.requestBody(ev, out)
	case RequestTrailers:
		return x.requestTrailers(ev, out)
	case ResponseHeaders:
		x.begun = true
		return x.responseHeaders(ev, out)
	case ResponseBody:
		x.lookForResponse(ev.Body, ev.At)
		return unchanged(ev, x.head.AnswerMode, out)
	case ResponseTrailers:
		x.report(&ev.Answer, ev.At)
		x.flow.count(ev.Answer.Usage)
		x.noteResponse(ev.Answer.Response, ev.At)
		return append(out, Reply{Kind: ResponseTrailers})
	default:
		return out
	}
}

// End gives back what the exchange holds. It is called once, whatever the
// reason that the stream ended for.
func (x *Exchange) End(now time.Time) {
	x.settle(now)
	x.held.Release()
	x.phase = over
}

// unchanged answers a body event that changes nothing.
func unchanged(ev *Event, m Mode, out []Reply) []Reply {
	switch {
	case m != Duplex:
		return append(out, Reply{Kind: ev.Kind})
	case len(ev.Body) == 0:
		return append(out, Reply{Kind: ev.Kind, Duplex: true, End: ev.End})
	default:
		return echo(ev.Kind, ev.Body, ev.End, out)
	}
}

func (x *Exchange) requestHeaders(ev *Event, out []Reply) []Reply {
	if x.phase != waiting {
		return append(out, Reply{Kind: RequestHeaders})
	}
	x.phase = reading
	x.head, x.api = ev.Request, openai.APIOf(ev.Request.Method, ev.Request.Path)
	x.table = x.core.picker.Table()
	if err := x.refuse(); err != nil {
		return x.fail(err, out)
	}
	switch {
	case ev.End:
		// A gateway that doesn't send bodies may say End though one follows.
		hidden := x.head.Mode == Unseen && x.head.Length > 0
		return x.conclude(RequestHeaders, nil, !hidden, ev.At, out)
	case x.head.Mode == Buffered:
		return append(out, Reply{Kind: RequestHeaders, Remove: x.head.Forbidden})
	case x.head.Mode == Duplex && x.table != nil:
		return out // the headers wait for the body
	default:
		return x.conclude(RequestHeaders, nil, false, ev.At, out)
	}
}

// refuse returns what is wrong with the request before its body is read.
func (x *Exchange) refuse() *openai.Error {
	if limit := x.limit(); limit > 0 && x.head.Length > limit {
		return openai.TooLarge(limit)
	}
	if x.api != openai.Other && !isJSON(x.head.ContentType) {
		return openai.WrongContentType(x.head.ContentType)
	}
	if x.table != nil && x.reads() && unpack.Of(x.head.ContentEncoding) == unpack.Unknown {
		return openai.WrongEncoding(x.head.ContentEncoding)
	}
	return nil
}

// limit is the largest body, in bytes; 0: none.
func (x *Exchange) limit() int64 {
	if x.table == nil {
		return 0
	}
	return x.table.Policy.MaxBody
}

func (x *Exchange) requestBody(ev *Event, out []Reply) []Reply {
	if x.phase != reading {
		return x.late(ev, out)
	}
	if limit := x.limit(); limit > 0 && int64(len(x.body)+len(ev.Body)) > limit {
		return x.fail(openai.TooLarge(limit), out)
	}
	if x.head.Mode != Duplex {
		// One message holds the body. Without End trailers follow, or Envoy sent
		// only what it could buffer.
		return x.conclude(RequestBody, ev.Body, ev.End, ev.At, out)
	}
	body := ev.Body
	if !ev.End || len(x.body) > 0 {
		x.body = append(x.body, ev.Body...)
		body = x.body
	}
	if !ev.End {
		return out
	}
	out = x.conclude(RequestHeaders, body, true, ev.At, out)
	return x.passOn(body, RequestBody, out)
}

// late takes in what comes of a body after the decision.
func (x *Exchange) late(ev *Event, out []Reply) []Reply {
	x.passed += int64(len(ev.Body))
	if limit := x.limit(); limit > 0 && x.passed > limit && x.head.Mode == Streamed && !x.begun {
		return x.fail(openai.TooLarge(limit), out)
	}
	return unchanged(ev, x.head.Mode, out)
}

func (x *Exchange) requestTrailers(ev *Event, out []Reply) []Reply {
	if x.phase == reading && x.head.Mode == Duplex {
		out = x.conclude(RequestHeaders, x.body, true, ev.At, out)
		return x.passOn(x.body, RequestTrailers, out)
	}
	return append(out, Reply{Kind: RequestTrailers})
}

// echo sends a Duplex body back.
func echo(k Kind, b []byte, end bool, out []Reply) []Reply {
	for len(b) > chunk {
		out = append(out, Reply{Kind: k, Duplex: true, Chunk: b[:chunk]})
		b = b[chunk:]
	}
	if len(b) == 0 && !end {
		return out
	}
	return append(out, Reply{Kind: k, Duplex: true, Chunk: b, End: end})
}

// conclude decides and answers the event of the kind. whole reports whether body
// is all there is.
func (x *Exchange) conclude(k Kind, body []byte, whole bool, now time.Time, out []Reply) []Reply {
	x.phase = decided
	d, err := x.decide(body, whole, now)
	if err == nil && x.flow.ticket != nil {
		return x.suspend(k, now, out)
	}
	return x.conclusion(k, d, err, out)
}

// conclusion answers the event of the kind with what was decided.
func (x *Exchange) conclusion(k Kind, d *Decision, err *openai.Error, out []Reply) []Reply {
	if err != nil {
		return x.fail(err, out)
	}
	reply := Reply{Kind: k, Decision: d}
	if k == RequestHeaders {
		reply.Remove = x.head.Forbidden
	}
	x.replace(&reply)
	return append(out, reply)
}

// fail answers the client with an error.
func (x *Exchange) fail(err *openai.Error, out []Reply) []Reply {
	x.phase = over
	err.Anthropic = openai.IsAnthropic(x.head.Path)
	x.core.metrics.refused(err.Status)
	return append(out, Reply{Kind: Immediate, Error: err})
}
