//go:build kube

package kubernetes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// dropInServers are llama.cpp's own servers, as anybody would run them: of Millrace they
// know nothing.
const dropInServers = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: llama}
spec:
  replicas: 2
  selector: {matchLabels: {app: llama}}
  template:
    metadata: {labels: {app: llama}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {runAsUser: 65532, fsGroup: 65532}
      volumes: [{name: models, emptyDir: {}}, {name: script, configMap: {name: llama-script}}]
      initContainers:
      - {name: models, image: "millrace.dev/models:0.1.0", args: [install-models, -to, /models], volumeMounts: [{name: models, mountPath: /models}]}
      containers:
      - name: llama
        image: millrace.dev/engine:0.1.0
        stdin: true
        command: [python3, /script/llama_server.py, /usr/lib/millrace/llamacpp, /models/smollm2.gguf, "0.0.0.0:8000"]
        readinessProbe: {httpGet: {path: /health, port: 8000}, periodSeconds: 1}
        volumeMounts: [{name: models, mountPath: /models}, {name: script, mountPath: /script}]
`

// dropIn are values of the inference extension's own chart. All that is of Millrace is the
// image; the resources are this machine's.
const dropIn = `
inferencePool:
  targetPorts: [{number: 8000}]
  modelServers: {matchLabels: {app: llama}}
inferenceExtension:
  image: {registry: millrace.dev, repository: extproc, tag: 0.1.0, pullPolicy: IfNotPresent}
  resources: {requests: {cpu: 50m, memory: 64Mi}, limits: {memory: 512Mi}}
provider: {name: istio}
experimentalHttpRoute: {enabled: true, inferenceGatewayName: gw}
`

const dropInGateway = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw}
spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}
`

const dropInObjective = `
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceObjective
metadata: {name: bulk}
spec: {priority: -1, poolRef: {name: llama}}
`

// extensionChart is the inference extension's chart, with the one that it depends on.
func extensionChart(t *testing.T) string {
	t.Helper()
	from, to := filepath.Join(moduleFolder(t, extension), "config", "charts"), t.TempDir()
	for _, name := range []string{"inferencepool", "epplib"} {
		if err := os.CopyFS(filepath.Join(to, name), os.DirFS(filepath.Join(from, name))); err != nil {
			t.Fatal(err)
		}
	}
	folder := filepath.Join(to, "inferencepool")
	// What `helm dependency build` does with a folder, which a module's files don't allow.
	if err := os.CopyFS(filepath.Join(folder, "charts", "inference-extension"), os.DirFS(filepath.Join(to, "epplib"))); err != nil {
		t.Fatal(err)
	}
	return folder
}

// TestDropIn installs the chart of the inference extension with our image in place of its
// picker's, and chats through an Istio gateway: once as anybody, once with an objective.
func TestDropIn(t *testing.T) {
	const ns = "drop-in"
	namespace(t, ns)
	kubectl(t, "create", "configmap", "llama-script", "-n", ns, "--from-file", filepath.Join(rig.Root(), "e2e", "rig", "testdata", "llama_server.py"))
	apply(t, in(ns, dropInServers))
	values := filepath.Join(t.TempDir(), "values.yaml")
	rig.Write(t, values, dropIn)
	apply(t, in(ns, dropInGateway))
	helm(t, "install", "llama", extensionChart(t), "-n", ns, "-f", values)
	apply(t, in(ns, dropInObjective))
	for _, name := range []string{"deployment/llama", "deployment/llama-epp"} {
		if err := kube.Rollout(t.Context(), ns, name); err != nil {
			t.Fatalf("%v\n%s\n%s", err, kubectl(t, "get", "pods", "-n", ns, "-o", "wide"), kubectl(t, "logs", "-n", ns, name, "--all-containers", "--tail=50"))
		}
	}
	var url string
	rig.Wait(t, backLimit, "the gateway has an address", func() error {
		at, err := kube.Forward("127.0.0.1:0", "gw-istio."+ns+":80")
		url = "http://" + at
		return err
	})
	for _, header := range [][]string{nil, {"x-gateway-inference-objective", "bulk"}} {
		rig.Wait(t, backLimit, fmt.Sprintf("an answer to a request with %v", header), func() error {
			_, _, err := rig.Complete(t.Context(), url+rig.ChatPath, rig.ShortQuestions(0, 0), header...)
			return err
		})
	}
	logs := kubectl(t, "logs", "-n", ns, "deployment/llama-epp")
	if !strings.Contains(logs, "msg=ready") {
		t.Errorf("the picker's log:\n%s", logs)
	}
	metrics, err := kube.Forward("127.0.0.1:0", "llama-epp."+ns+":9090")
	if err != nil {
		t.Fatal(err)
	}
	// The chat was decided by us, not by the gateway's own choice.
	rig.Wait(t, 10*time.Second, "decisions are counted", func() error {
		n, err := rig.SumMetric(metrics, "millrace_extproc_picks_total")
		if err == nil && n < 2 {
			err = fmt.Errorf("%v decisions", n)
		}
		return err
	})
}
