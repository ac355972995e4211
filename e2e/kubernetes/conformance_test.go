//go:build kube && conformance

package kubernetes

import (
	"archive/tar"
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/cluster"
)

var picker = flag.String("picker", "extproc", "the endpoint picker of the inference extension's conformance suite: extproc, or lwepp, its own")

// suiteNamespace is where the inference extension's suite has its pickers.
const suiteNamespace = "inference-conformance-app-backend"

// suiteServices are the Services of the suite's pickers, which serve TLS with
// certificates of their own making, which Istio is not to verify.
var suiteServices = []string{
	"primary-endpoint-picker-svc", "secondary-endpoint-picker-svc", "appprotocol-http-endpoint-picker-svc",
	"appprotocol-h2c-endpoint-picker-svc", "dp-endpoint-picker-svc",
}

// TestInferenceExtensionConformance runs the inference extension's suite v1.6.0 against
// Istio's gateways, with extproc where the suite's manifests name its own picker.
func TestInferenceExtensionConformance(t *testing.T) {
	suites := suiteImages(t)
	var yaml strings.Builder
	fmt.Fprintf(&yaml, "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {inference-conformance: backend}}\n", suiteNamespace)
	for _, s := range suiteServices {
		fmt.Fprintf(&yaml, "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: %s, namespace: %s}\n"+
			"spec: {host: %s, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}}}\n", s, suiteNamespace, s)
	}
	apply(t, yaml.String())
	passed := conform(t, suites, "TestInferenceExtension")
	t.Logf("%d tests of the inference extension's suite passed with %s", passed, *picker)
}

// TestGatewayAPIConformance runs the core tests of Gateway API's suite, with Millrace
// installed: it is not in the way.
func TestGatewayAPIConformance(t *testing.T) {
	suites := suiteImages(t)
	install(t, "beside-gateways", "istio.enabled=true")
	passed := conform(t, suites, "TestGatewayAPI", "-conformance-profiles=GATEWAY-HTTP", "-supported-features=Gateway,HTTPRoute,ReferenceGrant")
	t.Logf("%d tests of Gateway API's suite passed", passed)
}

// suiteImages gives every node the images of the suites, and returns their folder.
func suiteImages(t *testing.T) string {
	t.Helper()
	suites, err := cluster.Suites()
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, "apply", "--server-side", "--force-conflicts", "-f", filepath.Join(suites, "crds"))
	archives := []string{filepath.Join(suites, "images", "echo-basic.tar"), filepath.Join(suites, "images", "lwepp.tar")}
	if *picker == "extproc" {
		ours := filepath.Join(t.TempDir(), "picker.tar")
		program := filepath.Join("..", "..", "bin", "images", ".programs", "extproc")
		names, err := namesOf(archives[1])
		if err != nil {
			t.Fatal(err)
		}
		if err := cluster.Archive(ours, []string{"/extproc", "-conformance-headers"}, map[string]string{"/extproc": program}, names...); err != nil {
			t.Fatal(err)
		}
		archives[1] = ours
	}
	for i := range kube.Nodes() {
		for _, a := range archives {
			if err := kube.Node(i).Import(a); err != nil {
				t.Fatal(err)
			}
		}
	}
	return suites
}

// namesOf returns the names of the image in a docker archive.
func namesOf(archive string) ([]string, error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err != nil {
			return nil, fmt.Errorf("%s: manifest.json: %w", archive, err)
		}
		if h.Name != "manifest.json" {
			continue
		}
		var manifest []struct{ RepoTags []string }
		if err := json.NewDecoder(r).Decode(&manifest); err != nil {
			return nil, fmt.Errorf("%s: manifest.json: %w", archive, err)
		}
		return manifest[0].RepoTags, nil
	}
}

// conform runs a suite on the first node, where gateways can be reached, and returns
// how many of its tests have passed.
func conform(t *testing.T, suites, run string, more ...string) (passed int) {
	t.Helper()
	args := append([]string{
		"-test.v", "-test.timeout=15m", "-test.run=^" + run + "$", "-gateway-class=istio", "-allow-crds-mismatch=true", "-cleanup-base-resources=true",
		"-organization=millrace", "-project=millrace", "-url=https://millrace.dev", "-version=test", "-contact=none", "-report-output=" + filepath.Join(t.TempDir(), "report.yaml"),
	}, more...)
	cmd, err := kube.Node(0).Command(filepath.Join(suites, "suites"), args...)
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "suite.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	cmd.Stdout, cmd.Stderr = out, out
	ended := cmd.Run()
	if _, err := out.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "    --- PASS:"):
			passed++
		case strings.Contains(line, "--- FAIL:") || strings.Contains(line, "--- SKIP:"):
			t.Log(line)
		}
	}
	if ended != nil {
		b, _ := os.ReadFile(out.Name())
		t.Fatalf("%s: %v\n%s", run, ended, b[max(0, len(b)-8000):])
	}
	if passed == 0 {
		t.Fatalf("%s: no test passed", run)
	}
	return passed
}
