package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"millrace.dev/millrace/engine/internal/admit"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/coalesce"
	"millrace.dev/millrace/engine/internal/supervise"
	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/wire"
)

// Embeddings of one text each are sent together: whoever comes while others are in the backend or
// in the queue joins who waits there already. Each caller gets an answer, an account and an
// error of its own: where the backend refuses a batch, or its account is not the sum of what was
// counted, each member goes alone.

// kin is what calls have in common that may be sent together.
type kin struct {
	serving  *supervise.Serving
	priority admit.Priority
	ids      bool   // whether the inputs are token ids
	tokens   int64  // that each has, where all must have equally many
	fields   string // all others, as JSON
}

// share is what a member of a batch gets.
type share struct {
	alone  bool // it is to be sent alone
	kind   string
	body   []byte
	failed *apiError
	// When it was let in, sent, begun and done.
	entered, sent, begun, done time.Time
}

type (
	batcher = coalesce.Batcher[kin, json.RawMessage, share]
	batch   = coalesce.Batch[kin, json.RawMessage, share]
	member  = coalesce.Member[json.RawMessage, share]
)

// For how long nothing is sent together: after a batch was refused, which may be one input's
// fault, and after one whose account nobody can divide.
const (
	apartRefused = time.Second
	apartUnknown = time.Minute
)

// single returns the only input of a list of embeddings, and how many ids it has; 0: it is a text.
func single(input json.RawMessage) (one json.RawMessage, ids int, ok bool) {
	var list []json.RawMessage
	switch {
	case len(input) == 0:
		return nil, 0, false
	case input[0] == '"':
		return input, 0, true
	case input[0] != '[' || json.Unmarshal(input, &list) != nil || len(list) == 0:
		return nil, 0, false
	case list[0][0] == '"', list[0][0] == '[':
		if len(list) > 1 {
			return nil, 0, false
		}
		if list[0][0] == '"' {
			return list[0], 0, true
		}
		input = list[0]
		if list = nil; json.Unmarshal(input, &list) != nil || len(list) == 0 {
			return nil, 0, false
		}
	}
	for _, id := range list {
		if id[0] < '0' || id[0] > '9' || bytes.ContainsAny(id, ".eE") {
			return nil, 0, false
		}
	}
	return input, len(list), true
}

// joins says whom the call may be sent together with; false: with nobody.
func (c *call) joins() (k kin, input json.RawMessage, tokens int64, ok bool) {
	if c.op.api != apis.Embeddings || c.op.passes || c.way.Batch < 2 || c.req.truncates || time.Now().UnixNano() < c.apart.Load() {
		return k, nil, 0, false
	}
	input, ids, ok := single(c.req.fields[c.op.Input])
	if !ok {
		return k, nil, 0, false
	}
	if tokens, ok = counted(c.r); !ok {
		tokens = int64(ids)
	}
	if tokens == 0 || tokens > c.way.BatchTokens {
		return k, nil, 0, false
	}
	rest := maps.Clone(c.req.fields)
	delete(rest, c.op.Input)
	k = kin{serving: c.serving, priority: priorityOf(c.r), ids: ids > 0, fields: string(backend.Encode(rest))}
	if c.way.BatchEqual {
		k.tokens = tokens
	}
	return k, input, tokens, true
}

// together has the call answered with others; false: it is to be sent alone.
func (c *call) together(ctx context.Context) (failed *apiError, answered bool) {
	key, input, tokens, ok := c.joins()
	if !ok {
		return nil, false
	}
	c.wanted = time.Now()
	b, m, leads := c.batcher.Join(ctx, key, coalesce.Size{Inputs: c.way.Batch, Tokens: c.way.BatchTokens}, input, tokens)
	stop := context.AfterFunc(ctx, func() { b.Leave(m) })
	defer stop()
	if leads {
		c.lead(b, m)
	}
	select {
	case <-b.Done():
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return &apiError{status: statusGone, Message: errGone.Error()}, true
	}
	r := m.Result
	if r.alone {
		return nil, false
	}
	c.entered, c.sent, c.begun, c.done = r.entered, r.sent, r.begun, r.done
	if r.failed != nil {
		if !r.sent.IsZero() && r.failed.Code != nil && *r.failed.Code == codeLost {
			c.w.Header().Set(wire.LostHeader, "1")
		}
		return r.failed, true
	}
	return c.reply(r.kind, r.body), true
}

// lead gathers a batch, has it answered, and gives each member its share.
func (c *call) lead(b *batch, own *member) {
	defer func() { b.End(time.Now()) }()
	b.Gather(int(c.serving.Assignment.GetBackend().GetSlots()))
	ctx, cancel := context.WithCancelCause(b.Context())
	defer cancel(errGone)
	ask := &call{Server: c.Server, op: c.op, w: unheard{}, r: c.r.WithContext(b.Context()), req: c.req, serving: c.serving, backend: c.backend, prompt: c.prompt, span: c.span}
	failed := ask.enter(ctx, cancel)
	members := b.Seal(time.Now())
	give := func(s share) {
		s.entered, s.sent, s.begun, s.done = ask.entered, ask.sent, ask.begun, ask.done
		for _, m := range members {
			m.Result = s
		}
	}
	if failed != nil {
		give(share{failed: failed})
		return
	}
	defer ask.ticket.Release()
	if len(members) == 0 {
		return
	}
	lost := context.AfterFunc(c.serving.Alive, func() { cancel(supervise.ErrEnds) })
	defer lost()
	inputs, tokens := make([]json.RawMessage, len(members)), make([]int64, len(members))
	for i, m := range members {
		if inputs[i], tokens[i] = m.Call, m.Tokens; m != own {
			ask.ticket.More(m.Tokens)
		}
	}
	if ask.way = c.way; len(members) > 1 || members[0] != own {
		ask.prepare(inputs)
	}
	kind, body, failed := ask.batch(ctx, len(members))
	c.cfg.Metrics.batched(len(members))
	switch {
	case failed != nil && (len(members) == 1 || failed.status == http.StatusServiceUnavailable && ask.begun.IsZero()):
		give(share{failed: failed})
		return
	case failed != nil:
		c.stayApart(apartRefused)
		give(share{alone: true})
		return
	case len(members) == 1:
		give(share{kind: kind, body: body})
	default:
		parts, err := divide(body, tokens)
		if err != nil {
			c.cfg.Log.Warn("embeddings that were asked for together can't be divided: each is asked for alone", "err", err, "for", apartUnknown)
			c.stayApart(apartUnknown)
			give(share{alone: true})
			return
		}
		give(share{kind: kind})
		for i, m := range members {
			m.Result.body = parts[i]
		}
	}
	ask.ticket.Begun(c.prompt)
}

// stayApart has nothing sent together for a while.
func (c *call) stayApart(d time.Duration) {
	c.apart.Store(time.Now().Add(d).UnixNano())
	c.cfg.Metrics.split.Inc()
}

// prepare asks for all inputs.
func (c *call) prepare(inputs []json.RawMessage) {
	fields := maps.Clone(c.req.fields)
	if fields[c.op.Input] = inputs[0]; len(inputs) > 1 {
		fields[c.op.Input] = backend.Encode(inputs)
	}
	c.way = c.backend.Prepare(c.serving.Assignment, backend.Request{API: c.op.api, Body: backend.Encode(fields), Fields: fields})
	c.way.Parts = nil // they may go together
}

// batch has the backend answer n inputs at once.
func (c *call) batch(ctx context.Context, n int) (kind string, body []byte, failed *apiError) {
	ctx, span := c.cfg.Tracer.Start(ctx, "backend", trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attribute.Int("millrace.batch", n)))
	defer func() {
		c.done = time.Now()
		span.End(trace.WithTimestamp(c.done))
	}()
	if c.way.Refused != nil {
		return "", nil, fromError(*c.way.Refused)
	}
	free, failed := c.alone(ctx)
	if failed != nil {
		return "", nil, failed
	}
	defer free()
	resp, failed := c.send(ctx, span, c.way.Body)
	if failed != nil {
		return "", nil, failed
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		span.SetStatus(codes.Error, resp.Status)
		return "", nil, c.refused(ctx, resp)
	}
	body, err := readAll(resp.Body, resp.ContentLength)
	if err != nil {
		c.begun = time.Time{} // it was lost: nobody has a part of it
		return "", nil, c.ended(ctx, err)
	}
	return resp.Header.Get("Content-Type"), body, nil
}

// alone waits until nothing is in the backend that may not be there with the call.
func (c *call) alone(ctx context.Context) (free func(), failed *apiError) {
	if !c.way.Single {
		return func() {}, nil
	}
	select {
	case c.single <- struct{}{}:
		return func() { <-c.single }, nil
	case <-ctx.Done():
		return nil, c.ended(ctx, ctx.Err())
	}
}

// divide makes an answer for each input of one for all: the account of each is what was counted
// of it, which has to be the backend's in sum.
func divide(answer []byte, tokens []int64) ([][]byte, error) {
	var whole map[string]json.RawMessage
	var known struct {
		Data []struct {
			Index *int `json:"index"`
		} `json:"data"`
		Usage struct {
			Prompt int64 `json:"prompt_tokens"`
			Total  int64 `json:"total_tokens"`
		} `json:"usage"`
	}
	if err := errors.Join(json.Unmarshal(answer, &whole), json.Unmarshal(answer, &known)); err != nil {
		return nil, fmt.Errorf("embeddings: %w", err)
	}
	var data []map[string]json.RawMessage
	if err := json.Unmarshal(whole["data"], &data); err != nil {
		return nil, fmt.Errorf("embeddings: data: %w", err)
	}
	sum := int64(0)
	for _, n := range tokens {
		sum += n
	}
	if len(data) != len(tokens) || known.Usage.Prompt != sum || known.Usage.Total != sum {
		return nil, fmt.Errorf("embeddings: %d with %d tokens in all, %d; want %d with %d", len(data), known.Usage.Prompt, known.Usage.Total, len(tokens), sum)
	}
	var usage map[string]json.RawMessage
	if err := json.Unmarshal(whole["usage"], &usage); err != nil {
		return nil, fmt.Errorf("embeddings: usage: %w", err)
	}
	parts := make([][]byte, len(tokens))
	for i, d := range data {
		at := known.Data[i].Index
		if d == nil || at == nil || *at < 0 || *at >= len(parts) || parts[*at] != nil {
			return nil, fmt.Errorf("embeddings: entry %d has the index %s", i, d["index"])
		}
		d["index"] = json.RawMessage("0")
		whole["data"] = backend.Encode([]any{d})
		usage["prompt_tokens"] = backend.Encode(tokens[*at])
		usage["total_tokens"] = usage["prompt_tokens"]
		whole["usage"] = backend.Encode(usage)
		parts[*at] = backend.Encode(whole)
	}
	return parts, nil
}

// unheard takes what is for one client where several are answered.
type unheard struct{}

func (unheard) Header() http.Header         { return http.Header{} }
func (unheard) Write(p []byte) (int, error) { return len(p), nil }
func (unheard) WriteHeader(int)             {}
