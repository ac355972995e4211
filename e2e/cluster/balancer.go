package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// balance stands in for a cloud's load balancers: it gives each Service of type
// LoadBalancer an address, which kube-proxy then serves on every node. It returns
// when ctx ends; a watch that breaks is begun again.
func (c *Cluster) balance(ctx context.Context) {
	b := balancer{given: map[string]string{}}
	for ctx.Err() == nil {
		if err := c.watchServices(ctx, &b); err != nil && ctx.Err() == nil {
			c.log.Debug("watch of services ended", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// service is what matters of a Service.
type service struct {
	Metadata struct{ Name, Namespace string }
	Spec     struct{ Type string }
	Status   struct {
		LoadBalancer struct{ Ingress []struct{ IP string } }
	}
}

// balancer decides which Service gets which address. The zero value but for the map
// has given none.
type balancer struct {
	given map[string]string // address by namespace/name; kept until the Service is deleted
}

// address returns the address that a Service is to be given now; "" is none.
func (b *balancer) address(event string, s service) string {
	key := s.Metadata.Namespace + "/" + s.Metadata.Name
	balanced := s.Spec.Type == "LoadBalancer" && event != "DELETED"
	if !balanced {
		delete(b.given, key)
		return ""
	}
	if ingress := s.Status.LoadBalancer.Ingress; len(ingress) > 0 {
		b.given[key] = ingress[0].IP
		return ""
	}
	taken := map[string]bool{}
	for _, ip := range b.given {
		taken[ip] = true
	}
	if ip := b.given[key]; ip != "" {
		return ip
	}
	for i := 1; i < 255; i++ {
		if ip := fmt.Sprint(balancedIP, i); !taken[ip] {
			b.given[key] = ip
			return ip
		}
	}
	return ""
}

// watchServices follows all Services until the watch ends.
func (c *Cluster) watchServices(ctx context.Context, b *balancer) error {
	resp, err := c.request(ctx, http.MethodGet, "/api/v1/services?watch=1", "", nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	for decode := json.NewDecoder(resp.Body); ; {
		var event struct {
			Type   string
			Object service
		}
		if err := decode.Decode(&event); err != nil {
			return err
		}
		ip := b.address(event.Type, event.Object)
		if ip == "" {
			continue
		}
		m := event.Object.Metadata
		path := fmt.Sprintf("/api/v1/namespaces/%s/services/%s/status", m.Namespace, m.Name)
		patch := fmt.Sprintf(`{"status":{"loadBalancer":{"ingress":[{"ip":%q}]}}}`, ip)
		if _, err := c.API(ctx, http.MethodPatch, path, "application/merge-patch+json", strings.NewReader(patch)); err != nil {
			return err
		}
	}
}
