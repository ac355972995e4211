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

// trailers is announced before a stream, so that they may follow it.
var trailers = []string{headerUsage + ", " + headerLoad}

// eventEnd ends an event of a stream; nearly every event is a token.
var eventEnd = []byte("\n\n")

// stream passes events on as they come and reports usage and load in trailers.
func (c *call) stream(events io.Reader) {
	h := c.w.Header()
	h["Content-Type"] = []string{"text/event-stream"}
	h["Cache-Control"] = []string{"no-cache"}
	h["Trailer"] = trailers
	h[headerLoad] = []string{c.load()}
	c.w.WriteHeader(http.StatusOK)
	end, whole := c.copy(events)
	if !whole {
		if c.r.Context().Err() != nil {
			c.status = statusGone
		}
		// The client must not take half an answer for a whole one.
		panic(http.ErrAbortHandler)
	}
	c.usage, _ = llamacpp.ParseUsage(end)
	c.ticket.Release()
	c.account(time.Now())
	h[headerUsage] = []string{formatUsage(c.usage)}
	h[headerLoad] = []string{c.load()}
}

// copy returns the end of the stream, and whether it came and went to its end.
func (c *call) copy(events io.Reader) (end []byte, whole bool) {
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
			c.cfg.Meter.Serve(now)
			c.ticket.Progress(int64(bytes.Count(buf[:n], eventEnd)))
			if _, werr := c.w.Write(buf[:n]); werr != nil || out.Flush() != nil {
				return nil, false
			}
		}
		if err != nil {
			return last, err == io.EOF
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
