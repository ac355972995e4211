// Package eds serves the hosts of a fleet's file to Envoy, so that its clusters of engines
// follow the file, too: xDS' endpoint discovery, on the port at which Envoy asks.
//
// Called by extproc's main where there is no xds program. Its one rule: it says who exists
// and how much they are worth, and not who is down. Envoy checks that itself, and what
// was said of an engine's health would outlive the extproc that said it.
package eds

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	edsv3 "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Names of assignments.
const (
	// All is that of the cluster with all hosts.
	All = "engines"
	// modelPrefix begins that of a model's hosts.
	modelPrefix = "engines/"
)

// mostEmpty bounds the assignments that are kept because their models had hosts once.
const mostEmpty = 4096

// Host is an endpoint as Envoy is to have it.
type Host struct {
	// Address is "ip:port".
	Address string
	// Models are all that it serves.
	Models []string
	// Weight is its share of what Envoy distributes without extproc, at least 1.
	Weight uint32
}

// Server serves assignments.
type Server struct {
	// Constant after New.
	inner serverv3.Server
	cache *cachev3.LinearCache
	log   *slog.Logger
	wake  chan struct{} // holds one: hosts has changed

	// Atomic.
	hosts atomic.Pointer[[]Host]

	// last is the hosts of published, which is by name what was published last. Only Run
	// touches them.
	last      []Host
	published map[string]*endpointv3.ClusterLoadAssignment
}

// New returns a server whose streams end with ctx. It answers nothing before the first
// Set, so that an extproc that has just begun takes nothing away from an Envoy.
func New(ctx context.Context, log *slog.Logger) *Server {
	s := &Server{
		cache: cachev3.NewLinearCache(resource.EndpointType), log: log, wake: make(chan struct{}, 1),
		published: map[string]*endpointv3.ClusterLoadAssignment{},
	}
	s.inner = serverv3.NewServer(ctx, s.cache, serverv3.CallbackFuncs{
		StreamDeltaRequestFunc: func(_ int64, r *discoveryv3.DeltaDiscoveryRequest) error {
			if e := r.GetErrorDetail(); e != nil {
				log.Warn("hosts refused by Envoy", "node", r.GetNode().GetId(), "error", e.GetMessage())
			}
			return nil
		},
	})
	return s
}

// Register adds the service to a gRPC server.
func (s *Server) Register(g grpc.ServiceRegistrar) {
	edsv3.RegisterEndpointDiscoveryServiceServer(g, s.inner)
}

// Set makes these the hosts, each address once. It does not wait for anybody.
func (s *Server) Set(hosts []Host) {
	s.hosts.Store(&hosts)
	select {
	case s.wake <- struct{}{}:
	default: // Run has yet to look
	}
}

// Run publishes what Set says until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
			now := *s.hosts.Load()
			if slices.EqualFunc(now, s.last, same) {
				continue
			}
			if err := s.publish(assignments(now)); err != nil {
				return err
			}
			s.last = now
		}
	}
}

func same(a, b Host) bool {
	return a.Address == b.Address && a.Weight == b.Weight && slices.Equal(a.Models, b.Models)
}

// publish publishes what has changed. A model whose last host has gone keeps an
// assignment without any: an Envoy takes no notice of one that is missing.
func (s *Server) publish(now map[string]*endpointv3.ClusterLoadAssignment) error {
	changed := map[string]types.Resource{}
	for name, old := range s.published {
		if now[name] == nil && len(now) < mostEmpty {
			now[name] = &endpointv3.ClusterLoadAssignment{ClusterName: old.GetClusterName()}
		}
	}
	var gone []string
	for name := range s.published {
		if now[name] == nil {
			gone = append(gone, name)
		}
	}
	for name, a := range now {
		if !proto.Equal(a, s.published[name]) {
			changed[name] = a
		}
	}
	s.published = now
	if len(changed)+len(gone) == 0 {
		return nil
	}
	s.log.Info("hosts published", "changed", len(changed), "hosts", hostsOf(now[All]))
	return s.cache.UpdateResources(changed, gone)
}

func hostsOf(a *endpointv3.ClusterLoadAssignment) (n int) {
	for _, l := range a.GetEndpoints() {
		n += len(l.GetLbEndpoints())
	}
	return n
}

// assignments returns, by name, that of all hosts and that of each model's.
func assignments(hosts []Host) map[string]*endpointv3.ClusterLoadAssignment {
	all := map[string]*endpointv3.ClusterLoadAssignment{}
	add := func(name string, h *endpointv3.LbEndpoint) {
		a := all[name]
		if a == nil {
			a = &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{}}}
			all[name] = a
		}
		a.Endpoints[0].LbEndpoints = append(a.Endpoints[0].LbEndpoints, h)
	}
	for _, h := range hosts {
		a, err := netip.ParseAddrPort(h.Address)
		if err != nil {
			continue // no file has it
		}
		one := &endpointv3.LbEndpoint{
			LoadBalancingWeight: wrapperspb.UInt32(max(1, h.Weight)),
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
				Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
					Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
				}}},
			}},
		}
		add(All, one)
		for _, m := range h.Models {
			add(modelPrefix+m, one)
		}
	}
	return all
}
