package kubeapi

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"millrace.dev/millrace/internal/config"
)

// Model is one model that the fleet serves: which weights it has, how its inference
// engine is run, and how many copies of it lie where. Its name is the model's id in
// the API.
//
// +kubebuilder:object:root=true
// +kubebuilder:storageversion
// +kubebuilder:resource:path=models,singular=model,shortName=mdl,categories=millrace
// +kubebuilder:subresource:status
// +kubebuilder:subresource:scale:specpath=.spec.replicas,statuspath=.status.replicas,selectorpath=.status.selector
// +kubebuilder:printcolumn:name=Ready,type=string,JSONPath=`.status.ready`,description="Replicas that serve, of those desired."
// +kubebuilder:printcolumn:name=Backend,type=string,JSONPath=`.spec.backend.kind`,description="The inference engine."
// +kubebuilder:printcolumn:name=Nodes,type=string,JSONPath=`.status.nodes`,description="Where its replicas lie."
// +kubebuilder:printcolumn:name=Status,type=string,JSONPath=`.status.reason`,description="The reason of the condition that matters most."
// +kubebuilder:printcolumn:name=Age,type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name=Message,type=string,priority=1,JSONPath=`.status.message`,description="What to know, and what to do."
// +millrace:rule:holds="self.metadata.name.size() <= 63",shows="metadata.name: {strings.quote(self.metadata.name.size() > 80 ? self.metadata.name.substring(0, 80) : self.metadata.name)}",words=`must be 1 to 63 lower-case letters, digits, "-" or "."`
// +millrace:rule:at=spec.weights,missing=true,when="self.spec.backend.kind == 'llamacpp' && self.metadata.name != 'smollm2' && !(has(self.spec.replicas) && self.spec.replicas == 0)",holds="has(self.spec.weights) && self.spec.weights.size() > 0",words="missing; must be the path of a GGUF file (only smollm2 can do without)"
// +millrace:rule:at=spec.weights,missing=true,when="self.spec.backend.kind == 'vllm' && !(has(self.spec.replicas) && self.spec.replicas == 0)",holds="has(self.spec.weights) && self.spec.weights.size() > 0",words="missing; must be the path of a folder with the model"
type Model struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is the desired state.
	// +optional
	// +kubebuilder:default={}
	Spec config.ModelSpec `json:"spec,omitempty"`
	// Status is the observed state; xds writes it.
	// +optional
	Status ModelStatus `json:"status,omitempty"`
}

// ModelStatus is the observed state of a Model. Only the leading xds writes it.
type ModelStatus struct {
	Summary `json:",inline"`
	// Ready is "READY/DESIRED" replicas, such as "1/2".
	// +optional
	Ready string `json:"ready,omitempty"`
	// Replicas is how many replicas serve or are being started.
	// +optional
	Replicas int32 `json:"replicas"`
	// ReadyReplicas is how many replicas serve.
	// +optional
	ReadyReplicas int32 `json:"readyReplicas"`
	// Selector selects the engine Pods that serve the model, for what scales it:
	// "serves.millrace.dev/MODEL=true".
	// +optional
	Selector string `json:"selector,omitempty"`
	// Nodes are the nodes of all rows, each once, such as "node-a,node-b".
	// +optional
	Nodes string `json:"nodes,omitempty"`
	// Rows are the replicas of the model. Its foreign endpoints are counted in theirs.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=1024
	Rows []Row `json:"rows,omitempty"`
	// Address is the URL of the API that serves the model.
	// +optional
	Address string `json:"address,omitempty"`
}

// Row is one replica of a model.
type Row struct {
	// Name of the replica: the model's name, "-" and its number from 0.
	Name string `json:"name"`
	// Nodes is where the replica lies, one a stage.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Nodes []string `json:"nodes,omitempty"`
	// State is "Ready", "Starting", "Draining", "Ejected", "Failed" or "Unplaced".
	State string `json:"state"`
	// Reason is why it is not ready; empty: it is.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Weight is its share of the model's requests, in percent.
	// +optional
	Weight int32 `json:"weight"`
	// Since is when it came into this state.
	// +optional
	Since metav1.Time `json:"since,omitzero"`
}

// States of a Row.
const (
	StateReady    = "Ready"
	StateStarting = "Starting"
	StateDraining = "Draining"
	StateEjected  = "Ejected"
	StateFailed   = "Failed"
	StateUnplaced = "Unplaced"
)

// ModelList is all Models of a namespace.
//
// +kubebuilder:object:root=true
type ModelList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Model `json:"items"`
}
