// Package openai is the kind of backend that is an external server of the OpenAI API:
// engine starts nothing, probes its health and one token, and forwards requests to it.
//
// Called through backend.Kind. Its one rule: the server is assumed to have the API and
// nothing else, and what engine does not know passes through unchanged.
package openai

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/dialect"
	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/backends"
	"millrace.dev/millrace/internal/blocks"
)

// Kind is any server of the API.
type Kind struct {
	client *backend.Client
	lacks  atomic.Pointer[map[apis.API]bool] // whether the server has not an operation; absent: not known
}

// New returns servers that are reached through t.
func New(t http.RoundTripper) *Kind { return &Kind{client: backend.NewClient(t)} }

// Check returns what nobody can ask of an external server.
func (k *Kind) Check(a *enginepb.Assignment) error { return backend.CheckSettings(backends.OpenAI, a) }

// Capabilities are not known.
func (k *Kind) Capabilities(a *enginepb.Assignment) *enginepb.Capabilities {
	return &enginepb.Capabilities{ContextTokens: a.GetBackend().GetContextTokens(), Unknown: true}
}

// Process returns the head, which runs already.
func (k *Kind) Process(r backend.Role, a *enginepb.Assignment) (backend.Process, error) {
	if r != backend.Head {
		return backend.Process{}, backend.ErrStages
	}
	url := k.URL(a)
	return backend.Process{Ready: func(ctx context.Context) error { return k.healthy(ctx, url) }}, nil
}

// healthy returns nil if the server answers at all: not every one has a path for it.
func (k *Kind) healthy(ctx context.Context, url string) error {
	_, err := k.client.Do(ctx, http.MethodGet, url+"/health", nil)
	var status *backend.ErrStatus
	if err != nil && (!errors.As(err, &status) || status.Status >= http.StatusInternalServerError) {
		k.lacks.Store(nil)
		return err
	}
	k.lacks.Store(k.lacking(ctx, url))
	return nil
}

// standsIn are the operations that chat completions can stand in for.
var standsIn = []apis.API{apis.Responses, apis.Messages}

// lacking returns what is known of them, and asks for those of which nothing is, with a body
// that none takes. What a server answers that is overloaded or broken is no knowledge: it is
// asked again with its health.
func (k *Kind) lacking(ctx context.Context, url string) *map[apis.API]bool {
	known := k.lacks.Load()
	if known != nil && len(*known) == len(standsIn) {
		return known
	}
	lacks := map[apis.API]bool{}
	if known != nil {
		maps.Copy(lacks, *known)
	}
	for _, api := range standsIn {
		if _, ok := lacks[api]; ok {
			continue
		}
		_, err := k.client.Do(ctx, http.MethodPost, url+api.Row().Path, []byte("{}"))
		var status *backend.ErrStatus
		switch {
		case err == nil:
			lacks[api] = false
		case errors.As(err, &status) && !passing(status.Status):
			e := k.Error(status.Status, status.Body)
			lacks[api] = e.Lacks()
		}
	}
	return &lacks
}

// passing reports whether a status is about the moment, and not about what was asked for.
func passing(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	}
	return status >= http.StatusInternalServerError && status != http.StatusNotImplemented
}

// served is the model's id at the server.
func served(a *enginepb.Assignment) string {
	if id := a.GetBackend().GetServedModel(); id != "" {
		return id
	}
	return a.GetModel()
}

// probes are the requests one of which every model answers, the first that does
// counts: a chat, a completion, embeddings.
var probes = []struct {
	path, body string
	stream     bool
}{
	{"/v1/chat/completions", `{"model":%s,"messages":[{"role":"user","content":"Count to ten."}],"max_tokens":%d,"temperature":0,"stream":true,"stream_options":{"include_usage":true}}`, true},
	{"/v1/completions", `{"model":%s,"prompt":"One two three","max_tokens":%d,"temperature":0,"stream":true,"stream_options":{"include_usage":true}}`, true},
	{"/v1/embeddings", `{"model":%s,"input":"One two three"}`, false},
}

// Probe has the server generate, or do what its model is for.
func (k *Kind) Probe(ctx context.Context, a *enginepb.Assignment, tokens int) (backend.Speed, error) {
	model, err := json.Marshal(served(a))
	if err != nil {
		return backend.Speed{}, err
	}
	var first error
	for _, p := range probes {
		var u backend.Usage
		if p.stream {
			u, err = k.client.Stream(ctx, k.URL(a)+p.path, fmt.Appendf(nil, p.body, model, tokens))
		} else {
			_, err = k.client.Do(ctx, http.MethodPost, k.URL(a)+p.path, fmt.Appendf(nil, p.body, model))
		}
		var status *backend.ErrStatus
		switch {
		case err == nil:
			return u.Speed(), nil
		case first == nil:
			first = err
		}
		if !errors.As(err, &status) || !otherKind(status.Status) {
			break
		}
	}
	return backend.Speed{}, first
}

// otherKind reports whether a status may mean that the model is for something else.
func otherKind(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusUnprocessableEntity, http.StatusNotImplemented:
		return true
	}
	return false
}

// Room is not known.
func (k *Kind) Room(*enginepb.Assignment) (backend.KV, error) { return backend.KV{}, nil }

// Load is not known.
func (k *Kind) Load(context.Context, *enginepb.Assignment) (backend.Load, error) {
	return backend.Load{}, nil
}

// Blocks is none: nothing is taken for granted.
func (k *Kind) Blocks(*enginepb.Assignment) *blocks.Log { return nil }

// States is none: the API has nothing for it.
func (k *Kind) States(*enginepb.Assignment) backend.States { return nil }

// URL is that of the server.
func (k *Kind) URL(a *enginepb.Assignment) string {
	u, err := backends.ParseURL(a.GetBackend().GetUrl())
	if err != nil {
		return "" // Check has refused it
	}
	return strings.TrimRight(u.String(), "/")
}

// Passes lets everything pass.
func (k *Kind) Passes(string) bool { return true }

// Closed is nothing: what the server has beside the API is not known.
func (k *Kind) Closed() backend.Closed { return nil }

// Prepare gives the model the name that it has there, asks streams for their account, and has
// put right what servers are known to have otherwise than the API. What the server lacks is
// made a request for chat completions, if that can be.
func (k *Kind) Prepare(a *enginepb.Assignment, r backend.Request) backend.Way {
	w := backend.Way{Reform: dialect.Right(r)}
	if lacks := k.lacks.Load(); lacks != nil && (*lacks)[r.API] {
		over, form, fault := dialect.OverChat(r, "")
		if fault != nil {
			return backend.Way{Refused: fault}
		}
		r, w.Path, w.Reform = over, apis.Chat.Row().Path, form
	}
	w.Body, w.Timed = r.Body, r.Completion && r.Stream
	if r.API == apis.Embeddings && w.Path == "" {
		w.Batch, w.BatchTokens = int(a.GetBackend().GetSlots()), backend.BatchTokens
	}
	if w.Timed {
		var added bool
		if w.Body, added = backend.AskUsage(r); added {
			w.Answer, w.Reform = backend.DropUsage, dialect.Unasked(w.Reform)
		}
	}
	if id := a.GetBackend().GetServedModel(); id != "" && id != a.GetModel() {
		if name, err := json.Marshal(id); err == nil {
			w.Body = backend.Set(w.Body, "model", name)
		}
	}
	return w
}

// Usage reads the account at the end of an answer.
func (k *Kind) Usage(end []byte) (backend.Usage, bool) { return backend.ParseUsage(end) }

// Error reads the server's error.
func (k *Kind) Error(status int, body []byte) backend.Error { return backend.ParseError(status, body) }
