//go:build kube

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/cluster"
	"millrace.dev/millrace/e2e/rig"
)

// meshed is the namespace of the installation whose engines Istio's Envoys reach;
// meshedClients that of a client with a sidecar.
const meshed, meshedClients = "meshed", "meshed-clients"

// istioPolicy has gateways and sidecars route to the engines.
const istioPolicy = `apiVersion: millrace.dev/v1alpha1
kind: Policy
metadata: {name: default}
spec:
  explain: true
  istio: %s
`

// istioEverywhere is for gateways of both modes, and for sidecars.
const istioEverywhere = `{tls: %s, gateways: [{name: public}, {name: pools, mode: InferencePool}], sidecars: {enabled: true, namespaces: [` + meshedClients + `]}}`

// istioGateway is a gateway of Kubernetes that Istio deploys.
const istioGateway = `---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: %s}
spec:
  gatewayClassName: istio
  listeners: [{name: http, port: 80, protocol: HTTP}]
`

// throttled is what is left of a clock, in percent.
const throttled = 25

// ownPicker are the values of a picker for a pool that somebody has made of the engines.
const ownPicker = `
mode: picker
istio: {enabled: true}
extproc: {replicas: 1} # with two, conversations moved on a busy machine, though they tell each other
picker:
  pools: [{name: own}]
  create: {enabled: true, selector: {serves.millrace.dev/smollm2: "true"}}
  config: |
    apiVersion: millrace.dev/v1alpha1
    kind: Policy
    metadata: {name: default}
    spec: {explain: true}
`

// ownRoute sends the requests of a gateway to that pool.
const ownRoute = `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: own}
spec:
  parentRefs: [{name: own}]
  rules: [{backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: own}]}]
`

// istioKinds are the kinds of what xds writes for Istio.
const istioKinds = "serviceentries,workloadentries,destinationrules,virtualservices,envoyfilters,httproutes,inferencepools"

// TestIstio reaches the engines of one installation by every path there is: our own Envoy,
// Istio's gateways and the sidecar of a client; by extproc, and by weight when there is
// none; in plain text, and by Istio's mutual TLS. The nodes have GPUs, of which one is
// throttled for a while. xds then takes back what it wrote, and has used every right that it
// has for that.
func TestIstio(t *testing.T) {
	namespace(t, meshedClients)
	gpus := newFakeGPUs(t)
	own := install(t, meshed, append(gpus.values(), "istio.enabled=true", "istio.namespaces={"+meshedClients+"}", "engine.plainText=true", "networkPolicy.enabled=false")...)
	for _, name := range []string{"public", "pools", "own"} {
		apply(t, in(meshed, fmt.Sprintf(istioGateway, name)))
	}
	apply(t, in(meshed, fmt.Sprintf(istioPolicy, fmt.Sprintf(istioEverywhere, "None"))))
	installOwnPicker(t, meshed)
	rig.Wait(t, backLimit, "a WorkloadEntry of each engine", func() error {
		out, err := kube.Kubectl(t.Context(), "get", "workloadentries", "-n", meshed, "-o", "name")
		if n := strings.Count(out, "workloadentry"); err == nil && n != 2 {
			err = fmt.Errorf("%d entries", n)
		}
		return err
	})
	if got := kubectl(t, "get", "policy", "default", "-n", meshed, "-o", `jsonpath={.status.conditions[?(@.type=="Degraded")].status}`); got == "True" {
		t.Error(kubectl(t, "get", "policy", "default", "-n", meshed, "-o", "jsonpath={.status.conditions}"))
	}
	startClient(t)
	sidecar := byPod(t, "a sidecar", meshedClients, "client", front)
	public := byService(t, "an EnvoyFilter", "public-istio."+meshed+":80")
	for _, w := range []way{
		byService(t, "our own Envoy", "millrace-gateway."+meshed+":80"),
		byService(t, "an InferencePool of ours", "pools-istio."+meshed+":80"),
		byService(t, "an InferencePool of somebody else", "own-istio."+meshed+":80"),
		public,
		sidecar,
	} {
		t.Run(w.name, w.carriesAll)
	}
	t.Run("a chat in the client's Pod", func(t *testing.T) {
		out := kubectl(t, "exec", "client", "-n", meshedClients, "-c", "chat", "--", "/usr/bin/millrace", "chat", "-ask", "Say hello.", "-url", "http://"+front)
		if strings.TrimSpace(out) == "" { // what it says is another thing each time
			t.Error("no answer, and no error")
		}
	})
	t.Run("edits are undone", func(t *testing.T) { undoneEdit(t, meshed) })
	t.Run("weights follow GPUs", func(t *testing.T) {
		weightsOfGPUs(t, newWeighed(t, meshed, gpus), map[string]string{"our gateway": own + rig.ChatPath, "Istio's gateway": public.url + rig.ChatPath})
	})
	t.Run("mutual TLS", func(t *testing.T) { mutualTLS(t, public, sidecar) })
	t.Run("nothing is left", nothingLeft)
	t.Run("rights", func(t *testing.T) { rightsUsed(t, meshed) })
}

// installOwnPicker installs a picker as users do who have a pool: a release of its own.
func installOwnPicker(t *testing.T, ns string) {
	t.Helper()
	values := rig.Write(t, filepath.Join(t.TempDir(), "values.yaml"), ownPicker)
	helm(t, "install", "picker", chart, "-n", ns, "-f", values)
	t.Cleanup(func() {
		if out, err := kube.Helm(context.WithoutCancel(t.Context()), "uninstall", "picker", "-n", ns); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	apply(t, in(ns, ownRoute))
}

// weightsOfGPUs throttles the GPU of a node, whose share of the requests follows: by extproc,
// and without it, by the weights that gateways have.
func weightsOfGPUs(t *testing.T, w *weighed, gateways map[string]string) {
	t.Run("soon", w.weightsFollow)
	w.throttle(t, throttled)
	t.Run("by extproc", func(t *testing.T) {
		// One client: while the other node is free nothing speaks for this one.
		if got := w.share(t, gateways["our gateway"], 40, 1, number); got > 0.25 {
			t.Errorf("with a quarter of its clock it gets %.0f %% of the requests", 100*got)
		}
	})
	t.Run("without extproc", func(t *testing.T) {
		kubectl(t, "scale", "deployment/millrace-extproc", "-n", meshed, "--replicas=0")
		rig.Wait(t, backLimit, "no extproc", func() error {
			out, err := kube.Kubectl(t.Context(), "get", "pods", "-n", meshed, "-l", "app.kubernetes.io/component=extproc,app.kubernetes.io/instance=millrace", "-o", "name")
			if err == nil && out != "" {
				err = errors.New(out)
			}
			return err
		})
		for name, url := range gateways {
			const want, off = throttled / (100.0 + throttled), 0.05
			if got := w.share(t, url, 1000, 4, same); got < want-off || got > want+off {
				t.Errorf("through %s the throttled node gets %.1f %% of the requests, by its weight it is %.1f %%", name, 100*got, 100*want)
			}
		}
	})
	w.throttle(t, 100)
}

// strict has all sidecars of the installation take nothing but mutual TLS.
const strict = `apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
`

// mutualTLS gives engines and extprocs sidecars, which take nothing but mutual TLS by
// certificates of istiod, and has Envoys of Istio reach them so.
func mutualTLS(t *testing.T, ways ...way) {
	apply(t, in(meshed, strict))
	addSidecar(t, "daemonset/millrace-engine", "engine")
	kubectl(t, "scale", "deployment/millrace-extproc", "-n", meshed, "--replicas=2")
	addSidecar(t, "deployment/millrace-extproc", "extproc")
	kubectl(t, "delete", "pods", "-n", meshed, "-l", "app.kubernetes.io/instance=millrace,app.kubernetes.io/component in (engine,extproc)")
	intercept(t, "engine", 8000)
	intercept(t, "extproc", 7204)
	ready(t, meshed, "smollm2", "2/2")
	if resp, err := kube.HTTP().Get("http://" + podsOf(t, meshed, "engine")[0].ip + ":8000/v1/models"); err == nil {
		_ = resp.Body.Close()
		t.Errorf("an engine answers without mutual TLS: %s", resp.Status)
	}
	apply(t, in(meshed, fmt.Sprintf(istioPolicy, fmt.Sprintf(istioEverywhere, "IstioMutual"))))
	for _, w := range ways {
		t.Run(w.name, w.carriesAll)
	}
}

// addSidecar does to a workload's Pods what Istio's injector does to all.
func addSidecar(t *testing.T, workload, component string) {
	t.Helper()
	container, volume := cluster.Sidecar("millrace-"+component, "REDIRECT", map[string]string{"app.kubernetes.io/component": component})
	kubectl(t, "patch", workload, "-n", meshed, "--type=json", "-p", fmt.Sprintf(`[
		{"op": "add", "path": "/spec/template/spec/initContainers/0", "value": %s},
		{"op": "add", "path": "/spec/template/spec/volumes/-", "value": %s}]`, container, volume))
}

// intercept has the connections to a port of a component's two Pods reach their sidecars,
// as Istio's own first container does.
func intercept(t *testing.T, component string, port int) {
	t.Helper()
	rig.Wait(t, backLimit, "sidecars of "+component, func() error {
		out, err := kube.Kubectl(t.Context(), "get", "pods", "-n", meshed, "-l", "app.kubernetes.io/instance=millrace,app.kubernetes.io/component="+component,
			"-o", `jsonpath={range .items[*]}{.metadata.deletionTimestamp}{.status.conditions[?(@.type=="Ready")].status} {.spec.initContainers[0].name}{"\n"}{end}`)
		if err == nil && out != "True istio-proxy\nTrue istio-proxy\n" {
			err = errors.New(out)
		}
		return err
	})
	for _, p := range podsOf(t, meshed, component) {
		nft := exec.CommandContext(t.Context(), "nsenter", "-t", strconv.Itoa(p.process(t, "envoy")), "-n", "nft", "-f", "-")
		nft.Stdin = strings.NewReader(fmt.Sprintf(`table ip istio { chain inbound { type nat hook prerouting priority dstnat; tcp dport %d redirect to :15006; }; }`, port))
		if out, err := nft.CombinedOutput(); err != nil {
			t.Fatalf("nft: %v\n%s", err, out)
		}
	}
}

// nothingLeft takes spec.istio out of the policy.
func nothingLeft(t *testing.T) {
	apply(t, in(meshed, fmt.Sprintf(istioPolicy, `{}`)))
	rig.Wait(t, backLimit, "none of our objects is left", func() error {
		out, err := kube.Kubectl(t.Context(), "get", istioKinds, "-A", "-l", "app.kubernetes.io/managed-by=millrace", "-o", "name")
		if err == nil && out != "" {
			err = errors.New(out)
		}
		return err
	})
}

// undoneEdit changes the weight of an endpoint by hand, which xds undoes. The weight that
// it gets is the one that is right by then.
func undoneEdit(t *testing.T, ns string) {
	name := strings.Fields(kubectl(t, "get", "workloadentries", "-n", ns, "-o", "name"))[0]
	kubectl(t, "patch", name, "-n", ns, "--type=merge", "-p", `{"spec":{"weight":7000,"network":"elsewhere"}}`)
	rig.Wait(t, 20*time.Second, "the endpoint is as it is to be", func() error {
		now, err := kube.Kubectl(t.Context(), "get", name, "-n", ns, "-o", "jsonpath={.spec}")
		if err == nil && (strings.Contains(now, "7000") || strings.Contains(now, "elsewhere")) {
			err = errors.New(now)
		}
		return err
	})
}

// front is the host that clients with a sidecar call: our own gateway's Service.
const front = "millrace-gateway." + meshed + ".svc.cluster.local"

// startClient starts a Pod whose sidecar listens on loopback, where the Pod's hosts file has
// our gateway's Service. What runs in it waits for a person's question.
func startClient(t *testing.T) {
	t.Helper()
	sidecar, volume := cluster.Sidecar("default", "NONE", map[string]string{"app": "client"})
	image := kubectl(t, "get", "deployment", "millrace-gateway", "-n", meshed, "-o", "jsonpath={.spec.template.spec.containers[0].image}")
	apply(t, in(meshedClients, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  terminationGracePeriodSeconds: 1
  hostAliases: [{ip: 127.0.0.1, hostnames: [%[1]s]}]
  initContainers: [%[2]s]
  containers:
  - name: chat
    image: %[3]s
    imagePullPolicy: IfNotPresent
    stdin: true
    args: [chat, -wait, 60s, -url, "http://%[1]s"]
  volumes: [%[4]s]
`, front, sidecar, image, volume)))
	t.Cleanup(func() {
		_, _ = kube.Kubectl(context.WithoutCancel(t.Context()), "delete", "pod", "client", "-n", meshedClients, "--now", "--wait=false")
	})
	if err := kube.Wait(t.Context(), "-n", meshedClients, "--for=condition=Ready", "pod/client"); err != nil {
		t.Fatal(err)
	}
}
