package rig

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"millrace.dev/millrace/envoy"
)

// StartEnvoy starts set-up's Envoy with a configuration file; it ends with the test.
func StartEnvoy(t testing.TB, config string, workers int) *Process {
	t.Helper()
	path := MustCached(t, "envoy-*/envoy")
	if out, err := exec.Command(path, envoy.ValidateArgs(config)...).CombinedOutput(); err != nil {
		t.Fatalf("envoy --mode validate: %v\n%s", err, out)
	}
	return Start(t, "envoy", exec.Command(path, envoy.Args(config, workers)...))
}

// Host is one endpoint as Envoy has it.
type Host struct {
	Cluster  string
	Weight   int
	Requests int // rq_total: attempts, without health checks
	Active   int // rq_active: attempts at this moment
	Health   string
	Healthy  bool
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

// EnvoyHosts returns the endpoints of the clusters whose names have the prefix, by
// address, from an Envoy's admin address.
func EnvoyHosts(admin, prefix string) (map[string]Host, error) {
	b, err := Get("http://" + admin + "/clusters?format=json")
	if err != nil {
		return nil, err
	}
	var c clusters
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	all := map[string]Host{}
	for _, cl := range c.Statuses {
		if !strings.HasPrefix(cl.Name, prefix) {
			continue
		}
		for _, h := range cl.Hosts {
			one := Host{Cluster: cl.Name, Weight: h.Weight, Health: fmt.Sprint(h.Health)}
			one.Healthy = h.Health["eds_health_status"] == "HEALTHY" && len(h.Health) == 1
			for _, st := range h.Stats {
				switch st.Name {
				case "rq_total":
					one.Requests, _ = strconv.Atoi(st.Value)
				case "rq_active":
					one.Active, _ = strconv.Atoi(st.Value)
				}
			}
			a := h.Address.Socket
			all[net.JoinHostPort(a.Address, strconv.Itoa(a.Port))] = one
		}
	}
	return all, nil
}

// EnvoyStat returns one of Envoy's counters or gauges.
func EnvoyStat(admin, name string) (float64, error) {
	b, err := Get("http://" + admin + "/stats?filter=^" + strings.ReplaceAll(name, ".", `\.`) + "$")
	if err != nil {
		return 0, err
	}
	_, v, _ := strings.Cut(strings.TrimSpace(string(b)), ": ")
	return strconv.ParseFloat(v, 64)
}

// Hosts returns the mesh's Envoy's endpoints of the clusters whose names have the
// prefix, by address: "engines/" for all models, "extproc".
func (m *Mesh) Hosts(prefix string) (map[string]Host, error) {
	s, err := m.ReadState()
	if err != nil {
		return nil, err
	}
	return EnvoyHosts(s.Find("envoy").Addrs["admin"], prefix)
}

// MustHosts is Hosts for tests.
func (m *Mesh) MustHosts(t testing.TB, prefix string) map[string]Host {
	t.Helper()
	hs, err := m.Hosts(prefix)
	if err != nil {
		t.Fatal(err)
	}
	return hs
}

// Serving says why Envoy can't send requests to n engines and to extproc.
func (m *Mesh) Serving(n int) error {
	engines, err := m.Hosts("engines/")
	if err != nil {
		return err
	}
	if len(engines) != n {
		return fmt.Errorf("%d engines are known to Envoy, want %d", len(engines), n)
	}
	picker, err := m.Hosts("extproc")
	if err != nil {
		return err
	}
	if len(picker) == 0 {
		return errors.New("no extproc is known to Envoy")
	}
	for _, hs := range []map[string]Host{engines, picker} {
		for addr, h := range hs {
			if !h.Healthy {
				return fmt.Errorf("cluster %s, host %s: %s", h.Cluster, addr, h.Health)
			}
		}
	}
	return nil
}

// Unpicked says why Envoy still asks extproc.
func (m *Mesh) Unpicked() error {
	hs, err := m.Hosts("extproc")
	if err != nil {
		return err
	}
	for addr, h := range hs {
		if h.Healthy {
			return fmt.Errorf("extproc at %s is still asked", addr)
		}
	}
	return nil
}
