package kubeapi

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"millrace.dev/millrace/internal/config"
)

// Policy is the rules for requests: sessions, retries, priorities, limits, rewrites and
// what happens when all is busy. An installation has one, named "default".
//
// +kubebuilder:object:root=true
// +kubebuilder:storageversion
// +kubebuilder:resource:path=policies,singular=policy,shortName=mpol,categories=millrace
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name=Sessions,type=string,JSONPath=`.spec.sessions.header`,description="The header that names a conversation."
// +kubebuilder:printcolumn:name=Queue,type=integer,JSONPath=`.spec.flow.queue`,description="Requests of one model that may wait."
// +kubebuilder:printcolumn:name=Timeout,type=string,JSONPath=`.spec.limits.requestTimeout`,description="How long a request may take."
// +kubebuilder:printcolumn:name=Status,type=string,JSONPath=`.status.reason`,description="The reason of the condition that matters most."
// +kubebuilder:printcolumn:name=Age,type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name=Message,type=string,priority=1,JSONPath=`.status.message`,description="What to know, and what to do."
// +millrace:rule:holds="self.metadata.name == 'default'",shows="metadata.name: {strings.quote(self.metadata.name.size() > 80 ? self.metadata.name.substring(0, 80) : self.metadata.name)}",words=`must be "default"`
type Policy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is the rules.
	// +optional
	// +kubebuilder:default={}
	Spec config.PolicySpec `json:"spec,omitempty"`
	// Status is whether the rules are in force; xds writes it.
	// +optional
	Status PolicyStatus `json:"status,omitempty"`
}

// PolicyStatus is the observed state of a Policy. Only the leading xds writes it.
type PolicyStatus struct {
	Summary `json:",inline"`
}

// PolicyList is all Policies of a namespace.
//
// +kubebuilder:object:root=true
type PolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Policy `json:"items"`
}
