package kubeapi

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"millrace.dev/millrace/internal/config"
)

// Endpoints is engines that are run by somebody else, by address; xds probes them. They
// serve a model beside its replicas, or alone. Its resource is foreignendpoints, as
// Kubernetes has endpoints of its own.
//
// +kubebuilder:object:root=true
// +kubebuilder:storageversion
// +kubebuilder:resource:path=foreignendpoints,singular=foreignendpoint,shortName=fep,categories=millrace
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name=Ready,type=string,JSONPath=`.status.ready`,description="Endpoints that serve, of those named."
// +kubebuilder:printcolumn:name=Status,type=string,JSONPath=`.status.reason`,description="The reason of the condition that matters most."
// +kubebuilder:printcolumn:name=Age,type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name=Message,type=string,priority=1,JSONPath=`.status.message`,description="What to know, and what to do."
// +millrace:rule:holds="self.metadata.name.size() <= 63",shows="metadata.name: {strings.quote(self.metadata.name.size() > 80 ? self.metadata.name.substring(0, 80) : self.metadata.name)}",words=`must be 1 to 63 lower-case letters, digits, "-" or "."`
// +millrace:rule:at=spec.endpoints,missing=true,holds="has(self.spec) && has(self.spec.endpoints) && self.spec.endpoints.size() > 0",words="missing; must be a list with at least one entry"
type Endpoints struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is who they are.
	// +optional
	Spec config.EndpointsSpec `json:"spec,omitempty"`
	// Status is how many of them serve; xds writes it.
	// +optional
	Status EndpointsStatus `json:"status,omitempty"`
}

// EndpointsStatus is the observed state of Endpoints. Only the leading xds writes it.
type EndpointsStatus struct {
	Summary `json:",inline"`
	// Ready is "READY/NAMED" endpoints, such as "3/4".
	// +optional
	Ready string `json:"ready,omitempty"`
}

// EndpointsList is all Endpoints of a namespace.
//
// +kubebuilder:object:root=true
type EndpointsList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Endpoints `json:"items"`
}
