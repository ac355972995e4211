package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/trace"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/resume"
	"millrace.dev/millrace/engine/internal/supervise"
)

const (
	// mostResumed is how often one stream is continued; the next loss ends it.
	mostResumed = 3
	// ResumeFor bounds how long its client waits for that, resumeEvery is how often this
	// engine's own backend is tried meanwhile, and peersEvery how many of those pass
	// between two rounds of its peers.
	ResumeFor   = time.Minute
	resumeEvery = 100 * time.Millisecond
	peersEvery  = 20
	// mostEvent bounds one event, in bytes.
	mostEvent = 1 << 20
)

// rest is the rest of a choice, asked for.
type rest struct {
	events io.ReadCloser // nil: the limit leaves nothing to generate, or it was only counted
	counts resume.Counts
	where  string // own or elsewhere
	free   func()
}

func (r *rest) close() {
	if r.events != nil {
		_ = r.events.Close()
	}
	if r.free != nil {
		r.free()
	}
}

// resumed reads a stream that is continued by the rest of its choices, one after the other,
// when its backend is lost. It hands on whole events alone.
type resumed struct {
	c      *call
	ctx    context.Context
	state  *resume.Stream
	first  io.Reader
	rest   *rest // of choice; nil: the first stream is being read
	choice int
	times  int

	in, out []byte
	end     error // behind out
}

// resumable returns a stream of which begun was read, and err came behind it, as one that
// can be continued; nil: it can't.
func (c *call) resumable(ctx context.Context, events io.Reader, begun []byte, err error) *resumed {
	how := c.way.Continue
	if how == nil || !c.req.stream || c.asked != nil || resume.Guided(c.req.fields) {
		return nil
	}
	r := &resumed{c: c, ctx: ctx, state: resume.New(how.Form, how.Choices), first: events}
	r.take(begun)
	if err != nil {
		r.over(err)
	}
	return r
}

// close ends what is being read.
func (r *resumed) close() {
	if r.rest != nil {
		r.rest.close()
		r.rest = nil
	}
}

// Read reads what the client gets.
func (r *resumed) Read(p []byte) (int, error) {
	for len(r.out) == 0 && r.end == nil {
		from := r.first
		if r.rest != nil {
			from = r.rest.events
		}
		n, err := from.Read(p)
		r.take(p[:n])
		if err != nil {
			r.over(err)
		}
	}
	n := copy(p, r.out)
	if r.out = r.out[n:]; len(r.out) > 0 {
		return n, nil
	}
	return n, r.end
}

// errEvent is the end of a stream that is none.
var errEvent = fmt.Errorf("an event of more than %d bytes", mostEvent)

// take takes what was read: the whole events of it.
func (r *resumed) take(p []byte) {
	r.in = append(r.in, p...)
	size := resume.Whole(r.in)
	if size == 0 {
		if len(r.in) > mostEvent {
			r.end = errEvent
		}
		return
	}
	events := r.in[:size]
	if failed := backend.FirstError(events); failed != nil && r.c.backend.Error(failed.Status(), failed.Body).Code == codeLost {
		r.in = r.in[:0]
		r.over(failed)
		return
	}
	if r.rest == nil {
		r.out = append(r.out, events...)
		r.state.Take(events)
	} else {
		r.out = append(r.out, r.state.Splice(r.choice, r.rest.counts, events)...)
	}
	r.in = append(r.in[:0], r.in[size:]...)
}

// over continues behind the end of what was read, which err says.
func (r *resumed) over(err error) {
	if r.end != nil {
		return
	}
	next, open := r.state.Next()
	switch {
	case r.rest == nil && errors.Is(err, io.EOF): // a body that was lost ends otherwise
		r.out, r.in, r.end = append(r.out, r.in...), nil, io.EOF
		return
	case r.rest != nil && errors.Is(err, io.EOF) && (!open || next.Index != r.choice):
		err = nil // the rest of this choice is whole
	case r.ctx.Err() != nil:
		r.end = err
		return
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		r.in = r.in[:0]
		r.c.ticket.Release()
	}
	r.close()
	if cause := r.proceed(err); cause != nil {
		r.end = cause
	}
}

// proceed asks for the rest of the next choice. lost is why it is needed; nil: the rest of
// the last one is whole.
func (r *resumed) proceed(lost error) error {
	began := time.Now()
	req, err := resume.Read(r.c.way.Continue.Way, r.c.way.Body)
	if why := r.state.Why(); err == nil {
		err = why
	}
	if lost != nil {
		if r.times++; err == nil && r.times > mostResumed {
			err = errOften
		}
		if err != nil {
			r.c.resumedAs(resumeRefused, began, err)
			return lost
		}
		r.state.Resume(req)
	}
	for {
		part, open := r.state.Next()
		if !open {
			if part, open = r.state.Uncounted(); !open || r.c.way.Continue.Form == resume.Message {
				r.out, r.end = append(r.out, r.state.End()...), io.EOF
				return nil
			}
			got, err := r.c.seek(r.ctx, req, part, true)
			if err != nil {
				r.c.resumedAs(resumeFailed, began, err)
				return err
			}
			r.out = r.state.Account(r.out, part.Index, got.counts)
			continue
		}
		got, err := r.c.seek(r.ctx, req, part, false)
		if err != nil {
			r.c.resumedAs(resumeFailed, began, err)
			return err
		}
		if lost != nil {
			r.c.resumedAs(got.where, began, nil)
			lost = nil
		}
		if got.events == nil {
			r.out = append(r.out, r.state.Limit(part.Index, got.counts)...)
			continue
		}
		r.state.Resume(req)
		r.rest, r.choice = got, part.Index
		return nil
	}
}

// Why a stream is not continued.
var (
	errOften  = fmt.Errorf("its backends were lost more than %d times", mostResumed)
	errNobody = errors.New("neither this engine's backend nor a peer took it in time")
)

// finalRefusal is a refusal that no other try changes.
type finalRefusal struct{ error }

// seek asks this engine's own backend for the rest of a part as soon as it serves, and its
// peers meanwhile.
func (c *call) seek(ctx context.Context, req *resume.Request, part resume.Part, only bool) (*rest, error) {
	deadline := time.NewTimer(c.cfg.ResumeFor)
	defer deadline.Stop()
	again := time.NewTicker(resumeEvery)
	defer again.Stop()
	last := error(errNobody)
	for round := 0; ; round++ {
		if v, _ := c.cfg.Serving(); v != nil && v.Assignment.GetModel() == c.req.model && c.cfg.Kinds.Of(v.Assignment) == c.backend {
			got, err := c.askOwn(ctx, v, req, part, only)
			var refusal finalRefusal
			if err == nil || errors.As(err, &refusal) {
				return got, err
			}
			last = err
		}
		if round%peersEvery == 0 {
			if got, err := c.askPeers(ctx, part, only); err == nil {
				return got, nil
			}
		}
		select {
		case <-again.C:
		case <-deadline.C:
			return nil, last
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// askOwn asks the backend of this engine.
func (c *call) askOwn(ctx context.Context, v *supervise.Serving, req *resume.Request, part resume.Part, only bool) (*rest, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	ends := context.AfterFunc(v.Alive, func() { cancel(supervise.ErrEnds) })
	fail := func(err error) (*rest, error) {
		ends()
		cancel(err)
		return nil, err
	}
	counts, err := c.countPart(ctx, v, req, part)
	if err != nil {
		return fail(err)
	}
	got := &rest{counts: counts, where: resumeOwn, free: func() { ends(); cancel(nil) }}
	body, err := req.Follow(part, counts)
	switch {
	case err != nil:
		return fail(finalRefusal{err})
	case only, body == nil:
		got.free()
		return got, nil
	}
	c.serving = v
	if failed := c.enter(ctx, cancel); failed != nil {
		return fail(failed)
	}
	ticket := c.ticket
	done := c.restoreCache(ctx)
	defer done()
	resp, failed := c.send(ctx, trace.SpanFromContext(ctx), body)
	if failed != nil {
		ticket.Release()
		return fail(failed)
	}
	if resp.StatusCode != http.StatusOK {
		failed := c.refused(ctx, resp)
		_ = resp.Body.Close()
		ticket.Release()
		if failed.status < http.StatusInternalServerError && failed.status != http.StatusTooManyRequests {
			return fail(finalRefusal{failed})
		}
		return fail(failed)
	}
	ends()
	got.events, got.free = resp.Body, func() { cancel(nil); ticket.Release() }
	return got, nil
}

// countPart counts the tokens of the prompt, and of the part behind it.
func (c *call) countPart(ctx context.Context, v *supervise.Serving, req *resume.Request, part resume.Part) (counts resume.Counts, err error) {
	without, err := req.With(resume.Part{})
	if err != nil {
		return counts, finalRefusal{err}
	}
	with, err := req.With(part)
	if err != nil {
		return counts, finalRefusal{err}
	}
	if counts.Prompt, err = c.way.Continue.Count(ctx, v.Assignment, without); err != nil || part.Empty() {
		return counts, err
	}
	all, err := c.way.Continue.Count(ctx, v.Assignment, with)
	counts.Delivered = all - min(all, counts.Prompt)
	return counts, err
}

// resumedAs counts and logs what became of a stream whose backend was lost.
func (c *call) resumedAs(outcome string, began time.Time, err error) {
	c.cfg.Metrics.resumed.WithLabelValues(outcome).Inc()
	attrs := []any{"outcome", outcome, "replica", c.serving.Assignment.GetReplica(), "path", c.op.Path, "waited", time.Since(began).Round(time.Millisecond)}
	if id := c.r.Header.Get("X-Request-Id"); id != "" {
		attrs = append(attrs, "request", id)
	}
	if err != nil {
		attrs = append(attrs, "err", err)
	}
	c.cfg.Log.Info("stream resumed", attrs...)
}
