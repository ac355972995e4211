//go:build kube

package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// definitions are modules with the definitions of what the chart can make for others, and
// where they are in them.
var definitions = []struct{ module, pattern string }{
	{"github.com/cert-manager/cert-manager@v1.21.2", "deploy/crds/cert-manager.io_*.yaml"},
	{"github.com/prometheus-operator/prometheus-operator@v0.85.0", "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml"},
	{"github.com/prometheus-operator/prometheus-operator@v0.85.0", "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml"},
}

// applyDefinitions has the cluster know the kinds of definitions.
func applyDefinitions(t *testing.T) {
	t.Helper()
	for _, d := range definitions {
		out, err := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", d.module).Output()
		if err != nil {
			t.Fatalf("go mod download %s: %v\n%s", d.module, err, out)
		}
		files, err := filepath.Glob(filepath.Join(rig.Decode[struct{ Dir string }](t, out).Dir, d.pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s has no %s: %v", d.module, d.pattern, err)
		}
		for _, f := range files {
			kubectl(t, "apply", "--server-side", "-f", f)
		}
	}
}

// matrix are the values that the chart is rendered with. want are objects that must be
// made, not ones that must not, as "Kind/name".
var matrix = []struct {
	name, values string
	want, not    []string
}{
	{
		name: "defaults", values: "{}",
		want: []string{
			"Deployment/r-millrace-xds", "Deployment/r-millrace-extproc", "Deployment/r-millrace-gateway", "DaemonSet/r-millrace-engine",
			"PodDisruptionBudget/r-millrace-xds", "NetworkPolicy/r-millrace-engine", "Secret/r-millrace-ca", "Secret/r-millrace-cookie",
			"Service/r-millrace-xds-replicas", "Lease/r-millrace-xds", "Pod/r-millrace-test",
		},
		not: []string{"PodMonitor/r-millrace", "Service/r-millrace-scaler", "Certificate/r-millrace-ca", "DestinationRule/r-millrace-extproc", "Service/r-millrace-picker"},
	},
	{name: "a name of one's own", values: "{nameOverride: llm-millrace}", want: []string{"Deployment/llm-millrace-xds"}},
	{
		name: "one of each", values: "{xds: {replicas: 1}, extproc: {replicas: 1}, gateway: {replicas: 1}}",
		not: []string{"PodDisruptionBudget/r-millrace-xds", "PodDisruptionBudget/r-millrace-gateway"},
	},
	{
		name: "nothing around it", values: "{networkPolicy: {enabled: false}, podDisruptionBudget: {enabled: false}, runAsUser: null}",
		not: []string{"NetworkPolicy/r-millrace-xds", "PodDisruptionBudget/r-millrace-xds"},
	},
	{
		name: "peers", values: `{networkPolicy: {
			monitoring: [{namespaceSelector: {matchLabels: {a: b}}}], engineClients: [{podSelector: {}, namespaceSelector: {}}]}}`,
	},
	{name: "Istio", values: "{istio: {enabled: true, namespaces: [chart-other]}, engine: {plainText: true}}", want: []string{"Service/r-millrace-picker"}},
	{name: "monitors", values: "{monitoring: {podMonitor: {enabled: true, labels: {release: prometheus}}}}", want: []string{"PodMonitor/r-millrace"}},
	{
		name: "rules and dashboards", values: "{monitoring: {rules: {enabled: true, labels: {release: prometheus}}, dashboards: {enabled: true}}}",
		want: []string{"PrometheusRule/r-millrace", "ConfigMap/r-millrace-dashboard-overview", "ConfigMap/r-millrace-dashboard-capacity"},
	},
	{
		name: "cert-manager", values: "{ca: {certManager: {enabled: true}}}",
		want: []string{"Certificate/r-millrace-ca", "Issuer/r-millrace-ca"}, not: []string{"Secret/r-millrace-ca", "ConfigMap/r-millrace-ca"},
	},
	{
		name: "cert-manager with an issuer", values: "{ca: {certManager: {enabled: true, issuer: {name: corp, kind: ClusterIssuer}}}}",
		want: []string{"Certificate/r-millrace-ca"}, not: []string{"Issuer/r-millrace-ca"},
	},
	{
		name: "Secrets of one's own", values: "{ca: {secret: \"y\"}, cookie: {secret: \"1\"}}",
		not: []string{"Secret/r-millrace-ca", "ConfigMap/r-millrace-ca", "Secret/r-millrace-cookie"},
	},
	{name: "no gateway", values: "{gateway: {enabled: false}}", not: []string{"Deployment/r-millrace-gateway", "Pod/r-millrace-test"}},
	{name: "API keys", values: "{extproc: {apiKeys: {secret: keys}}}"},
	{name: "a load balancer with TLS", values: "{gateway: {https: {secret: public}, service: {type: LoadBalancer, port: 8080, annotations: {a: b}}, accessLog: \"\"}}"},
	{name: "GPUs", values: "{engine: {gpus: 8, runtimeClassName: nvidia, image: {repository: r.example/vllm, tag: \"1\"}, args: [-vllm, /vllm]}}"},
	{
		name: "a driver's folder", values: `{nodeagent: {args: [-nvml=/driver/libnvidia-ml.so.1], extraEnv: [{name: A, value: /a/$(NODE_NAME)}],
			extraVolumes: [{name: driver, emptyDir: {}}], extraVolumeMounts: [{name: driver, mountPath: /driver, readOnly: true}]}}`,
	},
	{
		name: "KEDA in plain text", values: "{scaler: {enabled: true, clients: [{namespaceSelector: {matchLabels: {a: keda}}}]}}",
		want: []string{"Service/r-millrace-scaler"},
	},
	{name: "KEDA by TLS", values: "{scaler: {enabled: true, tls: {secret: keda, clientCA: true}}}", want: []string{"Service/r-millrace-scaler"}},
	{name: "a claim", values: "{models: {install: false, volume: {emptyDir: null, persistentVolumeClaim: {claimName: models}}}}"},
	{
		name: "placed by hand", values: `{labels: {team: a}, image: {tag: "2", pullSecrets: [{name: s}]}, xds: &all {
			nodeSelector: {a: "true"}, tolerations: [{key: gpu, operator: Exists}], priorityClassName: system-cluster-critical,
			podLabels: {a: b}, podAnnotations: {a: b}, affinity: {podAntiAffinity: {}}, resources: {requests: {cpu: 1}}},
			extproc: *all, gateway: *all, engine: *all}`,
	},
	{
		name: "picker", values: "{mode: picker, picker: {pools: [{name: llama}]}}",
		want: []string{"Service/r-millrace-extproc", "Role/r-millrace-extproc"},
		not:  []string{"Deployment/r-millrace-xds", "Deployment/r-millrace-gateway", "Secret/r-millrace-ca", "DaemonSet/r-millrace-engine", "InferencePool/llama"},
	},
	{
		name: "picker of several pools", values: `{mode: picker, istio: {enabled: true}, picker: {
			pools: [{name: llama}, {name: b, namespace: chart-other}], service: {name: llama-epp, port: 9100}, config: "kind: Policy",
			create: {enabled: true, selector: {app: llama}, targetPorts: [8000, 8001], failureMode: FailClose}}}`,
		want: []string{"Service/llama-epp", "InferencePool/llama", "InferencePool/b", "DestinationRule/r-millrace-extproc", "ConfigMap/r-millrace-picker"},
	},
	{name: "picker in plain text", values: "{mode: picker, picker: {group: inference.networking.x-k8s.io, secureServing: false, pools: [{name: llama}]}}"},
}

// TestChartMatrix holds that the real API server takes, strictly, each object that the
// chart makes of each set of values, and that no Pod asks for more than the restricted
// standard gives.
func TestChartMatrix(t *testing.T) {
	applyDefinitions(t)
	for _, ns := range []string{"chart-matrix", "chart-other"} {
		namespace(t, ns)
	}
	kubectl(t, "label", "ns", "chart-matrix", "pod-security.kubernetes.io/warn=restricted", "pod-security.kubernetes.io/enforce=restricted")
	for _, tt := range matrix {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "values.yaml")
			if err := os.WriteFile(file, []byte(tt.values), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := kube.Helm(t.Context(), "lint", "--strict", chart, "-f", file); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			text, err := kube.Helm(t.Context(), "template", "r", chart, "-n", "chart-matrix", "-f", file)
			if err != nil {
				t.Fatal(err)
			}
			rendered := filepath.Join(t.TempDir(), "rendered.yaml")
			if err := os.WriteFile(rendered, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := kube.Kubectl(t.Context(), "apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors",
				"-o", `go-template={{range .items}}{{.kind}}/{{.metadata.name}}{{"\n"}}{{end}}`, "-f", rendered)
			if err != nil {
				t.Fatal(err)
			}
			made := strings.Fields(out)
			for _, want := range tt.want {
				if !slices.Contains(made, want) {
					t.Errorf("%s is not made; there are %s", want, made)
				}
			}
			for _, not := range tt.not {
				if slices.Contains(made, not) {
					t.Errorf("%s is made", not)
				}
			}
		})
	}
}

// TestChartRefusesBadValues holds that a wrong value is an error that names it.
func TestChartRefusesBadValues(t *testing.T) {
	for values, want := range map[string]string{
		"mode=gateway":                               "/mode",
		"xds.replicas=0":                             "/xds/replicas",
		"xds.replica=3":                              "additional properties 'replica' not allowed",
		"gateway.linger=5":                           "/gateway/linger",
		"nodeagent.extraVolumes[0].name=tls":         "/nodeagent/extraVolumes/0/name",
		"nodeagent.extraVolumeMounts[0].name=driver": "missing property 'mountPath'",
		"nodeagent.extraEnv[0].values=a":             "/nodeagent/extraEnv/0",
		"mode=picker":                                "picker.pools: none; must name the InferencePools",
		"engine.nodeSelector.millrace\\.dev/engine=": "/engine/nodeSelector",
		"ca.secret=a,ca.certManager.enabled=true":    "ca.secret and ca.certManager.enabled; must be one of them",
		"mode=picker,picker.pools[0].name=a,picker.create.enabled=true": "picker.create.selector: none",
	} {
		if values == "engine.nodeSelector.millrace\\.dev/engine=" {
			values += "null" // all engines on all nodes, the control plane's too
		}
		if out, err := kube.Helm(t.Context(), "template", "r", chart, "--set", values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q\n%.200s", values, err, want, out)
		}
	}
}

// TestChartFromInstallToUninstall installs the chart, chats, upgrades it, goes back, runs
// its own test and removes it, under load from the first answer to the last.
func TestChartFromInstallToUninstall(t *testing.T) {
	const ns = "chart-life"
	kubectl(t, "apply", "--server-side", "-f", filepath.Join(chart, "crds")) // as any test before
	before := everything(t, ns)
	began := time.Now()
	url := install(t, ns)
	t.Logf("from install to all replicas ready: %s", time.Since(began).Round(100*time.Millisecond))
	if out := helm(t, "test", "millrace", "-n", ns, "--logs"); !strings.Contains(out, "prompt tokens cached") {
		t.Errorf("helm test did not chat: %s", out)
	}

	load := rig.StartLoad(t, url+rig.ChatPath, 4, rig.ShortQuestions)
	load.More(t, 20)
	// A label of all Pods: everything is replaced.
	helm(t, "upgrade", "millrace", chart, "-n", ns, "--wait", "--timeout=5m", "--set", "labels.round=two")
	rollout(t, ns)
	load.More(t, 20)
	t.Logf("upgrade: %s", load)
	helm(t, "rollback", "millrace", "-n", ns, "--wait", "--timeout=5m")
	rollout(t, ns)
	load.More(t, 20)
	t.Logf("rollback: %s", load)
	load.MustAllSucceed(t)

	inside := "http://millrace-gateway." + ns + ":80" + rig.ChatPath
	t.Log("uninstall: ", uninstallUnderLoad(t, inside, func() { helm(t, "uninstall", "millrace", "-n", ns, "--wait", "--timeout=3m") }))
	kubectl(t, "delete", "model", "smollm2", "-n", ns) // which must be there: objects of the user stay
	rig.Wait(t, 2*time.Minute, "everything is gone", func() error {
		var left []string
		for _, o := range everything(t, ns) {
			if !slices.Contains(before, o) && !slices.Contains(ofNamespace, o) {
				left = append(left, o)
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("left behind: %s", left)
		}
		return nil
	})
}

// ofNamespace is what every namespace has.
var ofNamespace = []string{"configmap/kube-root-ca.crt", "configmap/istio-ca-root-cert", "serviceaccount/default", "namespace/chart-life"}

// rollout waits until all is replaced; helm may not wait for a DaemonSet.
func rollout(t *testing.T, ns string) {
	t.Helper()
	for _, w := range []string{"daemonset/millrace-engine", "deployment/millrace-gateway", "deployment/millrace-xds", "deployment/millrace-extproc"} {
		kubectl(t, "rollout", "status", w, "-n", ns, "--timeout=5m")
	}
}

// errRefused is that nobody took a connection.
var errRefused = errors.New("refused")

// uninstallUnderLoad sends requests until nobody takes connections any more. Those that
// were taken must be answered.
func uninstallUnderLoad(t *testing.T, url string, uninstall func()) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := kube.Dial(ctx, network, address)
		if err != nil {
			err = fmt.Errorf("%w: %v", errRefused, err)
		}
		return conn, err
	}}}
	defer client.CloseIdleConnections()
	var answered, refused atomic.Int64
	load := rig.StartLoadOf(t, 4, func(ctx context.Context, n, i int) (rig.Outcome, error) {
		body, err := json.Marshal(rig.ShortQuestions(n, i))
		if err != nil {
			return rig.Outcome{}, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return rig.Outcome{}, err
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if errors.Is(err, errRefused) {
			refused.Add(1)
			return rig.Outcome{}, nil
		}
		if err != nil {
			return rig.Outcome{}, err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", resp.Status, text)
		}
		answered.Add(1)
		return rig.Outcome{Replica: resp.Header.Get("x-millrace-replica")}, err
	})
	load.More(t, 10)
	uninstall()
	rig.Wait(t, 2*time.Minute, "nobody takes connections", func() error {
		if refused.Load() < 20 {
			return fmt.Errorf("%d of 20 found nobody", refused.Load())
		}
		return nil
	})
	load.MustAllSucceed(t)
	return fmt.Sprintf("%d answered, %d found nobody", answered.Load(), refused.Load())
}

// everything returns all objects of a namespace, and those of the whole cluster that
// are no definitions, as "resource/name".
func everything(t *testing.T, ns string) []string {
	t.Helper()
	var resources []string
	for _, r := range strings.Fields(kubectl(t, "api-resources", "--verbs=list,delete", "-o", "name")) {
		if name, _, _ := strings.Cut(r, "."); name != "events" && name != "customresourcedefinitions" && name != "nodes" {
			resources = append(resources, r)
		}
	}
	return strings.Fields(kubectl(t, "get", strings.Join(resources, ","), "-n", ns, "-o", "name"))
}
