package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/xds/fleetpb"
)

// modelName is the model of the benchmark's fleets.
const modelName = "smollm2"

// beat is how often a fake nodeagent reports if nothing changes.
const beat = 500 * time.Millisecond

// fakeFleet reports nodes with ready engines to a real xds, over the real stream.
// The engines are the given addresses of an API.
type fakeFleet struct {
	xds     string
	engines []string
	// beat is how often each node reports.
	beat time.Duration
	// logs is whether engines report what they have cached.
	logs bool
}

// run reports until ctx ends.
func (f fakeFleet) run(ctx context.Context) error {
	conn, err := grpc.NewClient(f.xds, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	g, ctx := errgroup.WithContext(ctx)
	for i, addr := range f.engines {
		g.Go(func() error {
			a := fakeAgent{node: fmt.Sprintf("node-%03d", i), http: addr, beat: f.beat, client: fleetpb.NewFleetClient(conn)}
			if f.logs {
				a.log = &fakeLog{seed: uint64(i)}
			}
			if err := a.wait(ctx, f.beat*time.Duration(i)/time.Duration(len(f.engines))); err != nil {
				return nil
			}
			if err := a.run(ctx); ctx.Err() == nil {
				return fmt.Errorf("%s: %w", a.node, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// ready waits until xds has all engines in the mesh.
func (f fakeFleet) ready(ctx context.Context) error {
	conn, err := grpc.NewClient(f.xds, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	stream, err := fleetpb.NewFleetClient(conn).Watch(ctx, &fleetpb.WatchRequest{})
	if err != nil {
		return err
	}
	for {
		v, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("the fleet is not ready: %w", err)
		}
		ready := 0
		for _, n := range v.GetNodes() {
			if n.GetState() == fleetpb.EndpointState_READY && n.GetWeight() > 0 {
				ready++
			}
		}
		if ready == len(f.engines) {
			return nil
		}
	}
}

// fakeAgent is one node whose engine serves whatever it is assigned, at once.
type fakeAgent struct {
	node   string
	http   string
	beat   time.Duration
	client fleetpb.FleetClient

	seq        uint64
	assignment *enginepb.Assignment // nil: none yet
	log        *fakeLog             // nil: it reports nothing of its cache
	sent       *fleetpb.NodeReport  // nil: none yet
}

// wait spreads the agents over a beat.
func (a *fakeAgent) wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *fakeAgent) run(ctx context.Context) error {
	stream, err := a.client.Report(ctx)
	if err != nil {
		return err
	}
	directives := make(chan *fleetpb.Directive)
	ended := make(chan error, 1)
	go func() {
		for {
			d, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case directives <- d:
			case <-stream.Context().Done():
			}
		}
	}()
	tick := time.NewTicker(a.beat)
	defer tick.Stop()
	for {
		if err := stream.Send(a.news()); err != nil {
			return err
		}
		select {
		case d := <-directives:
			if as := d.GetAssignment(); as != nil {
				a.assignment = as
			}
		case err := <-ended:
			return err
		case <-tick.C:
		}
	}
}

// news is a report without what the one before it has.
func (a *fakeAgent) news() *fleetpb.NodeReport {
	whole := a.report()
	r := fleetpb.Thin(a.sent, whole)
	a.sent = whole
	if a.log != nil && a.assignment != nil {
		r.Engine.Cache = a.log.report()
	}
	return r
}

func (a *fakeAgent) report() *fleetpb.NodeReport {
	a.seq++
	return &fleetpb.NodeReport{
		Node:      a.node,
		Seq:       a.seq,
		Sent:      timestamppb.Now(),
		Timeout:   durationpb.New(3 * a.beat),
		Telemetry: &fleetpb.Telemetry{Source: fleetpb.Telemetry_HOST, Cpus: 2, CpuUtilization: 0.3, MemoryUsedBytes: 1 << 30, MemoryTotalBytes: 8 << 30},
		Engine:    a.status(),
	}
}

func (a *fakeAgent) status() *enginepb.Status {
	s := &enginepb.Status{
		Node:        a.node,
		State:       enginepb.State_IDLE,
		Reason:      "nothing is assigned",
		Since:       timestamppb.Now(),
		HttpAddress: a.http,
		GrpcAddress: a.http,
		Load:        &enginepb.Load{Slots: 4, KvTotalTokens: 16384},
		Speed:       &enginepb.Speed{Prefill: 500, Decode: 50},
		Totals:      &enginepb.Totals{},
	}
	if a.assignment != nil {
		s.State, s.Reason = enginepb.State_READY, ""
		s.Generation, s.ControlEpoch = a.assignment.GetGeneration(), a.assignment.GetControlEpoch()
		s.Assignment, s.Epoch = a.assignment, 1
	}
	return s
}

// weights is the file with the model's tokenizer.
func (b *bench) weights() string {
	return filepath.Join(b.cache, "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
}

// modelFile is the configuration of a fleet of n whole replicas.
func (b *bench) modelFile(n int) string {
	return fmt.Sprintf(`apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: %s}
spec: {weights: %s, replicas: %d, layout: [{stages: 1}]}
`, modelName, b.weights(), n)
}
