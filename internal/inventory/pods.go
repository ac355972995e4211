package inventory

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/trust"
)

// Pod is what of a Kubernetes Pod decides whether it is an endpoint.
type Pod struct {
	Namespace, Name, UID string
	// Created is when it was, to the second.
	Created time.Time
	// IP is its address; empty: it has none yet.
	IP string
	// Node is the node that it runs on, Zone that node's failure domain; empty: not known.
	Node, Zone string
	Labels     map[string]string
	// Ready is whether all its readiness probes pass, Terminating whether it was deleted.
	Ready, Terminating bool
	// Active are the only ports that take requests; nil: all of a pool do.
	Active []int
	// Events is where its engine publishes what its KV cache holds.
	Events Announced
}

// Announced is where a Pod says that its engine publishes events of its KV cache. The zero
// Announced is that it says nothing.
type Announced struct {
	// Port is that of the first rank; a pool's second port has the next one, as engines
	// number them. 0: it publishes none.
	Port int
	// Topic is what messages begin with; empty: all are wanted.
	Topic string
}

// Pool is what of an InferencePool says who belongs to it.
type Pool struct {
	Namespace, Name string
	// Selector is the labels that its Pods have, at least one: a pool without any has no
	// Pods.
	Selector map[string]string
	// Ports are the ports of a Pod, each of which is an endpoint.
	Ports []int
	// Picker is whom gateways ask which of them to use.
	Picker Picker
}

// Picker is a Service of the pool's namespace, and its port; the zero Picker is nobody.
type Picker struct {
	Service string
	Port    int
}

// Has reports whether a Pod belongs to the pool, ready or not.
func (p *Pool) Has(pod *Pod) bool {
	if pod.Namespace != p.Namespace || len(p.Selector) == 0 {
		return false
	}
	for key, value := range p.Selector {
		if got, ok := pod.Labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}

// OfPods returns the endpoints of a pool in the order of their addresses: the ports of its
// Pods that are Ready and do not terminate. Of several Pods with one address the youngest
// has it: the others are leftovers of which nobody has taken notice yet. One whose address
// is not that of a host that others reach is none.
func OfPods(pool *Pool, pods []Pod) []Entry {
	all := make([]claim, 0, len(pods)*len(pool.Ports))
	for i := range pods {
		pod := &pods[i]
		if !pod.Ready || pod.Terminating || !pool.Has(pod) {
			continue
		}
		ip, err := netip.ParseAddr(pod.IP)
		if err != nil {
			continue
		}
		for rank, port := range pool.Ports {
			if pod.Active != nil && !slices.Contains(pod.Active, port) || port < 1 || port > 65535 {
				continue
			}
			if address := at(ip, port); trust.Address(address) == nil {
				all = append(all, claim{address, pod, ip, rank})
			}
		}
	}
	slices.SortFunc(all, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.address, b.address), b.pod.Created.Compare(a.pod.Created), cmp.Compare(b.pod.UID, a.pod.UID))
	})
	all = slices.CompactFunc(all, func(a, b claim) bool { return a.address == b.address })
	entries := make([]Entry, len(all))
	for i := range all {
		entries[i] = all[i].entry()
	}
	return entries
}

// claim is that a Pod has an address. A thousand are sorted for each change of one Pod:
// entries are made of what is left.
type claim struct {
	address string
	pod     *Pod
	ip      netip.Addr
	rank    int // which of the pool's ports it is
}

func (c *claim) entry() Entry {
	e := Entry{Source: "Pod/" + c.pod.Name, UID: c.pod.UID}
	e.Address, e.Node, e.Zone = c.address, cmp.Or(c.pod.Node, c.pod.IP), c.pod.Zone
	if events := c.pod.Events.Port + c.rank; c.pod.Events.Port > 0 && events <= 65535 {
		e.KVEvents = config.KVEvents{Connect: at(c.ip, events), Topic: c.pod.Events.Topic}
	}
	return e
}

func at(ip netip.Addr, port int) string { return netip.AddrPortFrom(ip, uint16(port)).String() }
