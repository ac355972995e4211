package main

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/extproc/internal/pool"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/program"
)

// parsed is the options of a command line, and what is wrong with it.
func parsed(t *testing.T, args ...string) (*options, error) {
	t.Helper()
	o := &options{}
	f := program.NewFlags("extproc", io.Discard)
	for _, name := range []string{"probes", "metrics"} { // those of every program
		f.String(name, "", "")
	}
	f.Bool("insecure", false, "")
	o.add(f)
	if err := f.Read(args); err != nil {
		return o, err
	}
	return o, o.validate()
}

// chartArgs is what the inference extension's chart v1.5 starts its picker with.
var chartArgs = strings.Fields("--pool-name p --pool-namespace ns --pool-group inference.networking.k8s.io --zap-encoder json --config-file FILE --v 1 --tracing=false")

const plugins15 = `
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: prefix-cache-scorer
- type: metrics-data-source
  parameters: {scheme: http, path: /metrics, insecureSkipVerify: true}
- type: core-metrics-extractor
- type: latency-slo-admitter
schedulingProfiles: [{name: default, plugins: [{pluginRef: queue-scorer, weight: 2}]}]
`

func withFile(t *testing.T, args []string, text string) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plugins.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return strings.Fields(strings.ReplaceAll(strings.Join(args, " "), "FILE", path))
}

func TestReferenceFlags(t *testing.T) {
	o, err := parsed(t, append(withFile(t, chartArgs, plugins15), "--lora-info-metric", "", "--ha-enable-leader-election")...)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]pool.Name{{Namespace: "ns", Name: "p"}}, o.pools); diff != "" {
		t.Errorf("pools (-want +got):\n%s", diff)
	}
	got := []string{o.listen, o.health, o.flags.Lookup("probes").Value.String()}
	if diff := cmp.Diff([]string{"0.0.0.0:9002", "0.0.0.0:9003", "0.0.0.0:9090"}, got); diff != "" || !o.secure.Self {
		t.Errorf("self-signed %v, ports (-want +got):\n%s", o.secure.Self, diff)
	}
	flags, plugins := o.reference.notes()
	if diff := cmp.Diff([]string{"-ha-enable-leader-election", "-lora-info-metric"}, flags); diff != "" {
		t.Errorf("flags without effect (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"latency-slo-admitter"}, plugins); diff != "" {
		t.Errorf("plugins without effect (-want +got):\n%s", diff)
	}
}

func TestReferenceFlagsTogether(t *testing.T) {
	t.Setenv("NAMESPACE", "own")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")
	o, err := parsed(t, "--pool-name=p", "--grpc-port=1", "-listen", "127.0.0.1:2", "--secure-serving=false", "--tracing=true", "--metrics-port=3")
	if err != nil {
		t.Fatal(err)
	}
	if o.pools[0].Namespace != "own" || o.listen != "127.0.0.1:2" || o.secure.On() || o.traces != "otlp://collector:4317" || o.flags.Lookup("insecure").Value.String() != "true" {
		t.Errorf("%+v", o)
	}
	o, err = parsed(t, "--endpoint-selector", "app=m,x=y", "--endpoint-target-ports", "8000,8001,8000", "--pool-namespace", "ns")
	if err != nil {
		t.Fatal(err)
	}
	want := []inventory.Pool{{Namespace: "ns", Name: "endpoint-selector", Selector: map[string]string{"app": "m", "x": "y"}, Ports: []int{8000, 8001}}}
	if diff := cmp.Diff(want, o.watched().Fixed); diff != "" || o.watched().Pools != nil {
		t.Errorf("%+v (-want +got):\n%s", o.watched(), diff)
	}
	o, err = parsed(t, "-pool", "a/b,c/d", "--grpc-health-port", "9003")
	if err != nil || len(o.pools) != 2 || o.listen != "127.0.0.1:7200" || o.health != "0.0.0.0:9003" || o.secure.On() {
		t.Errorf("our own flag with a port of theirs: %v %+v", err, o)
	}
}

func TestPages(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{nil, nil},
		{[]string{`--model-server-metrics-path="/prometheus/metrics"`}, []string{"http://10.0.0.1:8000/prometheus/metrics"}},
		{[]string{"--model-server-metrics-port=9", "--model-server-metrics-scheme=https"}, []string{"https://10.0.0.1:9/metrics"}},
	} {
		o, err := parsed(t, append(tt.args, "--pool-name=p")...)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, o.reference.pages("10.0.0.1:8000")); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.args, diff)
		}
	}
}

func TestBadPoolFlags(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"-pool x", "-pool: \"x\"; must be namespace/name"},
		{"-pool a/b -xds 127.0.0.1:1", "give one of them only"},
		{"-pool a/b --pool-name c", "give one of them only"},
		{"--pool-name a --endpoint-selector b=c", "give one of them only"},
		{"--endpoint-selector b --endpoint-target-ports 1", "must be key=value"},
		{"--endpoint-selector b=c", "-endpoint-target-ports"},
		{"--endpoint-selector b=c --endpoint-target-ports 0", "-endpoint-target-ports"},
		{"--pool-name p --grpc-port 0", "-grpc-port: 0"},
		{"--pool-name p --config-file nowhere.yaml", "nowhere.yaml"},
		{"-config x", "need -pool"},
		{"-conformance-headers", "need -pool"},
		{"--no-such-flag", "no-such-flag"},
	} {
		if _, err := parsed(t, strings.Fields(tt.args)...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.args, err, tt.want)
		}
	}
	if _, err := parsed(t, withFile(t, []string{"--pool-name", "p", "--config-file", "FILE"}, "kind: Policy")...); err == nil || !strings.Contains(err.Error(), "-config") {
		t.Errorf("our own file for theirs: %v", err)
	}
}

func TestReadPlugins(t *testing.T) {
	const events = "plugins: [{type: precise-prefix-cache-scorer, parameters: {kvEventsConfig: {discoverPods: %s, podDiscoveryConfig: {socketPort: 5560}}}}]"
	for text, want := range map[string]int{
		strings.Replace(events, "%s", "true", 1): 5560, strings.Replace(events, "%s", "false", 1): 0, plugins15: 0, "": 0,
		"plugins: [{type: x, parameters: {kvEventsConfig: {}}}]": 5557,
	} {
		if p, err := readPlugins([]byte(text)); err != nil || p.eventsPort != want {
			t.Errorf("%s: port %d, %v; want %d", text, p.eventsPort, err, want)
		}
	}
}

func FuzzReadPlugins(f *testing.F) {
	f.Add([]byte(plugins15))
	f.Fuzz(func(t *testing.T, text []byte) {
		if p, err := readPlugins(text); err == nil && (p.eventsPort < 0 || p.eventsPort > 65535) {
			t.Errorf("port %d", p.eventsPort)
		}
	})
}

func TestAskedAs(t *testing.T) {
	for authority, want := range map[string]pool.Name{ // host and port
		"outbound|9002||epp.ns.svc.cluster.local": {Namespace: "epp.ns.svc.cluster.local", Name: "9002"},
		"epp.ns:9002": {Namespace: "epp.ns", Name: "9002"},
		"epp.ns":      {Namespace: "epp.ns", Name: "0"},
		"":            {Namespace: "", Name: "0"},
		"a|b":         {Namespace: "a|b", Name: "0"},
	} {
		host, port := askedAs(authority)
		if got := (pool.Name{Namespace: host, Name: strconv.Itoa(port)}); got != want {
			t.Errorf("askedAs(%q) = %v, want %v", authority, got, want)
		}
	}
}
