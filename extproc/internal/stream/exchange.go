package stream

import (
	"slices"
	"time"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/unpack"
	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/wire"
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

// Exchange is the state of one stream: how far Envoy's protocol is, what the stages of
// the decision found, which the answer is compared with, and what must be given back.
// It does no I/O and reads no clock, but to measure itself. It is used by one
// goroutine; the zero Exchange is not usable: see Core.Begin.
type Exchange struct {
	core  *Core
	phase phase
	table *pick.Table // of the whole exchange; nil: xds has said nothing yet
	head  RequestHead
	api   apis.API

	// Results of the stages. No stage reads them: they are its arguments.
	understood understood
	counted    counted
	located    located
	decision   Decision // of no hosts: none was made

	// What must be given back.
	admission   admission
	reservation pick.Reservation
	metering    pick.Metering
	size        int64 // room for the body, in bytes

	content uint64 // the gist of a body that has no prefixes; 0: it has
	wait    wait   // of a suspended exchange
	arrived time.Time
	passed  int64 // bytes of the body that came after the decision
	seen    seen
	sent    time.Time
	answer  answer
	laps    laps
	weighed []Weighed // what there was to choose from, for people; nil: nobody is shown it

	*memory
	*desk
}

// seen is what has come to its end: of what comes behind it nothing is Envoy's, which says
// each part once, and waits for as many replies.
type seen struct{ headers, request, answer, answered bool }

// again reports whether an event is behind the end of what it belongs to.
func (s *seen) again(ev *Event) bool {
	switch ev.Kind {
	case RequestHeaders:
		again := s.headers
		s.headers = true
		return again
	case RequestBody, RequestTrailers:
		again := s.request
		s.request = s.request || ev.End || ev.Kind == RequestTrailers
		return again
	case ResponseHeaders:
		again := s.answer || s.answered
		s.answer, s.answered = true, s.answered || ev.End
		return again
	case ResponseBody, ResponseTrailers:
		again := s.answered
		s.answered = s.answered || ev.End || ev.Kind == ResponseTrailers
		return again
	default:
		return false
	}
}

// wait is what a wait holds up: the reply of a kind, and then a Duplex body, and behind
// that what with says: the body's end, or trailers.
type wait struct {
	kind, with Kind
	body       []byte
	since      time.Time // zero: it did not wait
	load       bool      // whether for an endpoint of the model, not for room at one
}

// queued is what a decision says of the wait.
func (w *wait) queued(now time.Time) Queued {
	if w.since.IsZero() {
		return Queued{}
	}
	return Queued{Since: w.since, Took: now.Sub(w.since), Load: w.load}
}

// memory is what exchanges hand on to each other, so that it is allocated
// seldom.
type memory struct {
	choice pick.Choice
	chain  []prefix.Link
	found  prefix.Found
	in     inbound
	out    outbound
	// receiver and replies are Process's own.
	receiver receiver
	replies  [4]Reply
	turn     uint32 // decisions made with this memory
	none     desk   // of an exchange that has given its own back
}

// desk is the memory of a body and of what is decoded of it. An exchange has one until
// the answer begins, as it has room for the body: streams of answers are long, and many.
type desk struct {
	request openai.Request
	body    []byte // of a request in several messages
	bodies  bodies
	links   []prefix.Link // from which the chain is made: of a long prompt very many
}

// Step advances the exchange by one event and appends the replies to out.
func (x *Exchange) Step(ev *Event, out []Reply) []Reply {
	if x.phase == over {
		return out
	}
	if x.seen.again(ev) {
		x.core.metrics.repeated.Inc()
		return out
	}
	if x.phase == suspended {
		if out = x.hurry(ev.At, out); x.phase == over {
			return out
		}
	}
	if x.phase == waiting && ev.Kind < Immediate && ev.Kind != RequestHeaders {
		// Envoy does not send request headers. It has chosen a host when it sends what
		// comes behind them.
		x.phase = decided
		x.head.Mode, x.head.AnswerMode = ev.Request.Mode, ev.Request.AnswerMode
		if x.core.keys != nil {
			return x.fail(openai.BadKey(), out) // nobody knows whose it is
		}
	}
	switch ev.Kind {
	case RequestHeaders:
		return x.requestHeaders(ev, out)
	case RequestBody:
		return x.requestBody(ev, out)
	case RequestTrailers:
		return x.requestTrailers(ev, out)
	case ResponseHeaders:
		return append(out, x.responseHeaders(&ev.Answer, ev.At))
	case ResponseBody:
		x.responseBody(ev.Body, ev.At)
		return unchanged(ev, x.head.AnswerMode, out)
	case ResponseTrailers:
		by := x.learn(&ev.Answer, ev.At)
		return append(out, Reply{Kind: ResponseTrailers, Observed: x.observed(&ev.Answer, by)})
	default:
		return out
	}
}

// End gives back what the exchange has taken. It is called once, whatever the
// reason that the stream ended for.
func (x *Exchange) End(now time.Time) {
	x.ended(now)
	x.charge(now)
	x.admission.release(now)
	x.reservation.Release()
	x.phase = over
	x.freeRoom()
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
	x.phase, x.arrived = reading, ev.At
	x.head, x.api = ev.Request, apis.Of(ev.Request.Method, ev.Request.Path)
	x.table = x.core.picker.Table()
	if err := x.refuse(); err != nil {
		return x.fail(err, out)
	}
	if list, err := modelsAsked(x.table, &x.head); err != nil {
		return x.fail(err, out)
	} else if list != nil {
		x.phase = over
		return append(out, Reply{Kind: Immediate, Answer: list})
	}
	if err := x.takeRoom(ev.End); err != nil {
		return x.fail(err, out)
	}
	switch {
	case ev.End:
		// A gateway that doesn't send bodies may say End though one follows.
		hidden := x.head.Mode == Unseen && x.head.Length > 0
		return x.decide(RequestHeaders, nil, !hidden, ev.At, out)
	case x.head.Mode == Buffered:
		return append(out, Reply{Kind: RequestHeaders, Remove: x.head.Forbidden})
	case x.head.Mode == Duplex && x.table != nil:
		return out // the headers wait for the body
	default:
		return x.decide(RequestHeaders, nil, false, ev.At, out)
	}
}

// refuse returns what is wrong with the request before its body is read.
func (x *Exchange) refuse() *openai.Error {
	switch h := &x.head; {
	case x.core.keys != nil && !h.Key:
		return openai.BadKey()
	case !roomy(h.Headers, h.HeaderBytes):
		return openai.HeadersTooLarge(mostHeaders, mostHeaderBytes)
	case len(h.Path) > mostPath:
		return openai.PathTooLong(mostPath)
	case h.Length == NoLength:
		return openai.NoLength()
	}
	if limit := x.limit(); limit > 0 && x.head.Length > limit {
		return openai.TooLarge(limit)
	}
	if x.api == apis.Other {
		return nil
	}
	if takes := x.api.Row().Reader; !takes.Accepts(x.head.ContentType) {
		return openai.WrongContentType(x.head.ContentType, takes)
	}
	seen := x.head.Mode == Buffered || x.head.Mode == Duplex
	if x.table != nil && seen && unpack.Of(x.head.ContentEncoding) == unpack.Unknown {
		return openai.WrongEncoding(x.head.ContentEncoding)
	}
	return nil
}

// What headers may be before ours are added: Envoy takes 100 of them, of 60 KiB, and so do
// engines; a request with more that we add to would fail there.
const (
	mostHeaders     = 88
	mostHeaderBytes = 48 << 10
)

// mostPath bounds a path with its query, in bytes. Servers take less of it than of all headers
// together, and llama-server ends the connection where it is more: that would look like a
// request that kills engines.
const mostPath = 16 << 10

// roomy reports whether there is room for ours beside so many headers, of so many bytes.
func roomy(n, bytes int) bool { return n <= mostHeaders && bytes <= mostHeaderBytes }

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
		return x.decide(RequestBody, ev.Body, ev.End, ev.At, out)
	}
	body := ev.Body
	if !ev.End || len(x.body) > 0 {
		x.body = append(x.body, ev.Body...)
		body = x.body
	}
	if !ev.End {
		return out
	}
	out = x.decide(RequestHeaders, body, true, ev.At, out)
	return x.release(body, RequestBody, out)
}

// late takes in what comes of a body after the decision.
func (x *Exchange) late(ev *Event, out []Reply) []Reply {
	x.passed += int64(len(ev.Body))
	if limit := x.limit(); limit > 0 && x.passed > limit && x.head.Mode == Streamed && !x.answer.begun {
		return x.fail(openai.TooLarge(limit), out)
	}
	return unchanged(ev, x.head.Mode, out)
}

func (x *Exchange) requestTrailers(ev *Event, out []Reply) []Reply {
	if x.phase == reading && x.head.Mode == Duplex {
		out = x.decide(RequestHeaders, x.body, true, ev.At, out)
		return x.release(x.body, RequestTrailers, out)
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

// decide decides where the request goes and answers the event of the kind, or makes it
// wait. whole is whether body is all there is.
func (x *Exchange) decide(k Kind, body []byte, whole bool, now time.Time, out []Reply) []Reply {
	x.phase = decided
	if x.table == nil {
		return x.open(k, out)
	}
	x.laps.begin(x.core.metrics, &x.turn)
	in := input{table: x.table, head: &x.head, api: x.api, body: body, whole: whole, now: now}
	if x.api.Row().Routed == apis.ByLoad {
		x.content = gist(body)
	}
	u, err := understand(&in, &x.request, &x.bodies)
	if u.unseen {
		x.core.metrics.unseen.Inc()
	}
	if err != nil {
		return x.fail(err, out)
	}
	x.understood = u
	if whole {
		x.came(int64(len(body)+len(u.forward.body)) + x.request.Bytes())
	}
	if u.model == nil {
		return x.open(k, out)
	}
	x.laps.end(lapRead)
	if err := fits(&in, &u, &x.request, nil); err != nil {
		return x.fail(err, out)
	}
	n := count(&in, &u, &x.request)
	x.laps.end(lapCount)
	if err := fits(&in, &u, &x.request, &n); err != nil {
		return x.fail(err, out)
	}
	a, err := admit(x.core.flow, &in, &u, &n, &x.request, &x.bodies)
	x.admission, x.understood, x.counted = a, u, n
	switch {
	case err != nil:
		return x.fail(err, out)
	case a.ticket != nil:
		return x.suspend(k, now, out)
	}
	return x.send(&in, k, out)
}

// open answers the event of the kind without a decision: Envoy's own policy chooses,
// unless a gateway allows only some endpoints.
func (x *Exchange) open(k Kind, out []Reply) []Reply {
	if x.head.Only != nil {
		return x.fail(nobody(nil, x.head.Only), out)
	}
	x.core.metrics.open.Inc()
	return x.reply(k, nil, out)
}

// send sends an admitted request to an endpoint, and answers the event of the kind.
func (x *Exchange) send(in *input, k Kind, out []Reply) []Reply {
	u, n, policy := &x.understood, &x.counted, in.table.Policy
	l := locate(in, u, n, &x.request, x.links, &x.found)
	x.links, x.chain = l.chain, append(x.chain[:0], l.chain...)
	l.chain = x.chain
	x.located = l
	x.laps.end(lapLocate)
	most := mostCandidates(in.table.Policy, u.priority)
	once, wait := x.core.hurts.has(x.key(), in.now)
	if wait > 0 {
		return x.fail(openai.Hurts(u.model.Name, wait), out)
	}
	if once {
		most = 1 // it has failed on two already
	}
	q, err := choose(x.core.picker, in, u, n, most, &x.found, &x.choice)
	if err != nil {
		return x.fail(err, out)
	}
	d := &x.decision
	*d = Decision{
		Queued: x.wait.queued(in.now),
		Model:  u.model.Name, Asked: u.asked, Probe: in.head.Probe, Session: l.session, Priority: u.priority, API: in.api,
		PromptTokens: n.prompt, Exact: n.exact, Doubt: n.doubt, OutputTokens: n.output, Retries: retries(q.Most, u.model, x.choice.List), Choice: &x.choice,
		Key: u.model.Key, Ranked: policy.Ours && (u.priority != wire.Standard || in.head.Priority != ""),
	}
	if in.head.Owner != "" && (in.api.Row().Items || in.api == apis.Other && apis.Stored(in.head.Path)) {
		d.Owner = ownerOf(in.head.Owner)
	}
	x.core.metrics.counted(n)
	first := &x.choice.List[0]
	x.owe(first, in.now)
	if s := &x.admission.spent; s.request != 0 {
		d.Reserved, d.Charged = s.tokens, s.by
	}
	if x.head.Debug && policy.Explain {
		x.answer.explanation = d.explain(&q)
	}
	if x.core.decided.takes(in) {
		x.weighed = weigh(pick.Explain(&q), x.choice.List)
	}
	d.Hedge = u.model.Hedge(policy, x.choice.List, u.blind || !n.stream, n.most)
	x.reservation = first.Reserve(&q)
	x.admission.pass.Reserved()
	x.sent = in.now
	x.laps.end(lapChoose)
	if policy.Ours {
		d.Chain = l.chain
		d.Request = x.admission.spent.request
	}
	record(policy, &l, n.prompt, first.Endpoint, in.now)
	if id := x.request.Conversation; !u.blind && len(id) > 0 { // an answer has the id of its response alone
		recordResponse(policy, u.model, string(id), n.prompt+n.output, first.Endpoint, in.now)
	}
	x.laps.end(lapRecord)
	return x.reply(k, d, out)
}

// reply answers the event of the kind with a decision; nil: none was made.
func (x *Exchange) reply(k Kind, d *Decision, out []Reply) []Reply {
	r := Reply{Kind: k, Decision: d}
	if k == RequestHeaders {
		r.Remove = x.head.Forbidden
	}
	if f := &x.understood.forward; f.body != nil {
		x.core.metrics.forwarded(&x.understood)
		r.Length = len(f.body)
		if f.bare {
			r.Remove = append(slices.Clip(r.Remove), "content-encoding")
		}
		if k == RequestBody {
			r.Replace, r.Chunk = true, f.body
		}
	}
	return append(out, r)
}

// fail answers the client with an error.
func (x *Exchange) fail(err *openai.Error, out []Reply) []Reply {
	x.phase = over
	x.freeRoom()
	err.Dialect = apis.DialectOf(x.head.Path)
	x.core.metrics.refused(err.Status)
	return append(out, Reply{Kind: Immediate, Error: err})
}

// suspend makes the exchange wait: the reply of the kind comes later. Envoy is asked
// to wait, too, if it might not wait so long.
func (x *Exchange) suspend(k Kind, now time.Time, out []Reply) []Reply {
	x.phase, x.wait = suspended, wait{kind: k, since: now, load: x.understood.model.Awaits(now)}
	x.laps.stop()
	p := x.table.Policy.Flow
	if p.GatewayTimeout <= flow.EveryGateway || x.admission.ticket.Until().Sub(now) <= 0 {
		return out
	}
	return append(out, Reply{Kind: Extend, Wait: p.GatewayTimeout})
}

// Waits is the ticket of an exchange that waits; nil: it doesn't.
func (x *Exchange) Waits() *flow.Ticket { return x.admission.ticket }

// tickEvery is how often one that waits is checked for room: there may be some
// though nobody has left, for example when an endpoint has come.
const tickEvery = 100 * time.Millisecond

// Tick ends the wait of the exchange if there is room.
func (x *Exchange) Tick(now time.Time) {
	if t := x.current(); t.Policy.Flow != nil {
		x.refresh(t)
	}
	x.admission.ticket.Tick(x.table.Policy.Flow, x.understood.model, now)
}

// refresh takes a newer table for the rest of the exchange, unless that has no such
// model any more.
func (x *Exchange) refresh(t *pick.Table) {
	if m := t.Named(x.understood.model.Name); m != nil {
		x.table, x.understood.model = t, m
	}
}

// Resume makes the decision after the wait.
func (x *Exchange) Resume(o flow.Outcome, now time.Time, out []Reply) []Reply {
	x.phase = decided
	x.admission.ticket, x.admission.pass = nil, o.Pass
	x.refresh(x.current())
	in := input{table: x.table, head: &x.head, api: x.api, now: now}
	if o.Refusal.Reason != flow.None {
		pass, err := refused(x.core.flow, &in, &x.understood, &x.counted, &x.request, &x.bodies, o.Refusal)
		if err != nil {
			return x.fail(err, out)
		}
		x.admission.pass = pass
	}
	out = x.send(&in, x.wait.kind, out)
	return x.release(x.wait.body, x.wait.with, out)
}

// hurry ends the wait at once: the client has given up, or Envoy does not wait.
func (x *Exchange) hurry(now time.Time, out []Reply) []Reply {
	x.admission.ticket.Drop(now)
	return x.Resume(flow.Outcome{}, now, out)
}

// release sends what a Duplex decision has held up: the body, and its end or trailers.
// A suspended exchange does so later.
func (x *Exchange) release(body []byte, with Kind, out []Reply) []Reply {
	if x.phase == suspended {
		x.wait.body, x.wait.with = body, with
		return out
	}
	if with == RequestHeaders || x.phase == over {
		return out // nothing
	}
	if x.understood.forward.body != nil {
		body = x.understood.forward.body
	}
	out = echo(RequestBody, body, with == RequestBody, out)
	if with == RequestTrailers {
		out = append(out, Reply{Kind: RequestTrailers})
	}
	return out
}
