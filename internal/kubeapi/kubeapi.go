// Package kubeapi is Millrace's objects as Kubernetes serves them: Model, Policy and
// Endpoints of group millrace.dev, with the specs of package config and what only a
// cluster has: metadata, defaults of the API server, and a status. It is for what
// speaks to an API server. The CRDs in manifests/crds are generated from it.
//
// Its one rule: a spec is config's own type, so that a file of `millrace up` applies to
// a cluster unchanged.
//
// +kubebuilder:object:generate=true
// +groupName=millrace.dev
// +versionName=v1alpha1
package kubeapi

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is that of all objects.
var GroupVersion = schema.GroupVersion{Group: "millrace.dev", Version: "v1alpha1"}

// Resources are the names under which an API server serves the objects, by kind.
var Resources = map[string]string{"Model": "models", "Policy": "policies", "Endpoints": "foreignendpoints"}

// AddToScheme adds all objects to a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &Model{}, &ModelList{}, &Policy{}, &PolicyList{}, &Endpoints{}, &EndpointsList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// Types of conditions.
const (
	// Accepted is whether the object in its generation has no fault. Without one the
	// content that it last had without a fault stays in force.
	Accepted = "Accepted"
	// Planned is whether each desired replica has its nodes.
	Planned = "Planned"
	// Ready is whether requests are served: a model's by at least one replica or endpoint.
	Ready = "Ready"
	// Progressing is whether something is on its way: a replica starts, moves or drains.
	Progressing = "Progressing"
	// Degraded is whether less is served than desired, though nothing is on its way.
	Degraded = "Degraded"
)

// Reasons of conditions.
const (
	// ReasonValid is of Accepted: there is no fault.
	ReasonValid = "Valid"
	// ReasonInvalid is of Accepted, false: a rule of the object itself is broken.
	ReasonInvalid = "Invalid"
	// ReasonConflict is of Accepted, false: an older object has what only one may have.
	ReasonConflict = "Conflict"
	// ReasonMissing is of Accepted, false: it names a model that there is not.
	ReasonMissing = "MissingModel"
	// ReasonPlaced is of Planned: each replica has its nodes.
	ReasonPlaced = "Placed"
	// ReasonUnplaced is of Planned, false: the message says what nodes are missing.
	ReasonUnplaced = "Unplaced"
	// ReasonAllReady is of Ready: everything desired serves.
	ReasonAllReady = "AllReady"
	// ReasonSomeReady is of Ready and Degraded: requests are served, by less than desired.
	ReasonSomeReady = "SomeReady"
	// ReasonNoneReady is of Ready, false, and Degraded: nothing serves.
	ReasonNoneReady = "NoneReady"
	// ReasonStarting is of Ready, false, and Progressing: replicas load.
	ReasonStarting = "Starting"
	// ReasonDraining is of Progressing: replicas end what is in flight.
	ReasonDraining = "Draining"
	// ReasonStable is of Progressing, false: nothing is on its way.
	ReasonStable = "Stable"
	// ReasonFailed is of Degraded: a replica does not start, or an endpoint does not answer.
	ReasonFailed = "Failed"
	// ReasonAsDesired is of Degraded, false: nothing is missing.
	ReasonAsDesired = "AsDesired"
	// ReasonFromCopy is of Accepted, unknown: the API server can't be reached, the copy of
	// the last desired state is in force.
	ReasonFromCopy = "DesiredFromCopy"
)

// Summary is what the status of every object has.
type Summary struct {
	// ObservedGeneration is the metadata.generation that the conditions are about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Conditions by type: Accepted and Ready; of a Model also Planned, Progressing and
	// Degraded.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// InForce is what is in force instead of the spec, while that is refused: the content
	// that the object last had without a fault.
	// +optional
	InForce *InForce `json:"inForce,omitempty"`
	// Reason is that of the condition that matters most.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Message is that of the condition that matters most.
	// +optional
	Message string `json:"message,omitempty"`
}

// InForce is content that an object had before.
type InForce struct {
	// Generation is the metadata.generation that had it.
	Generation int64 `json:"generation"`
	// Spec is the content.
	// +kubebuilder:pruning:PreserveUnknownFields
	Spec runtime.RawExtension `json:"spec"`
}
