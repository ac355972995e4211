package fleetpb

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/engine/enginepb"
)

// node is a report of a node of eight GPUs.
func node(seq uint64) *NodeReport {
	r := &NodeReport{
		Node: "node-a", Seq: seq, Sent: timestamppb.Now(), Zone: "rack-17", Timeout: durationpb.New(1500e6),
		Telemetry: &Telemetry{Source: Telemetry_NVML, Cpus: 128, CpuUtilization: 0.25, MemoryUsedBytes: 300 << 30, MemoryTotalBytes: 1 << 40},
		Engine: &enginepb.Status{
			Node: "node-a", Generation: 1_700_000_000_000_000, State: enginepb.State_READY, Since: timestamppb.Now(), Epoch: 1_700_000_000_000,
			HttpAddress: "10.0.0.1:8000", GrpcAddress: "10.0.0.1:8001", ShardAddress: "10.0.0.1:8002",
			Assignment: &enginepb.Assignment{
				Generation: 1_700_000_000_000_000, Model: "llama", Replica: "llama-0",
				Stages:  []*enginepb.Stage{{Node: "node-a", EngineAddress: "10.0.0.1:8001", Share: 1}},
				Backend: &enginepb.Backend{Kind: enginepb.Backend_LLAMACPP, Weights: "/models/llama.gguf", ContextTokens: 8192, Slots: 16, Threads: 8},
			},
			Processes: []*enginepb.Process{{Role: "backend", Pid: 4711, Address: "10.0.0.1:8003", RssBytes: 3 << 30, Cpu: durationpb.New(1e12)}},
			Load:      &enginepb.Load{Slots: 16, KvTotalTokens: 131072}, Speed: &enginepb.Speed{Prefill: 2000, Decode: 50},
			Totals: &enginepb.Totals{Requests: 100000, PromptTokens: 1e8, GeneratedTokens: 1e7},
		},
	}
	for i := range 8 {
		r.Telemetry.Gpus = append(r.Telemetry.Gpus, &Gpu{
			Uuid: fmt.Sprintf("GPU-00000000-0000-0000-0000-00000000000%d", i), Name: "NVIDIA H100 80GB HBM3", Utilization: 0.5,
			MemoryUsedBytes: 70 << 30, MemoryTotalBytes: 80 << 30, TemperatureCelsius: 60, PowerWatts: 400, ClockRatio: 0.95,
		})
	}
	return r
}

func TestThin(t *testing.T) {
	first := node(1)
	if diff := cmp.Diff(first, Thin(nil, first), protocmp.Transform()); diff != "" {
		t.Errorf("the first report is thinned (-want +got):\n%s", diff)
	}
	second := proto.CloneOf(first)
	second.Seq = 2
	small := Thin(first, second)
	t.Logf("%d bytes whole, %d unchanged", proto.Size(first), proto.Size(small))
	if n := proto.Size(small); n > 100 {
		t.Errorf("an unchanged report has %d bytes; must be 100 at most", n)
	}
	if diff := cmp.Diff(node(1).Telemetry, first.Telemetry, protocmp.Transform()); diff != "" {
		t.Errorf("the report before was changed:\n%s", diff)
	}
}

// TestWholeIsWhatWasThinned follows random changes of everything that may change.
func TestWholeIsWhatWasThinned(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var sent, read *NodeReport
	for seq := range uint64(2000) {
		now := node(seq + 1)
		now.Sent, now.Engine.Since = nil, nil
		change(r, now)
		b, err := proto.Marshal(Thin(sent, now))
		if err != nil {
			t.Fatal(err)
		}
		got := new(NodeReport)
		if err := proto.Unmarshal(b, got); err != nil {
			t.Fatal(err)
		}
		Whole(read, got)
		if diff := cmp.Diff(now, got, protocmp.Transform()); diff != "" {
			t.Fatalf("report %d (-sent +read):\n%s", seq, diff)
		}
		sent, read = now, got
	}
}

func change(r *rand.Rand, n *NodeReport) {
	for _, f := range []func(){
		func() { n.Zone = "" },
		func() { n.Timeout = nil },
		func() { n.Engine, n.EngineError = nil, "silent: gone" },
		func() { n.Telemetry.Gpus = nil },
		func() { n.Telemetry.CpuUtilization = 0 },
		func() { n.Telemetry.Gpus[0].Lost = true },
		func() { n.Engine.Load = nil },
		func() { n.Engine.Load.Running = r.Uint32N(3) },
		func() { n.Engine.Reason = "because" },
		func() { n.Engine.Processes = nil },
		func() { n.Engine.Cache = &enginepb.CacheReport{Epoch: 1} },
	} {
		if r.IntN(6) == 0 && n.Engine != nil && n.Telemetry.Gpus != nil && n.Engine.Load != nil {
			f()
		}
	}
}

func FuzzWhole(f *testing.F) {
	b, _ := proto.Marshal(Thin(node(1), node(2)))
	f.Add(b)
	f.Add([]byte{72, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := new(NodeReport)
		if proto.Unmarshal(b, r) != nil {
			return
		}
		Whole(nil, r)
		Whole(node(1), r)
		if r.Same != 0 {
			t.Error("not whole")
		}
	})
}
