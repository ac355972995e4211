package api

import (
	"bytes"
	"context"
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
	first, end, last, whole := c.copy(events, buf, n, err)
	if !whole {
		if c.r.Context().Err() != nil {
			c.status = statusGone
		}
		// The client must not take half an answer for a whole one.
		panic(http.ErrAbortHandler)
	}
	c.usage, _ = c.backend.Usage(end)
	c.usage.Begun(first)
	if c.way.Timed {
		c.usage.Time(c.begun.Sub(c.sent), last.Sub(c.begun))
	}
	c.ticket.Release()
	c.account(time.Now())
	h[headerUsage] = []string{formatUsage(c.usage)}
	h[headerLoad] = []string{c.load()}
	if id := backend.ResponseID(first); c.op.responses && id != "" {
		h[headerResponse] = []string{id}
	}
	return nil
}

// firstKept is how much of the beginning of a stream is searched, in bytes.
const firstKept = 4 << 10

// copy forwards a stream of which n bytes have been read. It returns the beginning and
// the end, when that came, and whether it came and went to its end. Only of operations
// that say something there the beginning is kept.
func (c *call) copy(events io.Reader, buf *[16 << 10]byte, n int, err error) (first, end []byte, at time.Time, whole bool) {
	out := http.NewResponseController(c.w)
	var last tail
	var deadline time.Time
	filter := c.filter()
	c.ticket.Progress(c.prompt)
	for now := c.begun; ; now = time.Now() {
		if n > 0 {
			at = now
			if deadline.Sub(now) < writeFor*3/4 {
				deadline = now.Add(writeFor)
				_ = out.SetWriteDeadline(deadline)
			}
			last.keep(buf[:n])
			c.cfg.Meter.Serve(now)
			c.ticket.Progress(int64(bytes.Count(buf[:n], eventEnd)))
			part := buf[:n]
			if filter != nil {
				part = filter.Pass(part)
			}
			if c.op.responses || c.op.Dialect == apis.Anthropic {
				first = append(first, part[:min(len(part), firstKept-len(first))]...)
			}
			if !send(c.w, out, part) {
				return nil, nil, at, false
			}
		}
		if err != nil {
			if filter != nil && !send(c.w, out, filter.Rest()) {
				return nil, nil, at, false
			}
			return first, last, at, err == io.EOF
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
