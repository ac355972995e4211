package fleet

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// Types of statements about an object.
const (
	accepted    = "Accepted"
	readyType   = "Ready"
	progressing = "Progressing"
	scaledType  = "Scaled"
)

// Key names an object.
type Key struct{ Kind, Name string }

// Object is an object of the desired state with what became of it.
type Object struct {
	Key
	// Generation of the content in force; 0: none is.
	Generation int64
	// Conditions in the order Accepted, Ready, Progressing, Scaled.
	Conditions []ObjectCondition
	// Replicas of a model by name, and how many of them take requests.
	Replicas []string
	Ready    int
	// Layout is how a model is laid out, and why, where that is planned.
	Layout string
	// Scaled is how the number of a model's replicas follows demand; nil: it doesn't.
	Scaled *Scaled
}

// ObjectCondition is one statement about an object, in Kubernetes' sense.
type ObjectCondition struct {
	// Type is Accepted, Ready, Progressing or Scaled, and Status whether it is so.
	Type   string
	Status bool
	// Reason is one word for programs, Message is for a person.
	Reason, Message string
	// Field is the path of what is wrong; empty: nothing, or not known.
	Field string
	// Observed is the generation that the statement is about.
	Observed int64
	// Since is when Status was last entered.
	Since time.Time
}

// objects returns what became of each object of the desired state, and of those that
// were refused and never in force. It depends on its arguments alone: what is desired,
// what is wrong with the source, which clients refuse what, what serves, and what
// waits for what.
func objects(p desired.Published, refusals map[Key]string, snap *Snapshot, before []Object, now time.Time) []Object {
	endpoints := snap.Endpoints
	if p.State == nil {
		return nil
	}
	faults := make(map[Key]config.Fault)
	var faulty []Key // in the order of the source
	for _, f := range p.Faults {
		k := Key{f.Kind, f.Name}
		if _, known := faults[k]; !known && k.Name != "" {
			faults[k] = f
			faulty = append(faulty, k)
		}
	}
	serving := make(map[string]Endpoint, len(endpoints)) // by replica
	for _, e := range endpoints {
		serving[e.Replica] = e
	}
	for _, e := range endpoints {
		if e.Moves != "" && e.Membership == Healthy && serving[e.Moves].Membership != Healthy {
			serving[e.Moves] = e // it still takes requests where it was
		}
	}
	var all []Object
	known := make(map[Key]bool)
	add := func(o Object, more ...ObjectCondition) {
		known[o.Key] = true
		a := acceptance(o, faults, refusals)
		if g := p.Observed[desired.Ref(o.Key)]; g > 0 && !a.Status {
			a.Observed = g
		}
		o.Conditions = append([]ObjectCondition{a}, more...)
		all = append(all, o)
	}
	for _, m := range p.State.Models {
		o := Object{Key: Key{m.Kind, m.Name}, Generation: m.Generation}
		o.Replicas = snap.Replicas(m)
		r, pr := judgeModel(&o, serving, snap)
		more := []ObjectCondition{r, pr}
		sc, scaled := snap.Scaled[m.Name]
		if len(o.Replicas) == 0 {
			if more[0] = judgeServed(o, endpoints); scaled && sc.Min == 0 {
				more[0] = ObjectCondition{Type: readyType, Status: true, Reason: wire.Asleep, Message: sc.Reason, Observed: o.Generation}
			}
		}
		if scaled {
			o.Scaled = &sc
			more = append(more, sc.condition(o.Generation))
		}
		add(o, more...)
	}
	for _, e := range p.State.Endpoints {
		o := Object{Key: Key{e.Kind, e.Name}, Generation: e.Generation}
		add(o, judgeEndpoints(o, endpoints))
	}
	policy := p.State.Policy
	add(Object{Key: Key{policy.Kind, policy.Name}, Generation: policy.Generation},
		ObjectCondition{Type: readyType, Status: true, Reason: "InForce", Observed: policy.Generation})
	for _, k := range faulty {
		if !known[k] {
			add(Object{Key: k})
		}
	}
	enter(all, before, now)
	return all
}

// acceptance states whether an object's content passes all rules.
func acceptance(o Object, faults map[Key]config.Fault, refusals map[Key]string) ObjectCondition {
	c := ObjectCondition{Type: accepted, Status: true, Reason: "InForce", Observed: o.Generation}
	if f, ok := faults[o.Key]; ok {
		c.Status, c.Reason, c.Message, c.Field, c.Observed = false, refusedReason, f.Error(), f.Path, o.Generation+1
	} else if why := refusals[o.Key]; why != "" {
		c.Status, c.Reason, c.Message = false, "PushRefused", why
	}
	return c
}

// judgeModel states whether a model's replicas take requests, and whether they are
// being brought to what is desired.
func judgeModel(o *Object, serving map[string]Endpoint, snap *Snapshot) (r, p ObjectCondition) {
	r = ObjectCondition{Type: readyType, Status: true, Reason: "AllReplicasReady", Observed: o.Generation}
	p = ObjectCondition{Type: progressing, Reason: "AsDesired", Observed: o.Generation}
	var down []string
	for _, name := range o.Replicas {
		e, placed := serving[name]
		i := slices.IndexFunc(snap.Unplaced, func(u Unplaced) bool { return u.Asleep && u.Replica == name })
		if placed && e.Membership == Healthy {
			o.Ready++
		} else if i >= 0 {
			r.Reason, r.Message = wire.Asleep, name+": "+snap.Unplaced[i].Why
			continue
		} else {
			down = append(down, name)
		}
		switch why := snap.Waits[name]; {
		case p.Reason == refusedReason: // that stays what is shown
		case strings.HasPrefix(why, refusedBy):
			p.Status, p.Reason, p.Message = false, refusedReason, name+": "+why
			p.Field, _, _ = strings.Cut(strings.TrimPrefix(why, refusedBy), ": ")
		case why != "":
			p.Status, p.Reason, p.Message = true, "RollingOut", name+": "+why
		case !placed:
			p.Status, p.Reason, p.Message = true, "Starting", name+": its nodes have not reported yet"
		case e.State == notReady && p.Message == "":
			p.Status, p.Reason, p.Message = true, "Starting", name+": "+e.Reason
		}
	}
	if len(down) > 0 {
		r.Status, r.Reason = false, "ReplicasNotReady"
		r.Message = fmt.Sprintf("%d of %d replicas take requests; not %s", o.Ready, len(o.Replicas), strings.Join(down, ", "))
	}
	return r, p
}

// refusedReason is that of an object that has a fault, or that an engine refuses.
const refusedReason = "Refused"

// refusedBy begins what is waited for where an engine refuses.
const refusedBy = "its engine refuses it: "

// ObjectConditions returns what of the source is not in force, and which objects are not
// ready: xds itself is as ready as ever.
func (s *Snapshot) ObjectConditions() []obs.Condition {
	all := s.refused()
	for _, o := range s.Objects {
		for _, c := range o.Conditions {
			if c.Type == progressing || c.Status || c.Reason == refusedReason {
				continue
			}
			all = append(all, obs.Condition{
				Code: "object-not-" + strings.ToLower(c.Type),
				Text: fmt.Sprintf("%s %s: %s: %s", o.Kind, o.Name, c.Reason, c.Message),
				Next: "see millrace status; correct the configuration, or start what it needs",
			})
		}
	}
	return all
}

// refused returns a condition for each fault of the source.
func (s *Snapshot) refused() []obs.Condition {
	var all []obs.Condition
	if s.Stale != "" {
		all = append(all, obs.Condition{
			Code: "desired-from-copy", Text: "the saved copy of the configuration is in force: " + s.Stale,
			Next: "check that the API server runs; changes are read as soon as it answers",
		})
	}
	for _, f := range s.Faults {
		all = append(all, obs.Condition{
			Code: wire.ConfigRefused, Text: f.Error(),
			Next: "correct it; the previous configuration stays in force meanwhile",
		})
	}
	return all
}

// enter finds out since when each statement holds.
func enter(all, before []Object, now time.Time) {
	type entry struct {
		Key
		typ string
	}
	since := make(map[entry]ObjectCondition)
	for _, o := range before {
		for _, c := range o.Conditions {
			since[entry{o.Key, c.Type}] = c
		}
	}
	for i, o := range all {
		for j := range o.Conditions {
			c := &all[i].Conditions[j]
			c.Since = now
			if old, ok := since[entry{o.Key, c.Type}]; ok && old.Status == c.Status {
				c.Since = old.Since
			}
		}
	}
}

// served returns whether a request for the model is answered: by a replica, or by one that is
// started for it.
func (o Object) served() bool {
	return o.Ready > 0 || slices.ContainsFunc(o.Conditions, func(c ObjectCondition) bool { return c.Type == readyType && c.Status })
}

// view returns an object for people.
func (o Object) view() *fleetpb.ObjectView {
	v := &fleetpb.ObjectView{
		Kind: o.Kind, Name: o.Name, Generation: o.Generation, Replicas: o.Replicas, ReadyReplicas: uint32(o.Ready), Layout: o.Layout,
	}
	if o.Scaled != nil {
		v.Scaling = o.Scaled.view()
	}
	for _, c := range o.Conditions {
		v.Conditions = append(v.Conditions, &fleetpb.ObjectCondition{
			Type: c.Type, Status: c.Status, Reason: c.Reason, Message: c.Message, Field: c.Field,
			ObservedGeneration: c.Observed, Since: timestamppb.New(c.Since),
		})
	}
	return v
}
