package keda

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/xds/internal/fleet"
	"millrace.dev/millrace/xds/scalerpb"
)

// decided is a fleet in which something is decided.
type decided struct {
	mu   sync.Mutex
	snap *fleet.Snapshot
	next chan struct{}
}

func (d *decided) Latest() (*fleet.Snapshot, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.snap, d.next
}

// replicas has so many be desired of the model m.
func (d *decided) replicas(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.snap = &fleet.Snapshot{Settled: true, Desired: &desired.State{}, Scaled: map[string]fleet.Scaled{
		"m": {Mode: "recommend", Decided: true, Desired: n}, "own": {Mode: "auto", Decided: true, Desired: 1}, "new": {Mode: "recommend", Reason: "nothing is decided yet"},
	}}
	if d.next != nil {
		close(d.next)
	}
	d.next = make(chan struct{})
}

// start serves, and returns a client.
func start(t *testing.T) (*decided, scalerpb.ExternalScalerClient) {
	d := &decided{}
	d.replicas(3)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	scalerpb.RegisterExternalScalerServer(s, New(d))
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ln) }()
	conn, err := grpc.NewClient(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); s.Stop(); <-done })
	return d, scalerpb.NewExternalScalerClient(conn)
}

func ref(metadata ...string) *scalerpb.ScaledObjectRef {
	r := &scalerpb.ScaledObjectRef{Name: "so", Namespace: "llm", ScalerMetadata: map[string]string{}}
	for i := 0; i+1 < len(metadata); i += 2 {
		r.ScalerMetadata[metadata[i]] = metadata[i+1]
	}
	return r
}

func TestMetricsAreWhatIsDecided(t *testing.T) {
	d, c := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, n := range []int{3, 0, 7} {
		d.replicas(n)
		spec, err := c.GetMetricSpec(ctx, ref("model", "m"))
		if err != nil || len(spec.GetMetricSpecs()) != 1 {
			t.Fatal(spec, err)
		}
		one := spec.GetMetricSpecs()[0]
		got, err := c.GetMetrics(ctx, &scalerpb.GetMetricsRequest{ScaledObjectRef: ref("model", "m"), MetricName: one.GetMetricName()})
		if err != nil || len(got.GetMetricValues()) != 1 {
			t.Fatal(got, err)
		}
		v := got.GetMetricValues()[0]
		if v.GetMetricValueFloat() != float64(n)*one.GetTargetSizeFloat() || v.GetMetricValue() != int64(n)*one.GetTargetSize() || v.GetMetricName() != one.GetMetricName() {
			t.Errorf("%v of %v, want %d replicas", v, one, n)
		}
		active, err := c.IsActive(ctx, ref("model", "m", "scalerAddress", "xds:7103"))
		if err != nil || active.GetResult() != (n > 0) {
			t.Errorf("active %v, %v with %d replicas", active, err, n)
		}
	}
}

// TestActiveIsPushed at once, and on each change alone.
func TestActiveIsPushed(t *testing.T) {
	d, c := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	d.replicas(0)
	stream, err := c.StreamIsActive(ctx, ref("model", "m"))
	if err != nil {
		t.Fatal(err)
	}
	specs, err := c.StreamMetricSpec(ctx, ref("model", "m"))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := specs.Recv(); err != nil || s.GetMetricSpecs()[0].GetTargetSize() != 1 {
		t.Error(s, err)
	}
	for i, n := range []int{0, 2, 0, 1} {
		if d.replicas(n); n > 0 {
			d.replicas(n + 1) // nothing new
		}
		if got, err := stream.Recv(); err != nil || got.GetResult() != (n > 0) {
			t.Fatalf("message %d: %v, %v; want active %v", i, got, err, n > 0)
		}
	}
}

func TestBadMetadataIsRefused(t *testing.T) {
	_, c := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tests := []struct {
		name string
		ref  *scalerpb.ScaledObjectRef
		code codes.Code
		want string
	}{
		{"nothing", nil, codes.InvalidArgument, "scalerMetadata.model: missing"},
		{"a typo", ref("models", "m"), codes.InvalidArgument, "scalerMetadata.models: unknown field; did you mean model?"},
		{"no such model", ref("model", "x"), codes.InvalidArgument, `scalerMetadata.model: "x"; must be the name`},
		{"one alike", ref("model", "owm"), codes.InvalidArgument, "did you mean own?"},
		{"long", ref("model", strings.Repeat("x", 1000)), codes.InvalidArgument, "1000 bytes"},
		{"scaled by xds", ref("model", "own"), codes.FailedPrecondition, "set its spec.scaling.mode to recommend"},
		{"not decided yet", ref("model", "new"), codes.Unavailable, "nothing is decided yet"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := c.IsActive(ctx, tt.ref)
			_, err2 := c.GetMetrics(ctx, &scalerpb.GetMetricsRequest{ScaledObjectRef: tt.ref, MetricName: metric})
			stream, err3 := c.StreamIsActive(ctx, tt.ref)
			if err3 == nil {
				_, err3 = stream.Recv()
			}
			for _, err := range []error{err, err2, err3} {
				if status.Code(err) != tt.code || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want %s: %s", err, tt.code, tt.want)
				}
			}
		})
	}
	if _, err := c.GetMetrics(ctx, &scalerpb.GetMetricsRequest{ScaledObjectRef: ref("model", "m"), MetricName: "other"}); !strings.Contains(err.Error(), "metricName") {
		t.Error(err)
	}
}
