//go:build kube

package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// istioPolicy is a policy that has gateways and sidecars route to the engines.
const istioPolicy = `apiVersion: millrace.dev/v1alpha1
kind: Policy
metadata: {name: default}
spec:
  explain: true
  istio: %s
`

// istioGateway is a gateway of Kubernetes that Istio deploys.
const istioGateway = `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: public}
spec:
  gatewayClassName: istio
  listeners: [{name: http, port: 80, protocol: HTTP}]
`

// throttled is what is left of a clock, in percent.
const throttled = 25

// istioKinds are the kinds of what xds writes for Istio.
const istioKinds = "serviceentries,workloadentries,destinationrules,virtualservices,envoyfilters,httproutes,inferencepools"

// TestIstio has Istio's own Envoys route to the engines: a gateway, and the sidecar of a
// client; by extproc, and by weight when there is none. The nodes have GPUs, of which one
// is throttled.
func TestIstio(t *testing.T) {
	const ns = "meshed"
	gpus := newFakeGPUs(t)
	front := install(t, ns, append(gpus.values(), "istio.enabled=true", "engine.plainText=true", "networkPolicy.enabled=false")...) + rig.ChatPath
	apply(t, in(ns, istioGateway))
	apply(t, in(ns, fmt.Sprintf(istioPolicy, `{gateways: [{name: public}], sidecars: {enabled: true}}`)))
	rig.Wait(t, backLimit, "a WorkloadEntry of each engine", func() error {
		out, err := kube.Kubectl(t.Context(), "get", "workloadentries", "-n", ns, "-o", "name")
		if n := strings.Count(out, "workloadentry"); err == nil && n != 2 {
			err = fmt.Errorf("%d entries", n)
		}
		return err
	})
	if got := kubectl(t, "get", "policy", "default", "-n", ns, "-o", `jsonpath={.status.conditions[?(@.type=="Degraded")].status}`); got == "True" {
		t.Error(kubectl(t, "get", "policy", "default", "-n", ns, "-o", "jsonpath={.status.conditions}"))
	}
	rig.Wait(t, backLimit, "the gateway runs", func() error {
		_, err := kube.Kubectl(t.Context(), "rollout", "status", "deployment/public-istio", "-n", ns, "--timeout=5s")
		return err
	})
	gateway, err := kube.Forward("127.0.0.1:0", "public-istio."+ns+":80")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + gateway + rig.ChatPath
	t.Run("gateway asks extproc", func(t *testing.T) {
		rig.Wait(t, backLimit, "an answer that extproc has explained", func() error { return explained(t, url) })
	})
	t.Run("sidecar", func(t *testing.T) { chatBySidecar(t, ns) })
	t.Run("edits are undone", func(t *testing.T) { undoneEdit(t, ns) })
	w := newWeighed(t, ns, gpus)
	t.Run("weights follow GPUs", w.weightsFollow)
	t.Run("a throttled node loses its share", func(t *testing.T) {
		w.throttle(t, throttled)
		// One client: while the other node is free nothing speaks for this one.
		if got := w.share(t, front, 40, 1, number); got > 0.25 {
			t.Errorf("with a quarter of its clock it gets %.0f %% of the requests", 100*got)
		}
	})
	t.Run("without extproc", func(t *testing.T) {
		kubectl(t, "scale", "deployment/millrace-extproc", "-n", ns, "--replicas=0")
		rig.Wait(t, backLimit, "no extproc", func() error {
			out, err := kube.Kubectl(t.Context(), "get", "pods", "-n", ns, "-l", "app.kubernetes.io/component=extproc", "-o", "name")
			if err == nil && out != "" {
				err = errors.New(out)
			}
			return err
		})
		for name, url := range map[string]string{"our gateway": front, "Istio's gateway": url} {
			const want, off = throttled / (100.0 + throttled), 0.05
			if got := w.share(t, url, 1000, 4, same); got < want-off || got > want+off {
				t.Errorf("through %s the throttled node gets %.1f %% of the requests, by its weight it is %.1f %%", name, 100*got, 100*want)
			}
		}
	})
	t.Run("nothing is left", func(t *testing.T) {
		apply(t, in(ns, fmt.Sprintf(istioPolicy, `{}`)))
		rig.Wait(t, backLimit, "none of our objects is left", func() error {
			out, err := kube.Kubectl(t.Context(), "get", istioKinds, "-n", ns, "-l", "app.kubernetes.io/managed-by=millrace", "-o", "name")
			if err == nil && out != "" {
				err = errors.New(out)
			}
			return err
		})
	})
}

// explained reports whether a request is answered, and extproc was asked.
func explained(t *testing.T, url string) error {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	a, err := rig.Post(ctx, url, rig.ShortQuestions(0, 0), "x-millrace-debug", "1")
	switch {
	case err != nil:
		return err
	case a.Status != 200:
		return fmt.Errorf("%d %s", a.Status, a.Body)
	case a.Header.Get("x-millrace-decision") == "":
		return errors.New("extproc was not asked")
	}
	return nil
}

// undoneEdit changes the weight of an endpoint by hand, which xds undoes.
func undoneEdit(t *testing.T, ns string) {
	name := strings.Fields(kubectl(t, "get", "workloadentries", "-n", ns, "-o", "name"))[0]
	before := kubectl(t, "get", name, "-n", ns, "-o", "jsonpath={.spec}")
	kubectl(t, "patch", name, "-n", ns, "--type=merge", "-p", `{"spec":{"weight":7000,"network":"elsewhere"}}`)
	rig.Wait(t, 20*time.Second, "the endpoint is as it was", func() error {
		now, err := kube.Kubectl(t.Context(), "get", name, "-n", ns, "-o", "jsonpath={.spec}")
		if err == nil && now != before {
			err = errors.New(now)
		}
		return err
	})
}

// sidecarConfig is what a stock Envoy beside a client is started with.
const sidecarConfig = `{"node": {"id": "sidecar~${POD_IP}~client.${NS}~${NS}.svc.cluster.local", "cluster": "client.${NS}",
  "metadata": {"NAME": "client", "NAMESPACE": "${NS}", "CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": "1.31.0", "INTERCEPTION_MODE": "NONE", "SERVICE_ACCOUNT": "default", "LABELS": {"app": "client"}}},
 "admin": {"address": {"socket_address": {"address": "0.0.0.0", "port_value": 15000}}},
 "dynamic_resources": {"ads_config": {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"},
   "initial_metadata": [{"key": "authorization", "value": "Bearer ${file:/var/run/istio/token}"}]}]},
   "cds_config": {"ads": {}, "resource_api_version": "V3"}, "lds_config": {"ads": {}, "resource_api_version": "V3"}},
 "static_resources": {"clusters": [{"name": "xds-grpc", "type": "STATIC", "connect_timeout": "2s",
   "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
     "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}},
   "load_assignment": {"cluster_name": "xds-grpc", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "ISTIOD", "port_value": 15010}}}}]}]}}]}}`

// chatBySidecar has a Pod chat whose sidecar is a stock Envoy: it calls our gateway's
// Service, which its hosts file has on loopback, where the sidecar listens.
func chatBySidecar(t *testing.T, ns string) {
	istiod := kubectl(t, "get", "service", "istiod", "-n", "istio-system", "-o", "jsonpath={.spec.clusterIP}")
	text, err := json.Marshal(strings.ReplaceAll(sidecarConfig, "ISTIOD", istiod))
	if err != nil {
		t.Fatal(err)
	}
	front := "millrace-gateway." + ns + ".svc.cluster.local"
	image := kubectl(t, "get", "deployment", "millrace-gateway", "-n", ns, "-o", "jsonpath={.spec.template.spec.containers[0].image}")
	apply(t, in(ns, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  restartPolicy: Never
  hostAliases: [{ip: 127.0.0.1, hostnames: [%[1]s]}]
  initContainers:
  - name: sidecar
    image: millrace.test/envoy:1
    imagePullPolicy: Never
    restartPolicy: Always
    args: [%[2]s]
    env:
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NS, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    startupProbe: {httpGet: {path: /ready, port: 15000}, periodSeconds: 1, failureThreshold: 60}
    volumeMounts: [{name: token, mountPath: /var/run/istio}]
  containers:
  - name: chat
    image: %[3]s
    imagePullPolicy: IfNotPresent
    args: [chat, -ask, Say hello., -wait, 60s, -url, "http://%[1]s"]
  volumes: [{name: token, projected: {sources: [{serviceAccountToken: {audience: istio-ca, path: token, expirationSeconds: 43200}}]}}]
`, front, text, image)))
	t.Cleanup(func() {
		_, _ = kube.Kubectl(context.WithoutCancel(t.Context()), "delete", "pod", "client", "-n", ns, "--now", "--wait=false")
	})
	rig.Wait(t, backLimit, "the client has its answer", func() error {
		phase, err := kube.Kubectl(t.Context(), "get", "pod", "client", "-n", ns, "-o", "jsonpath={.status.phase}")
		switch {
		case err != nil:
			return err
		case phase == "Failed":
			return rig.Final(errors.New(kubectl(t, "logs", "client", "-n", ns, "-c", "chat")))
		case phase != "Succeeded":
			return errors.New(phase)
		}
		return nil
	})
}
