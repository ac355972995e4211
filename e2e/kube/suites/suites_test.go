// Package suites runs the conformance suites of Gateway API and of its inference
// extension against a cluster.
//
// Run by e2e/kubernetes, as a binary that e2e/cluster builds. A module of its own: the
// inference extension that it requires is newer than the one that Istio requires.
package suites

import (
	"testing"

	"sigs.k8s.io/gateway-api-inference-extension/conformance"
	gateway "sigs.k8s.io/gateway-api/conformance"
)

func TestInferenceExtension(t *testing.T) { conformance.RunConformance(t) }

func TestGatewayAPI(t *testing.T) { gateway.RunConformance(t) }
