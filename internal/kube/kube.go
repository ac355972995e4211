// Package kube is how the programs reach the API server of Kubernetes.
//
// Called by the edges that talk to it. Its one rule: in a Pod it takes the Pod's own
// ServiceAccount, elsewhere what kubectl would take.
package kube

import (
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Config returns where the API server is and as whom it is asked: by $KUBECONFIG or
// the user's own file, else as the Pod in which the program runs.
func Config() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{}).ClientConfig()
}
