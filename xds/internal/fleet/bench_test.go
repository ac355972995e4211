package fleet

import (
	"fmt"
	"testing"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/xds/fleetpb"
)

// BenchmarkDecide is one decision about a fleet of a thousand replicas in which all is
// well. It is done a hundred times a second at most.
func BenchmarkDecide(b *testing.B) {
	const size = 1000
	file, err := config.Parse("mesh.yaml", []byte(head+"kind: Model\nmetadata: {name: m}\nspec: {weights: /m.gguf, replicas: 1000}\n"))
	if err != nil {
		b.Fatal(err)
	}
	now := epoch
	f := New(time.Second, now)
	f.Step(now, Desired{desired.Published{State: desired.Next(nil, file, nil)}})
	status := map[string]*enginepb.Status{}
	report := func() {
		for i := range size {
			name := fmt.Sprintf("node-%d", i)
			if status[name] == nil {
				at := fmt.Sprintf("10.0.%d.%d:80", i/256, i%256)
				status[name] = &enginepb.Status{Node: name, State: enginepb.State_IDLE, HttpAddress: at, GrpcAddress: at}
			}
			f.Step(now, Reported{Stream: uint64(i + 1), Report: &fleetpb.NodeReport{
				Node: name, Engine: status[name], Telemetry: &fleetpb.Telemetry{Cpus: 1},
			}})
		}
	}
	report()
	answer(f, f.Decide(now), now)
	for name, a := range f.Decide(now).Directives {
		status[name].Assignment, status[name].Generation, status[name].State = a, a.GetGeneration(), enginepb.State_READY
	}
	report()
	b.ReportAllocs()
	for b.Loop() {
		if s := f.Decide(now); len(s.Endpoints) != size || s.Endpoints[0].State != ready {
			b.Fatalf("%d endpoints", len(s.Endpoints))
		}
	}
}
