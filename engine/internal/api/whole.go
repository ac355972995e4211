package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"millrace.dev/millrace/engine/internal/backend"
)

// assemble puts a stream together to the unary answer that the client wants.
func (c *call) assemble(ctx context.Context, events io.Reader) *apiError {
	buf := buffers.Get().(*[16 << 10]byte)
	defer buffers.Put(buf)
	whole := backend.Whole{N: c.way.Choices}
	c.ticket.Progress(c.prompt)
	c.measured = true
	for first := true; ; first = false {
		n, err := events.Read(buf[:])
		now := time.Now()
		if first {
			c.begun = now
			c.ticket.Begun(c.prompt)
		}
		c.cfg.Meter.Serve(now)
		_, _ = whole.Write(buf[:n])
		c.generate(bytes.Count(buf[:n], eventEnd))
		if err == io.EOF {
			break
		}
		if err != nil {
			c.cut()
			return c.ended(ctx, err)
		}
	}
	body, err := whole.JSON()
	var refused *backend.StreamError
	switch {
	case errors.As(err, &refused):
		return c.fromBackend(refused.Status(), refused.Body)
	case err != nil:
		return c.ended(ctx, err)
	}
	return c.reply("application/json; charset=utf-8", body)
}
