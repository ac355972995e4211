package llamacpp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/backends"
	"millrace.dev/millrace/internal/blocks"
)

// Kind is llama.cpp on this node.
type Kind struct {
	Programs
	client *backend.Client

	// toolless is whether the model's template has no tools. Atomic.
	toolless atomic.Bool
	states   states
}

// New returns llama.cpp as programs has it, which is reached through t.
func New(programs Programs, t http.RoundTripper) *Kind {
	k := &Kind{Programs: programs, client: backend.NewClient(t)}
	k.states.k = k
	return k
}

// Check returns what llama.cpp can't be asked for, or what this node lacks to run it.
func (k *Kind) Check(a *enginepb.Assignment) error {
	if err := backend.CheckSettings(backends.LlamaCpp, a); err != nil {
		return err
	}
	if !k.Given() {
		return errors.New("backend.kind: LLAMACPP: no llama.cpp is on this node: start the engine with -runtime, or with -llama-server and -rpc-server")
	}
	return nil
}

// Capabilities are those of llama.cpp with the arguments that it is given here.
func (k *Kind) Capabilities(a *enginepb.Assignment) *enginepb.Capabilities {
	return &enginepb.Capabilities{
		ContextTokens: a.GetBackend().GetContextTokens(), Embeddings: true, Tools: true, KvSave: k.StateFolder != "",
		TensorParallel: 1, PipelineParallel: uint32(len(a.GetStages())), DataParallel: 1,
	}
}

// Process returns a process of the replica.
func (k *Kind) Process(r backend.Role, a *enginepb.Assignment) (backend.Process, error) {
	if r == backend.Shard {
		cmd, err := k.shard(a)
		return backend.Process{Cmd: cmd, Ready: k.shardListens}, err
	}
	cmd, err := k.head(a)
	return backend.Process{Cmd: cmd, Ready: k.healthy}, err
}

// errSilent is returned while the shard does not listen.
var errSilent = errors.New("the shard does not listen")

func (k *Kind) shardListens(context.Context) error {
	ok, err := listens(k.ShardAddress)
	if err == nil && !ok {
		err = errSilent
	}
	return err
}

// healthy returns nil once the server has loaded the model and answers.
func (k *Kind) healthy(ctx context.Context) error {
	if _, err := k.do(ctx, http.MethodGet, "/health", nil); err != nil {
		return err
	}
	reply, err := k.do(ctx, http.MethodGet, "/props", nil)
	if err != nil {
		return fmt.Errorf("props: %w", err)
	}
	return k.template(reply)
}

// Probe has the replica generate, which proves it whole, shards included.
func (k *Kind) Probe(ctx context.Context, _ *enginepb.Assignment, tokens int) (backend.Speed, error) {
	body := fmt.Appendf(nil, `{"prompt":"One two three four five six seven eight nine ten","n_predict":%d,`+
		`"temperature":0,"ignore_eos":true,"cache_prompt":false}`, tokens)
	reply, err := k.do(ctx, http.MethodPost, "/completion", body)
	if err != nil {
		return backend.Speed{}, fmt.Errorf("probe: %w", err)
	}
	u, ok := parseUsage(reply)
	if !ok || u.Completion == 0 {
		return backend.Speed{}, backend.ErrNoToken
	}
	return u.Speed(), nil
}

// Room is that of all slots, and of the cache of idle prompts in host memory. Where
// the weights don't say how large a token is, that is taken to hold as much.
func (k *Kind) Room(a *enginepb.Assignment) (backend.KV, error) {
	b := a.GetBackend()
	kv := backend.KV{Total: uint64(b.GetContextTokens()) * uint64(b.GetSlots())}
	var err error
	if kv.Host, err = hostTokens(b); err != nil {
		kv.Host = kv.Total
	}
	return kv, err
}

// Load counts the tokens that the slots hold.
func (k *Kind) Load(ctx context.Context, _ *enginepb.Assignment) (backend.Load, error) {
	reply, err := k.do(ctx, http.MethodGet, "/slots", nil)
	if err != nil {
		return backend.Load{}, fmt.Errorf("slots: %w", err)
	}
	var slots []struct {
		Tokens uint64 `json:"n_prompt_tokens"`
		Busy   bool   `json:"is_processing"`
	}
	if err := json.Unmarshal(reply, &slots); err != nil {
		return backend.Load{}, fmt.Errorf("slots: %w", err)
	}
	var l backend.Load
	for _, s := range slots {
		l.Used += s.Tokens
		if s.Busy {
			l.Running++
		}
	}
	return l, nil
}

// Blocks is none: the server publishes nothing.
func (k *Kind) Blocks(*enginepb.Assignment) *blocks.Log { return nil }

// URL is that of the server.
func (k *Kind) URL(*enginepb.Assignment) string { return "http://" + k.BackendAddress }

// Passes lets nothing pass but what engine knows.
func (k *Kind) Passes(string) bool { return false }

// closed are the server's slots and caches, which engine and extproc count on, and what
// leaves the account out of an answer.
var closed = backend.Closed{
	"id_slot": {"-1"}, "slot_id": {"-1"}, "cache_prompt": {"true"}, "n_cache_reuse": {"0"}, "n_keep": {"0"}, "n_discard": {"0"},
	"response_fields": {"[]"}, "lora": {"[]"},
}

// Closed are the server's slots, caches and adapters.
func (k *Kind) Closed() backend.Closed { return closed }

// Usage reads the account at the end of an answer.
func (k *Kind) Usage(end []byte) (backend.Usage, bool) { return parseUsage(end) }

// Error reads the server's own error.
func (k *Kind) Error(status int, body []byte) backend.Error { return parseError(status, body) }

func (k *Kind) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	return k.client.Do(ctx, method, "http://"+k.BackendAddress+path, body)
}
