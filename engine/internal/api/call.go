package api

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"millrace.dev/millrace/engine/internal/admit"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/cachelog"
	"millrace.dev/millrace/engine/internal/conversation"
	"millrace.dev/millrace/engine/internal/supervise"
	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/wire"
)

// call is one request on its way.
type call struct {
	*Server
	op      operation
	w       http.ResponseWriter
	r       *http.Request
	started time.Time
	span    trace.Span

	asked   *continuation // that a peer asks for; nil: it is a client's
	body    []byte        // as it came, where a peer may be asked with it
	req     request
	serving *supervise.Serving // once it was let in
	backend backend.Kind       // what serves it
	way     backend.Way        // how it goes there and back
	turn    *conversation.Turn // what is stored of it; nil: nothing is
	ticket  *admit.Ticket
	prompt  int64 // tokens, counted or estimated

	wanted  time.Time // when it asked to be let in; entered is when it was
	entered time.Time
	sent    time.Time         // when it went to the backend
	begun   time.Time         // when the backend's first byte came
	done    time.Time         // when the backend's answer had come to its end
	asking  trace.SpanContext // of the span of the backend's answer
	usage   backend.Usage
	events  uint64          // that came of a stream: of tokens, nearly all
	links   []cachelog.Link // the keys of the prompt that the request names
	use     *cachelog.Use   // nil: the request names no keys of its prompt
	cached  bool            // whether the backend has the prompt in its cache
	// measured is whether the answer's tokens were timed as they came.
	measured bool
	status   int // for the metrics; 499: the client went away
}

// statusGone is the status of a request whose client did not wait.
const statusGone = 499

// errGone is the cause of a request's end when its client has gone.
var errGone = errors.New("the client went away")

// complete answers one request of op.
func (s *Server) complete(op operation, w http.ResponseWriter, r *http.Request) {
	s.answer(op, w, r, nil)
}

// answer answers one request, or what a peer asks for.
func (s *Server) answer(op operation, w http.ResponseWriter, r *http.Request, asked *continuation) {
	ctx := obs.Propagator.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, span := s.cfg.Tracer.Start(ctx, r.Method+" "+op.Path, trace.WithSpanKind(trace.SpanKindServer))
	c := &call{Server: s, op: op, asked: asked, w: w, r: r, started: time.Now(), span: span, status: http.StatusOK}
	w.Header().Set(headerNode, s.cfg.Node)
	defer c.finish()
	if err := c.serve(ctx); err != nil {
		c.status = err.status
		switch {
		case err.status == statusGone:
		case op.Dialect == apis.Anthropic:
			err.writeAnthropic(w, r)
		default:
			err.write(w)
		}
	}
}

// serve checks the request, lets it in and has it answered.
func (c *call) serve(ctx context.Context) *apiError {
	v, why := c.cfg.Serving()
	if v == nil {
		return notReady(why)
	}
	c.w.Header().Set(headerReplica, v.Assignment.GetReplica())
	limit := int64(v.Assignment.GetBackend().GetMaxBodyBytes())
	if c.asked != nil {
		limit += mostWrapped
	}
	free, failed := hold(c.room, c.r, limit)
	if failed != nil {
		return failed
	}
	defer free()
	body, failed := readBody(c.op, c.w, c.r, limit)
	if failed != nil {
		return failed
	}
	if body, failed = c.unwrap(body); failed != nil {
		return failed
	}
	if c.op.passes {
		c.req = glance(body, v.Assignment.GetModel())
	} else if c.req, failed = parse(c.op, body); failed != nil {
		return failed
	}
	if c.req.model == "" { // the operation need not name it, or it is in a form
		c.req.model = v.Assignment.GetModel()
	}
	if c.req.model != v.Assignment.GetModel() {
		return unknownModel(c.req.model)
	}
	if body, failed = c.continues(ctx, body); failed != nil {
		return failed
	}
	c.serving, c.backend, c.prompt = v, c.cfg.Kinds.Of(v.Assignment), promptTokens(c.r, len(body))
	if name := c.backend.Closed().Set(c.req.fields); name != "" {
		return badRequest(name, "%s is not the client's to set here: leave it out", name)
	}
	if failed := c.fits(int64(v.Assignment.GetBackend().GetContextTokens())); failed != nil {
		return failed
	}
	if c.cfg.Peers != nil && c.req.stream && c.asked == nil {
		c.body = bytes.Clone(body) // Prepare may change it
	}
	body = c.req.apply(body)
	c.way = c.backend.Prepare(v.Assignment, backend.Request{
		API: c.op.api, Body: body, Fields: c.req.fields, Stream: c.req.stream, Completion: c.op.whole, Limit: c.req.limit,
	})
	if c.way.Refused != nil {
		return fromError(*c.way.Refused)
	}
	if c.turn != nil {
		c.way.Reform = c.turn.Form(c.way.Reform)
	}
	if c.asked != nil && c.way.Continue == nil {
		return badRequest("part", "this engine's backend continues no such stream")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(errGone)
	if failed, answered := c.together(ctx); answered {
		return failed
	}
	if failed := c.enter(ctx, cancel); failed != nil {
		return failed
	}
	defer func() { c.ticket.Release() }() // of a stream that was resumed, the last one
	defer c.logCache(ctx)()
	lost := context.AfterFunc(v.Alive, func() { cancel(supervise.ErrEnds) })
	defer lost()
	return c.forward(ctx, lost)
}

// enter waits for a slot as long as the replica takes requests.
func (c *call) enter(ctx context.Context, cancel context.CancelCauseFunc) *apiError {
	c.wanted = time.Now()
	closed := context.AfterFunc(c.serving.Open, func() { cancel(supervise.ErrEnds) })
	t, err := c.cfg.Gate.Acquire(ctx, priorityOf(c.r), c.tokens())
	stopped := closed()
	c.entered = time.Now()
	switch {
	case errors.Is(err, admit.ErrFull), errors.Is(err, admit.ErrLate):
		return full(err)
	case err != nil:
		return c.ended(ctx, err)
	case !stopped: // the door closed in the very moment
		t.Release()
		return c.ended(ctx, supervise.ErrEnds)
	}
	c.ticket = t
	return nil
}

// tokens is what the request may need.
func (c *call) tokens() int64 {
	if c.op.Limits == nil {
		return c.prompt
	}
	out := c.cfg.Meter.Length()
	if c.req.endless {
		out = int64(c.serving.Assignment.GetBackend().GetContextTokens())
	}
	out = max(out, c.req.least)
	if c.req.limit > 0 {
		out = min(out, c.req.limit)
	}
	return c.prompt + out*max(1, c.req.answers)
}

// ended distinguishes a client that left from a backend that was lost.
func (c *call) ended(ctx context.Context, err error) *apiError {
	if c.r.Context().Err() != nil {
		return &apiError{status: statusGone, Message: errGone.Error()}
	}
	if !c.sent.IsZero() {
		c.w.Header().Set(wire.LostHeader, "1")
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, supervise.ErrEnds) {
		_, why := c.cfg.Serving()
		return notReady(why)
	}
	return backendLost(err.Error())
}

// forward has the backend answer. lost stops the watch over the backend's state,
// when the answer has begun.
func (c *call) forward(ctx context.Context, lost func() bool) *apiError {
	ctx, span := c.cfg.Tracer.Start(ctx, "backend", trace.WithSpanKind(trace.SpanKindClient))
	c.asking = span.SpanContext()
	defer func() {
		c.done = time.Now()
		span.End(trace.WithTimestamp(c.done))
	}()
	if c.way.Parts != nil {
		return c.parts(ctx, span)
	}
	if c.asked != nil {
		if done, failed := c.follow(ctx); done || failed != nil {
			return failed
		}
	}
	free, failed := c.alone(ctx)
	if failed != nil {
		return failed
	}
	defer free()
	resp, failed := c.send(ctx, span, c.way.Body)
	if failed != nil {
		return failed
	}
	defer resp.Body.Close()
	switch events := strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream"); {
	case resp.StatusCode != http.StatusOK:
		return c.refused(ctx, resp)
	case events && c.way.Answer == backend.Assemble:
		return c.assemble(ctx, resp.Body)
	case events:
		return c.stream(ctx, resp.Body, lost)
	}
	return c.unary(ctx, resp)
}

// parts has the backend answer one part after the other, none behind one that it refuses, and
// none once the client has left.
func (c *call) parts(ctx context.Context, span trace.Span) *apiError {
	var kind string
	var answers [][]byte
	for body := range c.way.Parts {
		answer, of, failed := c.part(ctx, span, body)
		if failed != nil {
			return failed
		}
		kind, answers = of, append(answers, answer)
		c.cfg.Meter.Serve(time.Now())
	}
	whole, err := c.way.Join(answers)
	if err != nil {
		return backendLost(err.Error())
	}
	return c.reply(kind, whole)
}

// part has the backend answer one part, and returns the answer and its type.
func (c *call) part(ctx context.Context, span trace.Span, body []byte) (answer []byte, kind string, failed *apiError) {
	free, failed := c.alone(ctx)
	if failed != nil {
		return nil, "", failed
	}
	defer free()
	resp, failed := c.send(ctx, span, body)
	if failed != nil {
		return nil, "", failed
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, "", c.refused(ctx, resp)
	}
	answer, err := readAll(resp.Body, resp.ContentLength)
	if err != nil {
		return nil, "", c.ended(ctx, err)
	}
	return answer, resp.Header.Get("Content-Type"), nil
}

// send sends a body to the backend and returns what it answers, once that has begun.
func (c *call) send(ctx context.Context, span trace.Span, body []byte) (*http.Response, *apiError) {
	url := c.backend.URL(c.serving.Assignment) + cmp.Or(c.way.Path, c.op.Path)
	if c.op.passes {
		url = c.backend.URL(c.serving.Assignment) + c.r.URL.RequestURI()
	}
	req, err := http.NewRequestWithContext(ctx, c.r.Method, url, bytes.NewReader(body))
	if err != nil {
		return nil, backendLost(err.Error())
	}
	req.Header["Content-Type"] = []string{c.contentType()}
	// Not sent; it lets the transport try again on a new connection where the
	// backend closed an idle one at that moment.
	req.Header["Idempotency-Key"] = []string{}
	req.Close = c.way.Close
	obs.Propagator.Inject(ctx, propagation.HeaderCarrier(req.Header))
	if c.sent.IsZero() {
		c.sent = time.Now()
	}
	resp, err := c.cfg.Transport.RoundTrip(req)
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
		return nil, c.ended(ctx, err)
	}
	if c.begun.IsZero() {
		c.begun = time.Now()
	}
	return resp, nil
}

// contentType is the type of the body that the backend gets: a form has its boundary
// there.
func (c *call) contentType() string {
	if c.op.passes || c.op.Reader == apis.Form {
		return c.r.Header.Get("Content-Type")
	}
	return c.op.Reader.ContentType()
}

// maxErrorBody bounds what is read of an error, in bytes.
const maxErrorBody = 64 << 10

// refused passes the backend's own refusal on.
func (c *call) refused(ctx context.Context, resp *http.Response) *apiError {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return c.ended(ctx, err)
	}
	return c.fromBackend(resp.StatusCode, body)
}

// unary reads the answer whole.
func (c *call) unary(ctx context.Context, resp *http.Response) *apiError {
	body, err := readAll(resp.Body, resp.ContentLength)
	if err != nil {
		return c.ended(ctx, err)
	}
	return c.reply(resp.Header.Get("Content-Type"), body)
}

// reply sends a whole answer: its usage goes into a header.
func (c *call) reply(kind string, body []byte) *apiError {
	c.usage, _ = c.backend.Usage(body)
	switch {
	case c.op.Generates && !c.measured:
		c.ticket.Measured(c.usage.Prefill, c.prompt, int64(c.usage.Decoded), c.usage.Decode)
	case c.op.Counted == apis.Texts && !c.op.Generates:
		c.ticket.Begun(c.prompt)
	}
	if c.way.Reform != nil {
		var err error
		if kind, body, err = c.way.Reform.Unary(body); err != nil {
			return backendLost(err.Error())
		}
	}
	if c.turn != nil && c.turn.Failed() != nil {
		return fromError(*c.turn.Failed())
	}
	c.ticket.Release()
	c.account(time.Now())
	h := c.w.Header()
	h.Set("Content-Type", kind)
	h[headerUsage] = []string{formatUsage(c.usage)}
	h[headerLoad] = []string{c.load()}
	if id := c.responseID(body); id != "" {
		h[headerResponse] = []string{id}
	}
	_, _ = c.w.Write(body)
	return nil
}

// account counts a request that was answered to its end.
func (c *call) account(now time.Time) {
	c.cfg.Meter.Serve(now)
	c.cfg.Meter.Add(c.usage, now)
	c.answeredCache()
	c.cfg.Metrics.answered(c.op, c.req.model, c.usage, c.begun.Sub(c.started), now.Sub(c.started))
}

// generate counts events of a stream: nearly every one is a token.
func (c *call) generate(events int) {
	c.events += uint64(events)
	if events > 0 {
		c.ticket.Generated(int64(events))
	}
}

// cut counts a request that has come to no end: by what was generated of it.
func (c *call) cut() {
	c.usage = backend.Usage{Prompt: uint64(c.prompt), Completion: c.events}
	c.cfg.Meter.Cut(c.events)
}

func (c *call) load() string {
	return formatLoad(c.cfg.Gate.Load(), c.cfg.Meter.KVUse(), c.cfg.Meter.Rate(time.Now()))
}

// finish ends the span and counts the outcome, also of a stream that was cut.
func (c *call) finish() {
	cut := recover()
	if cut != nil && c.status == http.StatusOK {
		c.status = http.StatusBadGateway
	}
	c.cfg.Metrics.finished(c.op.label(), c.status)
	if c.status >= http.StatusBadRequest && c.backend != nil {
		c.cfg.Metrics.failed(c.op, c.req.model, c.status, time.Since(c.started))
	}
	if n := requestNumber(c.r); n != 0 && c.usage.Completion > 0 {
		c.cfg.Meter.Account(n, c.usage.Completion, time.Now())
	}
	c.span.SetAttributes(
		attribute.String("http.request.method", c.r.Method),
		attribute.String("http.route", c.op.Path),
		attribute.Int("http.response.status_code", c.status),
		attribute.String("gen_ai.request.model", c.req.model),
		attribute.Int64("gen_ai.usage.input_tokens", int64(c.usage.Prompt)),
		attribute.Int64("gen_ai.usage.output_tokens", int64(c.usage.Completion)),
	)
	c.trace()
	if c.status >= http.StatusInternalServerError {
		c.span.SetStatus(codes.Error, fmt.Sprint(c.status))
	}
	c.span.End()
	if cut != nil {
		panic(cut) // not ours: net/http cuts the connection by it
	}
}
