package eds

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	edsv3 "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// client is an Envoy that subscribes to some assignments.
type client struct {
	t      *testing.T
	stream edsv3.EndpointDiscoveryService_DeltaEndpointsClient
}

func subscribe(t *testing.T, s *Server, names ...string) *client {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	s.Register(g)
	go g.Serve(ln)
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := edsv3.NewEndpointDiscoveryServiceClient(conn).DeltaEndpoints(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t, stream}
	c.send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "envoy"}, ResourceNamesSubscribe: names})
	return c
}

func (c *client) send(r *discoveryv3.DeltaDiscoveryRequest) {
	c.t.Helper()
	r.TypeUrl = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	if err := c.stream.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

// next returns the next push: "NAME: ADDRESS=WEIGHT …", sorted.
func (c *client) next() []string {
	c.t.Helper()
	r, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	var all []string
	for _, one := range r.GetResources() {
		a := new(endpointv3.ClusterLoadAssignment)
		if err := one.GetResource().UnmarshalTo(a); err != nil {
			c.t.Fatal(err)
		}
		text := []string{one.GetName() + ":"}
		for _, h := range a.GetEndpoints() {
			for _, e := range h.GetLbEndpoints() {
				s := e.GetEndpoint().GetAddress().GetSocketAddress()
				text = append(text, fmt.Sprintf("%s:%d=%d", s.GetAddress(), s.GetPortValue(), e.GetLoadBalancingWeight().GetValue()))
			}
		}
		all = append(all, strings.Join(text, " "))
	}
	for _, name := range r.GetRemovedResources() {
		all = append(all, name+" removed")
	}
	c.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: r.GetNonce()})
	slices.Sort(all)
	return all
}

func TestHostsFollowTheFleet(t *testing.T) {
	s := New(t.Context(), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	c := subscribe(t, s, "engines", "engines/org/m")
	steps := []struct {
		name  string
		hosts []Host
		want  []string
	}{
		{"the first of all", []Host{{"10.0.0.1:80", []string{"n"}, 100}}, []string{"engines: 10.0.0.1:80=100"}},
		{"one more, of another model", []Host{{"10.0.0.1:80", []string{"n"}, 100}, {"[fd00::2]:81", []string{"n", "org/m"}, 0}},
			[]string{"engines/org/m: fd00::2:81=1", "engines: 10.0.0.1:80=100 fd00::2:81=1"}},
		{"another weight", []Host{{"10.0.0.1:80", []string{"n"}, 50}, {"[fd00::2]:81", []string{"n", "org/m"}, 1}}, []string{"engines: 10.0.0.1:80=50 fd00::2:81=1"}},
		{"a model without hosts is no missing one", []Host{{"10.0.0.1:80", []string{"n"}, 50}}, []string{"engines/org/m:", "engines: 10.0.0.1:80=50"}},
	}
	for _, step := range steps {
		s.Set(step.hosts)
		if got := c.next(); !slices.Equal(got, step.want) {
			t.Errorf("%s: %q, want %q", step.name, got, step.want)
		}
	}
	s.Set(steps[3].hosts) // changes nothing: the next push is the one after it
	s.Set([]Host{{"10.0.0.3:80", []string{"n"}, 7}})
	if got := c.next(); !slices.Equal(got, []string{"engines: 10.0.0.3:80=7"}) {
		t.Errorf("a change: %q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
