package status

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/admit"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/cachelog"
	"millrace.dev/millrace/engine/internal/llamacpp"
	"millrace.dev/millrace/engine/internal/meter"
	"millrace.dev/millrace/engine/internal/openai"
	"millrace.dev/millrace/engine/internal/supervise"
	"millrace.dev/millrace/engine/internal/vllm"
)

// sleeper launches processes that never become ready.
type sleeper struct{}

func (sleeper) Process(backend.Role, *enginepb.Assignment) (backend.Process, error) {
	return backend.Process{Cmd: exec.Command("sleep", "60"), Ready: func(context.Context) error { return errors.New("asleep") }}, nil
}

func (sleeper) Prove(context.Context, *enginepb.Assignment) error { return nil }

// kinds are those of a node that has llama.cpp and no vLLM.
func kinds() backend.Kinds {
	return backend.Kinds{
		enginepb.Backend_LLAMACPP: llamacpp.New(llamacpp.Programs{Runtime: "/r"}, nil),
		enginepb.Backend_VLLM:     vllm.New(vllm.Program{}, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler)),
		enginepb.Backend_OPENAI:   openai.New(nil),
	}
}

func start(t *testing.T) enginepb.EngineClient {
	t.Helper()
	return startWith(t, &cachelog.Log{})
}

func startWith(t *testing.T, cache *cachelog.Log) enginepb.EngineClient {
	t.Helper()
	gate, m := &admit.Gate{}, &meter.Meter{}
	cache.Finish(cache.Begin([]cachelog.Link{{Key: 7, Tokens: 40}}), 40, 0, 2)
	gate.Set(admit.Limits{Slots: 4, Queue: 4})
	m.SetKV(7, 256)
	m.Add(backend.Usage{Prompt: 20, Cached: 5, Completion: 10}, time.Now())
	m.Calibrate(backend.Speed{Decode: 10})
	s := supervise.New(supervise.Config{
		Node: "node-a", Logs: t.TempDir(), Launcher: sleeper{}, Log: slog.New(slog.DiscardHandler),
		Running: func() int { return 0 }, Served: m.Served,
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	srv := grpc.NewServer()
	enginepb.RegisterEngineServer(srv, New(Config{
		Node: "node-a", HTTP: "127.0.0.1:1", GRPC: ln.Addr().String(), Backend: "127.0.0.1:3", Shard: "127.0.0.1:4", Kinds: kinds(),
		Supervisor: s, Gate: gate, Meter: m, Cache: cache, Ends: ctx.Done(),
	}))
	done := make(chan error, 2)
	go func() { done <- s.Run(ctx) }()
	go func() { done <- srv.Serve(ln) }()
	conn, err := grpc.NewClient(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = conn.Close()
		srv.Stop()
		<-done
		<-done
	})
	return enginepb.NewEngineClient(conn)
}

func valid() *enginepb.Assignment {
	return &enginepb.Assignment{
		Generation: 5, Model: "smollm2", Replica: "smollm2-0",
		Stages: []*enginepb.Stage{
			{Node: "node-a", ShardAddress: "127.0.0.1:4", EngineAddress: "127.0.0.1:9", Share: 1},
			{Node: "node-b", ShardAddress: "127.0.0.1:5", EngineAddress: "127.0.0.1:9", Share: 1},
		},
		Backend: &enginepb.Backend{
			Kind: enginepb.Backend_LLAMACPP, Weights: "/w", ContextTokens: 128, Slots: 2, Threads: 1, Queue: 3, MaxBodyBytes: 1024,
		},
	}
}

func TestAssignRefuses(t *testing.T) {
	client := start(t)
	tests := []struct {
		name   string
		change func(*enginepb.Assignment)
		want   string
	}{
		{"no generation", func(a *enginepb.Assignment) { a.Generation = 0 }, "Generation"},
		{"no slots", func(a *enginepb.Assignment) { a.Backend.Slots = 0 }, "Slots"},
		{"half a release", func(a *enginepb.Assignment) { a.Backend = nil }, "backend: missing"},
		{"a stage too many", func(a *enginepb.Assignment) { a.Stage = 2 }, "stage: 2; must be < 2"},
		{"another node's stage", func(a *enginepb.Assignment) { a.Stage = 1 }, `stages[1].node: "node-b"; must be this engine's, "node-a"`},
		{"a shard elsewhere", func(a *enginepb.Assignment) { a.Stages[0].ShardAddress = "127.0.0.1:44" }, "stages[0].shard_address"},
		{"vLLM on two nodes", func(a *enginepb.Assignment) { a.Backend.Kind = enginepb.Backend_VLLM }, "stages: 2; must be 1"},
		{"arguments that engine sets", func(a *enginepb.Assignment) {
			a.Backend.Kind, a.Stages, a.Backend.Args = enginepb.Backend_VLLM, a.Stages[:1], []string{"--dtype", "auto", "--port=1"}
		}, `backend.args[2]: "--port=1"; must be left out`},
		{"no vLLM here", func(a *enginepb.Assignment) { a.Backend.Kind, a.Stages = enginepb.Backend_VLLM, a.Stages[:1] }, "backend.kind: VLLM: no vLLM is on this node"},
		{"ranks of llama.cpp", func(a *enginepb.Assignment) { a.Backend.TensorParallel = 2 }, "backend.tensor_parallel: 2; must be 1"},
		{"a server nowhere", func(a *enginepb.Assignment) {
			a.Backend = &enginepb.Backend{Kind: enginepb.Backend_OPENAI, Slots: 1, Threads: 1, MaxBodyBytes: 1024}
		}, "backend.url: missing"},
		{"no weights", func(a *enginepb.Assignment) { a.Backend.Weights = "" }, "backend.weights: missing"},
		{"a share that is no number", func(a *enginepb.Assignment) { a.Stages[1].Share = float32(math.NaN()) }, "stages[1].share: NaN; must be a finite number"},
		{"a peer at an address of many", func(a *enginepb.Assignment) { a.Stages[1].ShardAddress = "224.0.0.1:5" }, "stages[1].shard_address: \"224.0.0.1:5\"; must be the ip:port of one host"},
		{"a peer without a shard", func(a *enginepb.Assignment) { a.Stages[1].ShardAddress = "" }, "stages[1].shard_address"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := valid()
			tt.change(a)
			_, err := client.Assign(t.Context(), a)
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Assign() = %v, want INVALID_ARGUMENT with %s", err, tt.want)
			}
		})
	}
}

func TestWatchReportsAnAssignment(t *testing.T) {
	client := start(t)
	if w, err := client.Watch(t.Context(), &enginepb.WatchRequest{Interval: durationpb.New(time.Millisecond)}); err == nil {
		if _, err = w.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("an interval of 1 ms: %v", err)
		}
	}
	w, err := client.Watch(t.Context(), &enginepb.WatchRequest{Interval: durationpb.New(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	s, err := w.Recv()
	if err != nil || s.GetState() != enginepb.State_IDLE || s.GetLoad().GetKvUsedTokens() != 7 || s.GetLoad().GetKvTotalTokens() != 256 || s.GetCapabilities() != nil || s.GetTotals().GetPromptTokens() != 20 || s.GetSpeed().GetDecode() != 10 {
		t.Fatalf("first status %v, %v", s, err)
	}
	if reply, err := client.Assign(t.Context(), valid()); err != nil || reply.GetGeneration() != 5 {
		t.Fatalf("Assign() = %v, %v", reply, err)
	}
	for s.GetEpoch() == 0 && s.GetProcesses() == nil { // it comes at once, not after a minute
		if s, err = w.Recv(); err != nil {
			t.Fatal(err)
		}
		if err := s.ValidateAll(); err != nil {
			t.Fatal(err)
		}
	}
	p := s.GetProcesses()[0]
	if s.GetGeneration() != 5 || s.GetState() != enginepb.State_STARTING || p.GetRole() != "shard" || p.GetPid() == 0 || p.GetAddress() != "127.0.0.1:4" {
		t.Errorf("status %v", s)
	}
	if c := s.GetCapabilities(); c.GetPipelineParallel() != 2 || c.GetContextTokens() != 128 || !c.GetEmbeddings() {
		t.Errorf("capabilities %v", c)
	}
	if reply, err := client.Assign(t.Context(), &enginepb.Assignment{Generation: 6}); err != nil || reply.GetGeneration() != 6 {
		t.Fatalf("release = %v, %v", reply, err)
	}
	for s.GetState() != enginepb.State_IDLE {
		if s, err = w.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if s.GetGeneration() != 6 || s.GetAssignment() != nil || len(s.GetProcesses()) > 1 {
		t.Errorf("status after a release %v", s)
	}
	old := valid()
	if _, err := client.Assign(t.Context(), old); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("an older generation: %v", err)
	}
}

func TestLongReasonFitsTheContract(t *testing.T) {
	s := New(Config{Node: "node-a", Gate: &admit.Gate{}, Meter: &meter.Meter{}, Cache: &cachelog.Log{}})
	v := s.status(&supervise.Snapshot{State: enginepb.State_BROKEN, Reason: strings.Repeat("ü", 3000)})
	if err := v.Validate(); err != nil {
		t.Error(err)
	}
}

// TestWatchSendsTheCacheOnce: all of it at first, and only to those who ask.
func TestWatchSendsTheCacheOnce(t *testing.T) {
	client := start(t)
	for _, asked := range []bool{true, false} {
		stream, err := client.Watch(t.Context(), &enginepb.WatchRequest{Interval: durationpb.New(50 * time.Millisecond), Cache: asked})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			s, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if got, want := len(s.GetCache().GetSegments()) > 0, asked && i == 0; got != want {
				t.Errorf("asked %t, status %d: told %t, want %t", asked, i, got, want)
			}
		}
	}
}

// TestWatchSendsNewsOfTheCacheBeforeTheInterval has an interval that is longer than
// the test may take.
func TestWatchSendsNewsOfTheCacheBeforeTheInterval(t *testing.T) {
	cache := &cachelog.Log{}
	stream, err := startWith(t, cache).Watch(t.Context(), &enginepb.WatchRequest{Interval: durationpb.New(10 * time.Second), Cache: true})
	if err != nil {
		t.Fatal(err)
	}
	for key := range uint64(3) {
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		cache.Begin([]cachelog.Link{{Key: 100 + key, Tokens: 40}})
		if key == 2 {
			s, err := stream.Recv()
			if err != nil || len(s.GetCache().GetSegments()) != 1 || time.Since(begun) > 5*time.Second {
				t.Errorf("after %s: %v, %v", time.Since(begun), s.GetCache(), err)
			}
		}
	}
}
