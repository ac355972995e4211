// Package kubeapi is Millrace's objects as Kubernetes serves them: Model, Policy and
// Endpoints of group millrace.dev, with the specs of package config and what only a
// cluster has: metadata, defaults of the API server, and a status. It is for what
// speaks to an API server.
//
// Its one rule: a spec is config's own type, so that a file of `millrace up` applies to
// a cluster unchanged.
package kubeapi

import "k8s.io/apimachinery/pkg/runtime/schema"

// GroupVersion is that of all objects.
var GroupVersion = schema.GroupVersion{Group: "millrace.dev", Version: "v1alpha1"}
