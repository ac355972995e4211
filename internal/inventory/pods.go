package inventory

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"millrace.dev/millrace/internal/config"
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
// has it: the others are leftovers of which nobody has taken notice yet.
func OfPods(pool *Pool, pods []Pod) []Entry {
	type claim struct {
		Entry
		created time.Time
	}
	var all []claim
	for i := range pods {
		pod := &pods[i]
		ip, err := netip.ParseAddr(pod.IP)
		if err != nil || !pod.Ready || pod.Terminating || !pool.Has(pod) {
			continue
		}
		for rank, port := range pool.Ports {
			if pod.Active != nil && !slices.Contains(pod.Active, port) || port < 1 || port > 65535 {
				continue
			}
			at := func(port int) string { return netip.AddrPortFrom(ip, uint16(port)).String() }
			e := Entry{Source: "Pod/" + pod.Name, UID: pod.UID}
			e.Address, e.Node, e.Zone = at(port), cmp.Or(pod.Node, pod.IP), pod.Zone
			if events := pod.Events.Port + rank; pod.Events.Port > 0 && events <= 65535 {
				e.KVEvents = config.KVEvents{Connect: at(events), Topic: pod.Events.Topic}
			}
			all = append(all, claim{e, pod.Created})
		}
	}
	slices.SortFunc(all, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), b.created.Compare(a.created), cmp.Compare(b.UID, a.UID))
	})
	all = slices.CompactFunc(all, func(a, b claim) bool { return a.Address == b.Address })
	entries := make([]Entry, len(all))
	for i := range all {
		entries[i] = all[i].Entry
	}
	return entries
}
