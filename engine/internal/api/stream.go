package api

import (
	"bytes"
	"io"
	"net/http"
	"sync"
	"time"

	"millrace.dev/millrace/engine/internal/llamacpp"
)

// writeFor bounds how long a client may leave a stream unread; it is looked at
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

// stream passes events on as they come and reports usage and load in trailers.
func (c *call) stream(events io.Reader) {
	c.cached = true // it has computed the prompt
	h := c.w.Header()
	h["Content-Type"] = []string{"text/event-stream"}
	h["Cache-Control"] = []string{"no-cache"}
	h["Trailer"] = trailers
	if c.op.responses {
		h["Trailer"] = responseTrailers
	}
	h[headerLoad] = []string{c.load()}
	c.w.WriteHeader(http.StatusOK)
	first, end, whole := c.copy(events)
	if !whole {
		if c.r.Context().Err() != nil {
			c.status = statusGone
		}
		// The client must not take half an answer for a whole one.
		panic(http.ErrAbortHandler)
	}
	c.usage, _ = llamacpp.ParseUsage(end)
	c.usage.Begun(first)
	c.ticket.Release()
	c.account(time.Now())
	h[headerUsage] = []string{formatUsage(c.usage)}
	h[headerLoad] = []string{c.load()}
	if id := llamacpp.ResponseID(first); c.op.responses && id != "" {
		h[headerResponse] = []string{id}
	}
}

// firstKept is how much of the beginning of a stream is looked at, in bytes.
const firstKept = 4 << 10

// copy returns the beginning and the end of the stream, and whether it came and
// went to its end. Only of operations that say something there the beginning is kept.
func (c *call) copy(events io.Reader) (first, end []byte, whole bool) {
	buf := buffers.Get().(*[16 << 10]byte)
	defer buffers.Put(buf)
	out := http.NewResponseController(c.w)
	var last tail
	var deadline time.Time
	c.ticket.Progress(c.prompt)
	for {
		n, err := events.Read(buf[:])
		now := time.Now()
		if n > 0 {
			if deadline.Sub(now) < writeFor*3/4 {
				deadline = now.Add(writeFor)
				_ = out.SetWriteDeadline(deadline)
			}
			last.keep(buf[:n])
			if c.op.responses || c.op.anthropic {
				first = append(first, buf[:min(n, firstKept-len(first))]...)
			}
			c.cfg.Meter.Serve(now)
			c.ticket.Progress(int64(bytes.Count(buf[:n], eventEnd)))
			if _, werr := c.w.Write(buf[:n]); werr != nil || out.Flush() != nil {
				return nil, nil, false
			}
		}
		if err != nil {
			return first, last, err == io.EOF
		}
	}
}

// tail holds the last bytes of a stream, llamacpp.UsageTail of them or more.
type tail []byte

func (t *tail) keep(p []byte) {
	const size = llamacpp.UsageTail
	if len(p) > size {
		p = p[len(p)-size:]
	}
	if b := *t; len(b)+len(p) > 2*size {
		*t = b[:copy(b, b[len(b)-size:])]
	}
	*t = append(*t, p...)
}
