package status

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"millrace.dev/millrace/internal/state"
	"millrace.dev/millrace/xds/fleetpb"
)

// Object is one object of the configuration.
type Object struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Generation is the version of the content in force; 0: none is.
	Generation int64 `json:"generation"`
	// Replicas of a model, and how many of them take requests.
	Replicas      []string `json:"replicas,omitempty"`
	ReadyReplicas int      `json:"ready_replicas"`
	// Layout is how a model lies on the nodes, and why, or what is missing; empty: its layout
	// is not planned.
	Layout string `json:"layout,omitempty"`
	// Scaling is how the number of its replicas follows demand; nil: it does not.
	Scaling *Scaling `json:"scaling,omitempty"`
	// Conditions in the order Accepted, Ready, Progressing, Scaled.
	Conditions []ObjectCondition `json:"conditions"`
}

// ObjectCondition is one statement about an object, in Kubernetes' sense.
type ObjectCondition struct {
	// Type is Accepted, Ready, Progressing or Scaled, Status whether it is so.
	Type   string `json:"type"`
	Status bool   `json:"status"`
	// Reason is one word, Message is for a person, Field the path of what is wrong.
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
	Field   string `json:"field,omitempty"`
	// ObservedGeneration is the version that it is about.
	ObservedGeneration int64 `json:"observed_generation"`
	// Since is when Status was entered; zero: not known.
	Since time.Time `json:"since"`
}

// objects returns those of the configuration in force, and what of the user's file is
// not in force because it has faults.
func objects(s state.State, view *fleetpb.FleetView) []Object {
	all := []Object{}
	for _, o := range view.GetObjects() {
		one := Object{
			Kind: o.GetKind(), Name: o.GetName(), Generation: o.GetGeneration(),
			Replicas: o.GetReplicas(), ReadyReplicas: int(o.GetReadyReplicas()), Layout: o.GetLayout(), Scaling: scalingOf(o.GetScaling()),
		}
		for _, c := range o.GetConditions() {
			one.Conditions = append(one.Conditions, ObjectCondition{
				Type: c.GetType(), Status: c.GetStatus(), Reason: c.GetReason(), Message: c.GetMessage(), Field: c.GetField(),
				ObservedGeneration: c.GetObservedGeneration(), Since: c.GetSince().AsTime(),
			})
		}
		all = append(all, one)
	}
	for _, f := range s.Faults {
		if f.Name != "" {
			all = refuse(all, f)
		}
	}
	return all
}

// refuse makes an object not accepted, by the first of its faults.
func refuse(all []Object, f state.Fault) []Object {
	i := slices.IndexFunc(all, func(o Object) bool { return o.Kind == f.Kind && o.Name == f.Name })
	if i < 0 {
		all = append(all, Object{Kind: f.Kind, Name: f.Name, Conditions: []ObjectCondition{{Type: accepted, Status: true}}})
		i = len(all) - 1
	}
	for k := range all[i].Conditions {
		if c := &all[i].Conditions[k]; c.Type == accepted && c.Status {
			*c = ObjectCondition{
				Type: accepted, Reason: "Refused", Message: f.Text, Field: f.Field, ObservedGeneration: all[i].Generation + 1,
			}
		}
	}
	return all
}

// Types of conditions.
const (
	accepted    = "Accepted"
	progressing = "Progressing"
)

// well reports whether there is nothing to show about an object.
func (o Object) well() bool {
	return !slices.ContainsFunc(o.Conditions, func(c ObjectCondition) bool { return c.Status == (c.Type == progressing) || c.Reason == "Refused" })
}

// configuration shows the objects that are not all well.
func configuration(all []Object, now time.Time) table {
	t := table{{"OBJECT", "ACCEPTED", "READY", "PROGRESSING", "FOR", "WHY"}}
	for _, o := range all {
		words := map[string]string{}
		why, entered := "", time.Time{}
		for _, c := range o.Conditions {
			words[c.Type] = map[bool]string{true: "yes", false: "no"}[c.Status]
			if c.Message != "" && why == "" {
				why, entered = c.Reason+": "+c.Message, c.Since
			}
		}
		t = append(t, []string{
			o.Kind + "/" + o.Name, cmp.Or(words[accepted], "-"), cmp.Or(words["Ready"], "-"), cmp.Or(words[progressing], "-"),
			since(entered, now), why,
		})
	}
	return t
}

// layouts shows the models whose layouts are planned, and why they are so.
func layouts(all []Object) table {
	t := table{{"MODEL", "READY", "LAYOUT"}}
	for _, o := range all {
		if o.Layout != "" {
			t = append(t, []string{o.Name, fmt.Sprintf("%d of %d", o.ReadyReplicas, len(o.Replicas)), o.Layout})
		}
	}
	return t
}
