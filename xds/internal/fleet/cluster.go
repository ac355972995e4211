package fleet

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"millrace.dev/millrace/internal/obs"
)

// ClusterNode is what Kubernetes says of a node.
type ClusterNode struct {
	// Cordoned is why nothing new may come there and what is there is to move where it
	// can; empty: it may stay.
	Cordoned string
	// Leaving is why its engine takes no new requests; empty: it may.
	Leaving string
	// NotReady is why Kubernetes can't reach it; empty: it can. It is shown and not obeyed:
	// our own heartbeat is faster, and may have another way.
	NotReady string
	// Engine is whether an engine is ready there, so that its nodeagent is to report.
	Engine bool

	// gone is since when Kubernetes knows the node no more; zero: it does.
	gone time.Time
}

// ClusterObserved is what Kubernetes says of all nodes, by name.
type ClusterObserved struct{ Nodes map[string]ClusterNode }

func (ClusterObserved) event() {}

// observedCluster takes in what Kubernetes says. A node that it knows no more leaves;
// one that it never knew is none of its business.
func (f *Fleet) observedCluster(now time.Time, nodes map[string]ClusterNode) {
	all := maps.Clone(nodes)
	if all == nil {
		all = make(map[string]ClusterNode)
	}
	for name, had := range f.cluster {
		if _, ok := all[name]; ok || !had.gone.IsZero() && now.Sub(had.gone) >= forgetAfter {
			continue
		}
		gone := had.gone
		if gone.IsZero() {
			gone = now
		}
		const why = "it is not in the cluster any more"
		all[name] = ClusterNode{Cordoned: why, Leaving: why, gone: gone}
	}
	f.cluster = all
}

// lost reports whether what a silent node had is to be laid out elsewhere at once,
// because it does not come back soon.
func (c ClusterNode) lost() bool { return !c.gone.IsZero() || c.Cordoned != "" && !c.Engine }

// expected reports whether every node has reported that is to, as far as Kubernetes
// says who that is. The only xds knows no Kubernetes.
func (f *Fleet) expected() bool {
	if f.cluster == nil {
		return !f.leading.follows && f.leading.term == 0
	}
	for name, c := range f.cluster {
		if c.Engine && f.nodes[name] == nil {
			return false
		}
	}
	return true
}

// clusterConditions is what Kubernetes says that keeps nodes from being used.
func (f *Fleet) clusterConditions() []obs.Condition {
	var all []obs.Condition
	for _, name := range slices.Sorted(maps.Keys(f.cluster)) {
		switch c := f.cluster[name]; {
		case !c.gone.IsZero():
		case c.NotReady != "":
			all = append(all, obs.Condition{
				Code: "node-not-ready", Text: fmt.Sprintf("Kubernetes does not reach node %s: %s", name, c.NotReady),
				Next: "check its kubelet; the node serves as long as its nodeagent reports",
			})
		case f.nodes[name] == nil && (c.Cordoned != "" || c.Leaving != ""):
			why := c.Leaving
			if why == "" {
				why = c.Cordoned
			}
			all = append(all, obs.Condition{
				Code: "node-leaving", Text: fmt.Sprintf("node %s is being drained: %s", name, why),
				Next: "kubectl uncordon it, or wait until its replicas have moved",
			})
		}
	}
	return all
}
