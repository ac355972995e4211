package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
)

// host is one endpoint as Envoy knows it.
type host struct {
	cluster  string
	weight   int
	requests int // rq_total: attempts, without health checks
	active   int // rq_active: attempts at this moment
	health   string
	healthy  bool
}

// clusters is Envoy's answer to /clusters?format=json, as far as it is needed.
type clusters struct {
	Statuses []struct {
		Name  string `json:"name"`
		Hosts []struct {
			Address struct {
				Socket struct {
					Address string `json:"address"`
					Port    int    `json:"port_value"`
				} `json:"socket_address"`
			} `json:"address"`
			Weight int            `json:"weight"`
			Health map[string]any `json:"health_status"`
			Stats  []struct {
				Name  string `json:"name"`
				Value string `json:"value"`
			} `json:"stats"`
		} `json:"host_statuses"`
	} `json:"cluster_statuses"`
}

// hosts returns Envoy's endpoints of the clusters with that prefix, by address.
func (m *mesh) hosts(prefix string) (map[string]host, error) {
	s, err := m.read()
	if err != nil {
		return nil, err
	}
	b, err := get("http://" + s.find("envoy").Addrs["admin"] + "/clusters?format=json")
	if err != nil {
		return nil, err
	}
	var c clusters
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	all := map[string]host{}
	for _, cl := range c.Statuses {
		if !strings.HasPrefix(cl.Name, prefix) {
			continue
		}
		for _, h := range cl.Hosts {
			one := host{cluster: cl.Name, weight: h.Weight, health: fmt.Sprint(h.Health)}
			one.healthy = h.Health["eds_health_status"] == "HEALTHY" && len(h.Health) == 1
			for _, st := range h.Stats {
				switch st.Name {
				case "rq_total":
					one.requests, _ = strconv.Atoi(st.Value)
				case "rq_active":
					one.active, _ = strconv.Atoi(st.Value)
				}
			}
			a := h.Address.Socket
			all[net.JoinHostPort(a.Address, strconv.Itoa(a.Port))] = one
		}
	}
	return all, nil
}

// engines returns Envoy's endpoints for models.
func (m *mesh) engines(t *testing.T) map[string]host {
	t.Helper()
	hs, err := m.hosts("engines/")
	if err != nil {
		t.Fatal(err)
	}
	return hs
}

// serving says why Envoy can't send requests to n engines and to extproc.
func (m *mesh) serving(n int) error {
	engines, err := m.hosts("engines/")
	if err != nil {
		return err
	}
	if len(engines) != n {
		return fmt.Errorf("Envoy knows %d engines, want %d", len(engines), n)
	}
	picker, err := m.hosts("extproc")
	if err != nil {
		return err
	}
	if len(picker) == 0 {
		return errors.New("Envoy knows no extproc")
	}
	for _, hs := range []map[string]host{engines, picker} {
		for addr, h := range hs {
			if !h.healthy {
				return fmt.Errorf("Envoy: %s %s: %s", h.cluster, addr, h.health)
			}
		}
	}
	return nil
}
