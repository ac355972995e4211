package vllm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/internal/backends"
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/kvevents"
	"millrace.dev/millrace/internal/proc"
	"millrace.dev/millrace/internal/scrape"
)

// Kind is vLLM on this node.
type Kind struct {
	Program
	client  *backend.Client
	blocks  *blocks.Log // what the KV cache holds, by its events
	metrics *kvevents.Metrics
	log     *slog.Logger

	// mu guards the fields below.
	mu   sync.Mutex
	last scrape.Sample // what the metrics said last
}

// New returns vLLM as program has it, which is reached through t.
func New(program Program, t http.RoundTripper, reg prometheus.Registerer, log *slog.Logger) *Kind {
	return &Kind{
		Program: program, client: backend.NewClient(t), blocks: blocks.NewLog(),
		metrics: kvevents.NewMetrics("engine", reg), log: log,
	}
}

// Check returns what vLLM can't be asked for, or what this node lacks to run it.
func (k *Kind) Check(a *enginepb.Assignment) error { return k.check(a) }

// Capabilities are those of vLLM with the arguments that the user has given.
func (k *Kind) Capabilities(a *enginepb.Assignment) *enginepb.Capabilities {
	b := a.GetBackend()
	has := func(name string) bool { return backends.HasArg(b.GetArgs(), name) }
	return &enginepb.Capabilities{
		ContextTokens: b.GetContextTokens(),
		// A model that is pooled generates nothing, and could not be probed.
		Embeddings: false, Tools: has("--tool-call-parser"), Lora: has("--enable-lora"), KvSave: has("--kv-transfer-config"),
		TensorParallel: backend.Degree(b.GetTensorParallel()), PipelineParallel: backend.Degree(b.GetPipelineParallel()),
		DataParallel: backend.Degree(b.GetDataParallel()), KvEvents: publishes(b),
	}
}

// Process returns the head; there are no shards.
func (k *Kind) Process(r backend.Role, a *enginepb.Assignment) (backend.Process, error) {
	if r != backend.Head {
		return backend.Process{}, backend.ErrStages
	}
	k.mu.Lock()
	k.last = scrape.Sample{}
	k.mu.Unlock()
	p := backend.Process{Ready: k.healthy, Group: true, Opaque: true}
	events := ""
	if publishes(a.GetBackend()) {
		ports, err := proc.FreePorts(1)
		if err != nil {
			return backend.Process{}, err
		}
		events = net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0]))
		follower := kvevents.New(kvevents.Source{Listen: events}, k.blocks, func(kvevents.Change) {}, k.metrics, k.log)
		p.Beside = func(ctx context.Context) { _ = follower.Run(ctx) } // it never fails
	}
	var err error
	p.Cmd, err = k.head(a, events)
	return p, err
}

// publishes reports whether a server's events are asked for. Copies of the model have a
// cache each, of which nobody can choose one: what they publish together is no one's.
func publishes(b *enginepb.Backend) bool {
	return b.GetDataParallel() <= 1 && !backends.HasArg(b.GetArgs(), "--no-enable-prefix-caching")
}

// Blocks is the log of its events.
func (k *Kind) Blocks(a *enginepb.Assignment) *blocks.Log {
	if !publishes(a.GetBackend()) {
		return nil
	}
	return k.blocks
}

// States is none: its connectors move KV blocks between processes by themselves, and none of them
// was tried here.
func (k *Kind) States(*enginepb.Assignment) backend.States { return nil }

// healthy returns nil once the server has loaded the model and answers.
func (k *Kind) healthy(ctx context.Context) error {
	_, err := k.client.Do(ctx, http.MethodGet, k.URL(nil)+"/health", nil)
	return err
}

// Probe has all ranks generate. What it asks for is cached after the first time: the
// speed of the prompt is not what a probe measures.
func (k *Kind) Probe(ctx context.Context, a *enginepb.Assignment, tokens int) (backend.Speed, error) {
	body := fmt.Appendf(nil, `{"model":%q,"prompt":"One two three four five six seven eight nine ten","max_tokens":%d,`+
		`"temperature":0,"ignore_eos":true,"stream":true,"stream_options":{"include_usage":true}}`, a.GetModel(), tokens)
	u, err := k.client.Stream(ctx, k.URL(a)+"/v1/completions", body)
	return u.Speed(), err
}

// Room is known once it runs.
func (k *Kind) Room(*enginepb.Assignment) (backend.KV, error) { return backend.KV{}, nil }

// series are those of vLLM's metrics.
var series = scrape.Named("vllm")

// errMetrics is returned for a page that holds none of the series.
var errMetrics = errors.New("metrics: none of vLLM's series")

// Load reads the metrics. The speed is that of the requests that have ended since it
// was last asked.
func (k *Kind) Load(ctx context.Context, a *enginepb.Assignment) (backend.Load, error) {
	page, err := k.client.Do(ctx, http.MethodGet, k.URL(a)+"/metrics", nil)
	if err != nil {
		return backend.Load{}, fmt.Errorf("metrics: %w", err)
	}
	s := series.Scan(page)
	if s.Has == 0 {
		return backend.Load{}, errMetrics
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	l := backend.Load{
		Running: uint32(s.Running), Waiting: uint32(s.Waiting), Used: uint64(s.KV * s.KVTokens), Total: uint64(s.KVTokens),
	}
	if since, restarted := s.Since(&k.last); !restarted && k.last.Has != 0 {
		l.Speed = speed(since)
	}
	k.last = s
	return l, nil
}

// minTokens is how many tokens a speed must be measured on.
const minTokens = 8

func speed(d scrape.Since) backend.Speed {
	var s backend.Speed
	if n := d.Prompt - d.Cached; n >= minTokens && d.PrefillMs > 0 {
		s.Prefill = 1000 * n / d.PrefillMs
	}
	if n := d.Output - d.Requests; n >= minTokens && d.DecodeMs > 0 { // an answer's first token is the prompt's
		s.Decode = 1000 * n / d.DecodeMs
	}
	return s
}

// URL is that of the server.
func (k *Kind) URL(*enginepb.Assignment) string { return "http://" + k.Address }

// passed are the paths that vLLM answers and engine knows nothing of. The rest of
// what it answers is for its operator.
var passed = []string{"/pooling", "/classify"}

// Passes reports whether a request for path is forwarded as it is.
func (k *Kind) Passes(path string) bool { return slices.Contains(passed, path) }

// closed are what vLLM has for its operator: the scheduler's order, its own ids of
// requests, blocks that are handed to other servers, prompts that are no tokens.
var closed = backend.Closed{
	"priority": {"0"}, "request_id": nil, "kv_transfer_params": {"{}"}, "vllm_xargs": {"{}"}, "prompt_embeds": nil,
}

// Closed are the fields for vLLM's operator.
func (k *Kind) Closed() backend.Closed { return closed }

// Usage reads the account at the end of an answer.
func (k *Kind) Usage(end []byte) (backend.Usage, bool) { return backend.ParseUsage(end) }

// Error reads the server's own error. Where what computes has died, the server has
// not yet: another replica can answer.
func (k *Kind) Error(status int, body []byte) backend.Error {
	e := backend.ParseError(status, body)
	if status == http.StatusInternalServerError && strings.Contains(e.Message, "EngineCore") {
		e.Status, e.Code, e.Message = http.StatusServiceUnavailable, "backend_lost", "the backend was lost: "+e.Message
	}
	return e
}
