// Package keda serves KEDA's external scaler protocol: KEDA asks how many replicas a model is to
// have, and scales the Model by that. Called by main, where xds has -scaler.
//
// The metric of a model is how many replicas xds recommends, of which one replica is for one: the
// autoscaler comes to the same number, whatever it had. A ScaledObject names the model in its
// trigger's metadata; the model's scaling.mode has to be recommend, as two that scale one model
// would fight.
//
// Its one rule: nothing is decided here, and what can't be answered truly is an error, upon
// which KEDA keeps what there is.
package keda

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/nearest"
	"millrace.dev/millrace/xds/internal/fleet"
	"millrace.dev/millrace/xds/scalerpb"
)

const (
	// metric is the name of what is measured.
	metric = "millrace-replicas"
	// modelKey is the metadata that names the model.
	modelKey = "model"
	// mostStreams bounds the open streams: one more is refused.
	mostStreams = 1024
	// mostName bounds what is shown of a client's words, in bytes.
	mostName = 80
)

// Fleet publishes what is decided.
type Fleet interface {
	// Latest returns the last snapshot and a channel that is closed when there is a newer one.
	Latest() (*fleet.Snapshot, <-chan struct{})
}

// Server answers KEDA. Safe for concurrent use.
type Server struct {
	scalerpb.UnimplementedExternalScalerServer

	fleet   Fleet
	streams atomic.Int64 // open ones
}

// New returns a server that says what the fleet has decided.
func New(f Fleet) *Server { return &Server{fleet: f} }

// model returns the name of the model that a ScaledObject is about.
func model(ref *scalerpb.ScaledObjectRef) (string, error) {
	all := ref.GetScalerMetadata()
	if name := all[modelKey]; name != "" {
		return name, nil
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if nearest.Of(key, []string{modelKey}) != "" {
			return "", status.Errorf(codes.InvalidArgument, "scalerMetadata.%.80s: unknown field; did you mean %s?", key, modelKey)
		}
	}
	return "", status.Errorf(codes.InvalidArgument, "scalerMetadata.%s: missing; must be the name of a Model with spec.scaling", modelKey)
}

// scaled returns what is decided of the model that a ScaledObject is about.
func scaled(s *fleet.Snapshot, ref *scalerpb.ScaledObjectRef) (fleet.Scaled, error) {
	name, err := model(ref)
	if err != nil {
		return fleet.Scaled{}, err
	}
	if s.Desired == nil || !s.Settled {
		return fleet.Scaled{}, status.Error(codes.Unavailable, "xds does not know its nodes yet")
	}
	v, ok := s.Scaled[name]
	switch {
	case !ok && len(name) > mostName:
		return v, status.Errorf(codes.InvalidArgument, "scalerMetadata.%s: %d bytes; must be the name of a Model", modelKey, len(name))
	case !ok:
		why := "must be the name of a Model with spec.scaling"
		if near := nearest.Of(name, slices.Sorted(maps.Keys(s.Scaled))); near != "" {
			why = "did you mean " + near + "?"
		}
		return v, status.Errorf(codes.InvalidArgument, "scalerMetadata.%s: %q; %s", modelKey, name, why)
	case v.Mode != config.ScalingRecommend:
		return v, status.Errorf(codes.FailedPrecondition, "scalerMetadata.%s: %q; xds scales it by itself: set its spec.scaling.mode to recommend, or remove the ScaledObject", modelKey, name)
	case !v.Decided:
		return v, status.Errorf(codes.Unavailable, "%s: %s", name, v.Reason)
	}
	return v, nil
}

// IsActive is whether there is to be a replica.
func (s *Server) IsActive(_ context.Context, ref *scalerpb.ScaledObjectRef) (*scalerpb.IsActiveResponse, error) {
	snap, _ := s.fleet.Latest()
	v, err := scaled(snap, ref)
	if err != nil {
		return nil, err
	}
	return &scalerpb.IsActiveResponse{Result: v.Desired > 0}, nil
}

// StreamIsActive says so at once and on each change.
func (s *Server) StreamIsActive(ref *scalerpb.ScaledObjectRef, stream grpc.ServerStreamingServer[scalerpb.IsActiveResponse]) error {
	if err := s.open(); err != nil {
		return err
	}
	defer s.streams.Add(-1)
	for sent, first := false, true; ; {
		snap, next := s.fleet.Latest()
		v, err := scaled(snap, ref)
		if err != nil {
			return err
		}
		if active := v.Desired > 0; first || active != sent {
			if err := stream.Send(&scalerpb.IsActiveResponse{Result: active}); err != nil {
				return err
			}
			sent, first = active, false
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-next:
		}
	}
}

func (s *Server) open() error {
	if s.streams.Add(1) > mostStreams {
		s.streams.Add(-1)
		return status.Errorf(codes.ResourceExhausted, "%d streams are open; no more are taken", mostStreams)
	}
	return nil
}

// spec is that of every model.
func spec() *scalerpb.GetMetricSpecResponse {
	return &scalerpb.GetMetricSpecResponse{MetricSpecs: []*scalerpb.MetricSpec{{MetricName: metric, TargetSize: 1, TargetSizeFloat: 1}}}
}

// GetMetricSpec says that one replica is for one replica.
func (s *Server) GetMetricSpec(_ context.Context, ref *scalerpb.ScaledObjectRef) (*scalerpb.GetMetricSpecResponse, error) {
	snap, _ := s.fleet.Latest()
	if _, err := scaled(snap, ref); err != nil {
		return nil, err
	}
	return spec(), nil
}

// StreamMetricSpec says so once: it does not change.
func (s *Server) StreamMetricSpec(ref *scalerpb.ScaledObjectRef, stream grpc.ServerStreamingServer[scalerpb.GetMetricSpecResponse]) error {
	if err := s.open(); err != nil {
		return err
	}
	defer s.streams.Add(-1)
	snap, _ := s.fleet.Latest()
	if _, err := scaled(snap, ref); err != nil {
		return err
	}
	if err := stream.Send(spec()); err != nil {
		return err
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

// GetMetrics says how many replicas there are to be.
func (s *Server) GetMetrics(_ context.Context, r *scalerpb.GetMetricsRequest) (*scalerpb.GetMetricsResponse, error) {
	snap, _ := s.fleet.Latest()
	v, err := scaled(snap, r.GetScaledObjectRef())
	if err != nil {
		return nil, err
	}
	if r.GetMetricName() != metric {
		return nil, status.Errorf(codes.InvalidArgument, "metricName: %.80q; must be %q, as GetMetricSpec has it", r.GetMetricName(), metric)
	}
	return &scalerpb.GetMetricsResponse{MetricValues: []*scalerpb.MetricValue{{
		MetricName: metric, MetricValue: int64(v.Desired), MetricValueFloat: float64(v.Desired),
	}}}, nil
}
