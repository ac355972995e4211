package fleet

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/xds/fleetpb"
)

// quietFor is for how long nothing must be left on a node until it counts as drained: two
// reports of it, so that what was on its way there has been reported.
const quietFor = time.Second

// Drains is which nodes a person wants to have drained, and why, by name. All others are in
// service, as far as Kubernetes has nothing against it.
type Drains struct{ Nodes map[string]string }

func (Drains) event() {}

// Drain is how far a node is emptied that is to be drained.
type Drain struct {
	// Why it is to be drained, and whether a person wants it, or Kubernetes.
	Why    string
	ByHand bool
	// Done is whether nothing is left, entered at Since.
	Done  bool
	Since time.Time
	// Requests run or wait in engines that need the node.
	Requests int
	// Cached are the tokens of conversations in the cache of its engine: their next turns go
	// elsewhere, where they are computed anew.
	Cached uint64
	// Waits is what has to happen first, beside the requests.
	Waits []string
	// Serves are the models of which nobody else takes requests, so that they still come.
	Serves []string
	// Stays are the replicas that are loaded there still and get no requests, with the reason.
	Stays []string

	// quiet is since when nothing is left; zero: something is.
	quiet time.Time
}

// orders returns what Kubernetes and people have decided about a node.
func (f *Fleet) orders(name string) ClusterNode {
	c := f.cluster[name]
	if why := f.drains[name]; why != "" {
		c.Cordoned, c.Leaving = why, why
		c.Engine = c.Engine || f.cluster == nil // nobody says that there is none
	}
	return c
}

// drain finds out how far the nodes are emptied that are to be drained.
func (f *Fleet) drain(now time.Time, s *Snapshot) {
	all := make(map[string]*Drain)
	for name := range f.nodes {
		c := f.orders(name)
		if why := c.Leaving; why != "" || c.Cordoned != "" {
			if why == "" {
				why = c.Cordoned
			}
			all[name] = &Drain{Why: why, ByHand: f.drains[name] != ""}
		}
	}
	if len(all) > 0 {
		f.left(now, s, all)
	}
	for name, d := range all {
		d.Since = now
		old := f.draining[name]
		if d.Requests == 0 && len(d.Waits) == 0 && len(d.Serves) == 0 {
			if d.quiet = now; old != nil && !old.quiet.IsZero() {
				d.quiet = old.quiet
			}
			d.Done = now.Sub(d.quiet) >= quietFor
		}
		if old != nil && old.Done == d.Done {
			d.Since = old.Since
		}
	}
	f.draining = all
}

// left adds what is left on each node.
func (f *Fleet) left(now time.Time, s *Snapshot, all map[string]*Drain) {
	for _, e := range s.Endpoints {
		for _, name := range e.Nodes {
			if d := all[name]; d != nil && e.Foreign == nil {
				d.replica(e, s)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.nodes)) {
		n := f.nodes[name]
		if n.asLayout(now, f.orders(name)).Lost {
			continue // what it had is laid out elsewhere: nothing is left there to wait for
		}
		a, load := n.engine.GetAssignment(), n.engine.GetLoad()
		_, silent := n.silentSince(now)
		if d := all[name]; d != nil {
			d.Cached = load.GetCachedTokens()
			if a != nil && !f.inForce(a.GetReplica(), name) {
				d.Waits = append(d.Waits, a.GetReplica()+" ends there")
			}
		}
		if a.GetStage() != 0 {
			continue
		}
		for _, st := range a.GetStages() {
			if d := all[st.GetNode()]; d != nil {
				if d.Requests += int(load.GetRunning() + load.GetWaiting()); silent {
					d.Waits = append(d.Waits, "what runs on "+name+" is not known: its nodeagent is silent")
				}
			}
		}
	}
}

// inForce reports whether a replica is to be on a node, also as what is left behind.
func (f *Fleet) inForce(replica, node string) bool {
	for i := range f.replicas {
		if r := &f.replicas[i]; r.Spec.Replica == replica && slices.Contains(r.Nodes(), node) {
			return true
		}
	}
	return false
}

// replica adds what is left of a replica that has a part on the node.
func (d *Drain) replica(e Endpoint, s *Snapshot) {
	switch {
	case e.Moves != "":
		d.Waits = append(d.Waits, fmt.Sprintf("%s starts on %s first", e.Moves, strings.Join(s.Placed[e.Moves], ", ")))
	case e.Membership == Leaving:
		if !slices.Contains(d.Serves, e.Model) {
			d.Serves = append(d.Serves, e.Model)
		}
	case e.Membership == Healthy:
		d.Waits = append(d.Waits, strings.TrimSuffix(e.Replica+" takes requests there: "+s.Waits[e.Replica], ": "))
	default:
		d.Stays = append(d.Stays, strings.TrimSuffix(e.Replica+": "+s.Waits[e.Replica], ": "))
	}
}

// Text says for a person how far it is.
func (d *Drain) Text() string {
	var all []string
	switch {
	case d.Requests == 1:
		all = append(all, "1 request runs or waits")
	case d.Requests > 1:
		all = append(all, fmt.Sprintf("%d requests run or wait", d.Requests))
	}
	all = append(all, d.Waits...)
	if len(d.Serves) > 0 {
		all = append(all, "nobody else serves "+strings.Join(d.Serves, ", ")+", so that requests for it still come")
	}
	if len(all) == 0 {
		all = append(all, "nothing runs there")
	}
	if d.Cached > 0 {
		all = append(all, fmt.Sprintf("conversations with %d tokens in its cache continue elsewhere at their next turn", d.Cached))
	}
	if len(d.Stays) > 0 {
		all = append(all, "it stays loaded as the last resort: "+strings.Join(d.Stays, "; "))
	}
	return strings.Join(all, "; ")
}

// drainConditions shows the nodes that are drained.
func (f *Fleet) drainConditions() []obs.Condition {
	var all []obs.Condition
	for _, name := range slices.Sorted(maps.Keys(f.draining)) {
		d := f.draining[name]
		c := obs.Condition{
			Code: "node-leaving", Text: fmt.Sprintf("node %s is being drained: %s: %s", name, d.Why, d.Text()),
			Next: "kubectl uncordon it, or wait until its replicas have moved",
		}
		if d.Done {
			c.Text = fmt.Sprintf("node %s is drained: %s: %s", name, d.Why, d.Text())
		}
		if d.ByHand {
			c.Next = "millrace undrain " + name + " takes it back"
		}
		all = append(all, c)
	}
	return all
}

// Sole returns by node the models that only it serves, and that can't start elsewhere: if it
// was drained, their requests would still come there.
func (s *Snapshot) Sole() map[string][]string {
	if s.Desired == nil {
		return nil
	}
	free := 0
	for _, n := range s.Nodes {
		if n.Free {
			free++
		}
	}
	sole := make(map[string][]string)
	for _, m := range s.Desired.Models {
		for _, node := range s.onAll(m.Name) {
			moves := false
			for _, name := range s.Replicas(m) {
				l := m.Spec.LayoutOf(number(name, m.Name))
				moves = moves || len(l.Nodes) == 0 && l.Stages <= free
			}
			if !moves {
				sole[node] = append(sole[node], m.Name)
			}
		}
	}
	return sole
}

// onAll returns the nodes that have a part in all endpoints of a model that take requests, or
// are to.
func (s *Snapshot) onAll(model string) []string {
	var serving, others []Endpoint
	for _, e := range s.Endpoints {
		switch {
		case e.Model != model:
		case e.Membership == Healthy:
			serving = append(serving, e)
		case e.Foreign == nil:
			others = append(others, e)
		}
	}
	if len(serving) == 0 {
		serving = others
	}
	var nodes []string
	for i, e := range serving {
		if e.Foreign != nil {
			return nil
		}
		if i == 0 {
			nodes = slices.Clone(e.Nodes)
		}
		nodes = slices.DeleteFunc(nodes, func(n string) bool { return !slices.Contains(e.Nodes, n) })
	}
	return nodes
}

// view returns it for people; nil: there is nothing to see.
func (d *Drain) view() *fleetpb.Drain {
	if d == nil {
		return nil
	}
	return &fleetpb.Drain{
		Why: d.Why, ByHand: d.ByHand, Done: d.Done, Since: timestamppb.New(d.Since), Requests: uint32(d.Requests),
		CachedTokens: d.Cached, Waits: d.Waits, Serves: d.Serves, Stays: d.Stays, Text: d.Text(),
	}
}
