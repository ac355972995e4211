// Package ads serves resources by delta ADS: Envoy's and our own, from one
// stream. Called by main, which publishes what translate has made.
//
// Its one rule: nothing is published before the fleet is known. Streams are accepted
// at once and answered when they are released, so that a restarted xds never
// removes from its clients what it has not learned yet.
package ads

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/internal/translate"
)

// Server is the ADS server.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	// Constant after New.
	inner    serverv3.Server
	caches   map[string]*cachev3.LinearCache // by type URL
	engines  *journal                        // of what engines have cached
	released chan struct{}                   // closed by Release
	watching *watcher

	// release closes released once.
	release sync.Once

	// pushed is what was published last. Only Publish touches it.
	pushed translate.Resources
}

// New returns a server that ends its streams when ctx ends.
func New(ctx context.Context, log *slog.Logger, reg prometheus.Registerer) *Server {
	s := &Server{
		caches:   make(map[string]*cachev3.LinearCache),
		engines:  newJournal(wire.CacheType),
		released: make(chan struct{}),
		watching: newWatcher(log, newMetrics(reg)),
		pushed:   make(translate.Resources),
	}
	mux := &cachev3.MuxCache{
		Classify:      func(r *cachev3.Request) string { return r.GetTypeUrl() },
		ClassifyDelta: func(r *cachev3.DeltaRequest) string { return r.GetTypeUrl() },
		Caches:        make(map[string]cachev3.Cache),
	}
	for _, typ := range translate.Types() {
		if typ == wire.CacheType {
			mux.Caches[typ] = s.engines
			continue
		}
		s.caches[typ] = cachev3.NewLinearCache(typ)
		mux.Caches[typ] = s.caches[typ]
		s.pushed[typ] = make(map[string]proto.Message)
	}
	s.inner = serverv3.NewServer(ctx, mux, s.watching.callbacks())
	return s
}

// Release lets the streams that wait, and all later ones, be answered. To be
// called once the whole state has been published.
func (s *Server) Release() { s.release.Do(func() { close(s.released) }) }

// DeltaAggregatedResources serves one client.
func (s *Server) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	defer s.watching.leave()
	if s.watching.enter() > maxClients {
		return status.Errorf(codes.ResourceExhausted, "%d clients are connected; no more are taken", maxClients)
	}
	select {
	case <-s.released:
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
	return s.inner.DeltaAggregatedResources(stream)
}

// StreamAggregatedResources refuses the older form of the protocol.
func (s *Server) StreamAggregatedResources(discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return status.Error(codes.Unimplemented, "only delta ADS is served: set api_type to DELTA_GRPC")
}

// Publish makes the resources of the types that it names the present ones, and
// sends what has changed. It returns the types that have. Not safe for concurrent use.
func (s *Server) Publish(all translate.Resources) (types []string, err error) {
	for _, typ := range translate.Types() {
		now, ok := all[typ]
		if !ok {
			continue
		}
		changed, removed := diff(s.pushed[typ], now)
		if len(changed) == 0 && len(removed) == 0 {
			continue
		}
		if err := s.caches[typ].UpdateResources(changed, removed); err != nil {
			return types, fmt.Errorf("%s: %w", typ, err)
		}
		s.pushed[typ] = now
		s.watching.removed(typ, removed)
		types = append(types, typ)
	}
	return types, nil
}

// Busy reports whether a client has not answered a push of one of the types.
func (s *Server) Busy(types ...string) bool { return s.watching.busy(types) }

// Refusals returns which resources clients have refused and not taken since.
func (s *Server) Refusals() []Refusal { return s.watching.refusals() }

// UpdateCaches changes what engines have cached, which Publish does not get: by
// names of resources. Safe for use beside Publish.
func (s *Server) UpdateCaches(changed map[string]proto.Message, removed []string) error {
	if len(changed) == 0 && len(removed) == 0 {
		return nil
	}
	if err := s.engines.update(changed, removed); err != nil {
		return fmt.Errorf("%s: %w", wire.CacheType, err)
	}
	return nil
}

// diff returns what is to be sent to who knows before, so that it knows now.
func diff(before, now map[string]proto.Message) (changed map[string]types.Resource, removed []string) {
	changed = make(map[string]types.Resource)
	for name, m := range now {
		if old, ok := before[name]; !ok || !proto.Equal(old, m) {
			changed[name] = m
		}
	}
	for name := range before {
		if _, ok := now[name]; !ok {
			removed = append(removed, name)
		}
	}
	return changed, removed
}

// Clients returns the number of streams now open, waiting ones included.
func (s *Server) Clients() int { return s.watching.count() }

// Conditions returns what clients have refused and not taken since.
func (s *Server) Conditions() []obs.Condition { return s.watching.conditions() }

// nodeID returns how a client calls itself.
func nodeID(n *corev3.Node) string {
	if n.GetId() == "" {
		return "a client without id"
	}
	return n.GetId()[:min(len(n.GetId()), maxClient)]
}
