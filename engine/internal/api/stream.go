package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/apis"
)

// writeFor bounds how long a client may leave a stream unread; it is checked
// every writeFor/4.
const writeFor = 2 * time.Minute

// sendsFor is how long sending a part takes at most where its client keeps up.
const sendsFor = 10 * time.Millisecond

var buffers = sync.Pool{New: func() any { return new([16 << 10]byte) }}

// trailers is announced before a stream, so that they may follow it; those of
// responses have an id.
var (
	trailers         = []string{headerUsage + ", " + headerLoad}
	responseTrailers = []string{headerUsage + ", " + headerLoad + ", " + headerResponse}
)

// eventEnd ends an event of a stream; nearly every event is a token.
var eventEnd = []byte("\n\n")

// stream forwards events as they come and reports usage and load in trailers. Until
// the first of them has come nothing is sent: lost then stops the watch over the
// backend's state.
func (c *call) stream(ctx context.Context, events io.Reader, lost func() bool) *apiError {
	buf := buffers.Get().(*[16 << 10]byte)
	defer buffers.Put(buf)
	n, err := events.Read(buf[:])
	if n == 0 && err != nil {
		return c.ended(ctx, err)
	}
	if refused := backend.FirstError(buf[:n]); refused != nil {
		return c.fromBackend(refused.Status(), refused.Body)
	}
	lost()
	c.begun, c.cached = time.Now(), true // it has computed the prompt
	h := c.w.Header()
	h["Content-Type"] = []string{"text/event-stream"}
	h["Cache-Control"] = []string{"no-cache"}
	h["Trailer"] = trailers
	if c.op.responses {
		h["Trailer"] = responseTrailers
	}
	h[headerLoad] = []string{c.load()}
	c.w.WriteHeader(http.StatusOK)
	r := c.resumable(ctx, events, buf[:n], err)
	if r != nil {
		defer r.close()
		events = r
		n, err = r.Read(buf[:])
	}
	first, end, last, err := c.copy(events, buf, n, err)
	if err != nil {
		c.cut()
		c.broken(ctx, r != nil || c.filter() != nil || bytes.HasSuffix(end, eventEnd), err)
		return nil
	}
	c.usage, _ = c.backend.Usage(end)
	if all, ok := c.way.Reform.(tallied); ok {
		if u, several := all.Tally(); several {
			c.usage = u
		}
	}
	c.usage.Begun(first)
	if r != nil && r.state.Resumed() {
		c.usage = backend.Usage{}
		c.usage.Prompt, c.usage.Completion = r.state.Usage()
	} else if c.way.Timed {
		c.usage.Time(c.begun.Sub(c.sent), last.Sub(c.begun))
	}
	c.ticket.Release()
	c.account(time.Now())
	h[headerUsage] = []string{formatUsage(c.usage)}
	h[headerLoad] = []string{c.load()}
	if id := c.responseID(first); id != "" {
		h[headerResponse] = []string{id}
	}
	return nil
}

// broken ends a stream whose backend was lost: the client must not take half an answer for
// a whole one. It gets an error in the API's form, where what it has are whole events.
func (c *call) broken(ctx context.Context, whole bool, err error) {
	if errors.Is(err, errUnsent) || c.r.Context().Err() != nil {
		c.status = statusGone
		panic(http.ErrAbortHandler) // not a bug: net/http cuts the connection by it
	}
	why := c.ended(ctx, err)
	c.status = http.StatusBadGateway
	last := c.failure(why)
	if !whole || !send(c.w, http.NewResponseController(c.w), last) {
		panic(http.ErrAbortHandler) // not a bug: net/http cuts the connection by it
	}
}

// failure is an error as the last event of a stream.
func (c *call) failure(why *apiError) []byte {
	if c.way.Reform != nil {
		if last := c.way.Reform.Fail(backend.Error{Status: why.status, Message: why.Message, Type: why.Type}); last != nil {
			return last
		}
	}
	var kind string
	var v any
	switch {
	case c.op.Dialect == apis.Anthropic:
		kind, v = "event: error\n", anthropicError(c.r, "api_error", why.Message)
	case c.op.responses:
		kind, v = "event: error\n", map[string]any{
			"type": "error", "code": serverError, "message": why.Message, "param": nil, "sequence_number": c.events,
		}
	default:
		v = map[string]any{"error": why}
	}
	return append(append([]byte(kind+"data: "), backend.Encode(v)...), eventEnd...)
}

// errUnsent is the end of a stream that its client does not take.
var errUnsent = errors.New("the client does not read")

// firstKept is how much of the beginning of a stream is searched, in bytes.
const firstKept = 4 << 10

// copy forwards a stream of which n bytes have been read. It returns the beginning and
// the end, when that came, and why it did not come or go to its end. Only of operations
// that say something there the beginning is kept.
func (c *call) copy(events io.Reader, buf *[16 << 10]byte, n int, err error) (first, end []byte, at time.Time, failed error) {
	out := http.NewResponseController(c.w)
	var last tail
	var deadline time.Time
	filter := c.filter()
	c.ticket.Progress(c.prompt)
	c.ticket.Begun(c.prompt)
	for now := c.begun; ; now = time.Now() {
		if n > 0 {
			at = now
			if deadline.Sub(now) < writeFor*3/4 {
				deadline = now.Add(writeFor)
				_ = out.SetWriteDeadline(deadline)
			}
			last.keep(buf[:n])
			c.cfg.Meter.Serve(now)
			c.generate(bytes.Count(buf[:n], eventEnd))
			part := buf[:n]
			if filter != nil {
				part = filter.Pass(part)
			}
			if c.op.responses || c.op.Dialect == apis.Anthropic {
				first = append(first, part[:min(len(part), firstKept-len(first))]...)
			}
			if !send(c.w, out, part) {
				return nil, nil, at, errUnsent
			}
			if time.Since(now) > sendsFor {
				c.ticket.Blocked()
			}
		}
		if err != nil && err != io.EOF {
			return first, last, at, err
		}
		if err == io.EOF {
			if filter != nil && !send(c.w, out, filter.Rest()) {
				return nil, nil, at, errUnsent
			}
			return first, last, at, nil
		}
		n, err = events.Read(buf[:])
	}
}

// filter is what a stream passes through; nil: all of it passes.
func (c *call) filter() filter {
	switch {
	case c.way.Reform != nil:
		return c.way.Reform
	case c.way.Answer == backend.DropUsage:
		return new(backend.Filter)
	}
	return nil
}

// tallied is a stream of several choices, each with an account.
type tallied interface {
	Tally() (backend.Usage, bool)
}

// filter makes the client's stream of the backend's.
type filter interface {
	Pass(p []byte) []byte
	Rest() []byte
}

// send writes a part of a stream at once, and reports whether the client takes it.
func send(w io.Writer, out *http.ResponseController, part []byte) bool {
	if len(part) == 0 {
		return true
	}
	_, err := w.Write(part)
	return err == nil && out.Flush() == nil
}

// tail holds the last bytes of a stream, backend.UsageTail of them or more.
type tail []byte

func (t *tail) keep(p []byte) {
	const size = backend.UsageTail
	if len(p) > size {
		p = p[len(p)-size:]
	}
	if b := *t; len(b)+len(p) > 2*size {
		*t = b[:copy(b, b[len(b)-size:])]
	}
	*t = append(*t, p...)
}
