package page

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Diff returns what has happened between two snapshots, without At and Seq, in the order in
// which a person would report it: configuration, models, replicas, nodes. It does no I/O.
// A nil old is a fleet of which nothing is known: nothing has happened to it.
func Diff(old, now *Snapshot) []Event {
	if old == nil {
		return nil
	}
	var all changes
	all.config(old, now)
	all.models(old, now)
	all.nodes(old, now)
	return all
}

// changes are the events of one Diff.
type changes []Event

func (c *changes) add(k Kind, l Level, subject, format string, args ...any) {
	*c = append(*c, Event{Kind: k, Level: l, Subject: subject, Text: fmt.Sprintf(format, args...)})
}

// because is a reason behind a text; empty: there is none.
func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// byName has items by name.
func byName[T any](all []T, name func(*T) string) map[string]*T {
	m := make(map[string]*T, len(all))
	for i := range all {
		m[name(&all[i])] = &all[i]
	}
	return m
}

// both calls f for each name of two maps, in their order, with nil where one lacks it.
func both[T any](a, b map[string]*T, f func(name string, was, is *T)) {
	names := slices.Collect(maps.Keys(b))
	for name := range a {
		if b[name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		f(name, a[name], b[name])
	}
}

func (c *changes) config(old, now *Snapshot) {
	name := func(o *Object) string { return o.Kind + "/" + o.Name }
	both(byName(old.Objects, name), byName(now.Objects, name), func(name string, was, is *Object) {
		switch {
		case is == nil:
			c.add(Configured, Info, name, "%s was removed from the configuration", name)
		case is.Refused != "" && (was == nil || was.Refused != is.Refused):
			c.add(Configured, Bad, name, "%s was refused: %s", name, is.Refused)
		case is.Refused == "" && was != nil && was.Refused != "":
			c.add(Configured, Good, name, "%s is in order again", name)
		case was == nil && old.Version > 0:
			c.add(Configured, Info, name, "%s is new in the configuration", name)
		case was != nil && is.Generation > was.Generation && was.Generation > 0:
			c.add(Configured, Info, name, "%s was changed", name)
		}
	})
	if old.Version == 0 && now.Version > 0 {
		c.add(Configured, Info, "configuration", "the configuration is in force")
	}
}

func (c *changes) models(old, now *Snapshot) {
	name := func(m *Model) string { return m.Name }
	both(byName(old.Models, name), byName(now.Models, name), func(name string, was, is *Model) {
		if was == nil {
			was = &Model{}
		}
		if is == nil {
			is = &Model{}
		}
		c.scaled(name, was.Scaling, is.Scaling)
		c.replicas(was, is)
		switch {
		case was.Ready == 0 && is.Ready > 0 && was.Desired > 0:
			c.add(Outage, Good, name, "model %s is served", name)
		case was.Ready > 0 && is.Ready == 0 && is.Desired > 0 && !asleep(is):
			c.add(Outage, Bad, name, "nobody serves model %s", name)
		}
	})
}

// asleep is whether a model has no replica on purpose.
func asleep(m *Model) bool {
	return m.Scaling != nil && m.Scaling.Desired == 0 || !slices.ContainsFunc(m.Replicas, func(r Replica) bool { return r.State != Asleep })
}

func (c *changes) scaled(model string, was, is *Scaling) {
	if was == nil || is == nil || was.Desired == is.Desired {
		return
	}
	c.add(Scaled, Info, model, "model %s is to have %s instead of %d%s", model, count(int(is.Desired), "replica"), was.Desired, because(is.Reason))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (c *changes) replicas(was, is *Model) {
	name := func(r *Replica) string { return r.Name }
	both(byName(was.Replicas, name), byName(is.Replicas, name), func(name string, was, is *Replica) {
		switch {
		case is == nil && was.State == Ready:
			c.add(Left, Info, name, "%s takes no requests any more: it is not desired", name)
		case is == nil:
			c.add(Left, Info, name, "%s is not there any more", name)
		case was == nil && is.Source != "":
			c.add(Joined, Info, name, "%s is new, named by %s: %s", name, is.Source, is.State)
		case was == nil && is.State == Ready:
			c.add(Reinstated, Good, name, "%s takes requests", name)
		case was != nil:
			c.moved(was, is)
			c.state(was, is)
		}
	})
}

// moved compares where a replica lies.
func (c *changes) moved(was, is *Replica) {
	from, to := places(was), places(is)
	switch {
	case from == to || from == "" && was.State != Unplaced:
	case to == "" && is.State == Unplaced:
		c.add(Replanned, Bad, is.Name, "%s has no place on nodes any more%s", is.Name, because(is.Reason))
	case to == "":
	case from == "":
		c.add(Replanned, Info, is.Name, "%s has a place on %s", is.Name, to)
	default:
		c.add(Replanned, Info, is.Name, "%s goes from %s to %s", is.Name, from, to)
	}
}

// places are the nodes of a replica, for a person.
func places(r *Replica) string {
	names := make([]string, len(r.Shards))
	for i, s := range r.Shards {
		names[i] = s.Node
	}
	return strings.Join(names, " + ")
}

func (c *changes) state(was, is *Replica) {
	if was.State == is.State {
		return
	}
	switch is.State {
	case Ready:
		c.add(Reinstated, Good, is.Name, "%s takes requests", is.Name)
	case Suspect:
		c.add(Suspected, Bad, is.Name, "%s gets requests only if nobody else is ready%s", is.Name, because(is.Reason))
	case NotReady:
		if was.State == Ready || was.State == Suspect {
			c.add(Ejected, Bad, is.Name, "%s takes no requests%s", is.Name, because(is.Reason))
		}
	case Asleep:
		c.add(Scaled, Info, is.Name, "%s is asleep until somebody asks%s", is.Name, because(is.Reason))
	}
}

func (c *changes) nodes(old, now *Snapshot) {
	name := func(n *Node) string { return n.Name }
	both(byName(old.Nodes, name), byName(now.Nodes, name), func(name string, was, is *Node) {
		switch {
		case was == nil:
			c.add(Joined, Good, name, "node %s has joined", name)
			return
		case is == nil:
			c.add(Left, Bad, name, "node %s is not known any more", name)
			return
		case was.Silent.IsZero() && !is.Silent.IsZero():
			c.add(Left, Bad, name, "node %s does not report any more%s", name, because(is.Reason))
		case !was.Silent.IsZero() && is.Silent.IsZero():
			c.add(Joined, Good, name, "node %s reports again", name)
		}
		c.drained(was, is)
		c.slowed(was, is)
	})
}

func (c *changes) drained(was, is *Node) {
	leaves := func(n *Node) bool { return n.State == Draining || n.State == Drained }
	switch {
	case leaves(is) && !leaves(was):
		c.add(Drain, Info, is.Name, "node %s is drained%s", is.Name, because(is.Reason))
	case is.State == Drained && was.State == Draining:
		c.add(Drain, Good, is.Name, "node %s is empty", is.Name)
	case leaves(was) && !leaves(is):
		c.add(Drain, Info, is.Name, "node %s is in service again", is.Name)
	}
}

func (c *changes) slowed(was, is *Node) {
	for i := range min(len(was.GPUs), len(is.GPUs)) {
		a, b := &was.GPUs[i], &is.GPUs[i]
		gpu := fmt.Sprintf("GPU %d (%s) of %s", i, cmp.Or(b.Name, "?"), is.Name)
		switch {
		case b.Lost && !a.Lost:
			c.add(Slowed, Bad, is.Name, "%s is lost", gpu)
		case a.Lost && !b.Lost:
			c.add(Slowed, Good, is.Name, "%s is back", gpu)
		case len(b.Slowed) > 0 && len(a.Slowed) == 0:
			c.add(Slowed, Bad, is.Name, "%s is slowed down: %s", gpu, strings.Join(b.Slowed, ", "))
		case len(a.Slowed) > 0 && len(b.Slowed) == 0:
			c.add(Slowed, Good, is.Name, "%s is at full speed again", gpu)
		}
	}
}
