//go:build kube

package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// up brings a cluster up that goes down with the test.
func up(t *testing.T, o Options) *Cluster {
	t.Helper()
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	c, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Down(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// echoes are two Pods of Kubernetes' own programs that answer HTTP: CoreDNS's
// readiness page on port 8181, one on each node, and a Service of both.
const echoes = `
apiVersion: v1
kind: Service
metadata: {name: pages, namespace: kube-system}
spec: {type: LoadBalancer, selector: {k8s-app: kube-dns}, ports: [{port: 80, targetPort: 8181}]}
`

func get(ctx context.Context, client *http.Client, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}

func TestAPIServerAlone(t *testing.T) {
	c := up(t, Options{})
	if _, err := c.Apply(t.Context(), "{apiVersion: v1, kind: ConfigMap, metadata: {name: kept}}"); err != nil {
		t.Fatal(err)
	}
	c.StopAPI()
	if _, err := c.API(t.Context(), http.MethodGet, "/readyz", "", nil); err == nil {
		t.Error("a stopped API server answers")
	}
	if err := c.StartAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err := c.Kubectl(t.Context(), "get", "configmap", "kept", "-o", "name"); err != nil || out != "configmap/kept\n" {
		t.Errorf("after a restart: %q, %v", out, err)
	}
	audit, err := os.ReadFile(c.AuditLog())
	if err != nil || !strings.Contains(string(audit), `"verb":"patch"`) {
		t.Errorf("audit log of %d bytes, %v: has no patch", len(audit), err)
	}
}

// left returns what clusters leave when they go down badly.
func left(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{cgroups + "/*/millrace-*", cgroups + "/millrace-*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// pages is the Service of the pages.
const pages = "http://pages.kube-system/ready"

func TestNodes(t *testing.T) {
	ctx := t.Context()
	before := left(t)
	c := up(t, Options{Nodes: 2})
	if _, err := c.Apply(ctx, echoes); err != nil {
		t.Fatal(err)
	}
	client := c.HTTP()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	wait := func(what string, cond func(context.Context) error) {
		t.Helper()
		must(what, c.poll(ctx, what, cond))
	}
	wait("Service by name", func(ctx context.Context) error { return get(ctx, client, pages) })
	var balanced string
	wait("address of a load balancer", func(ctx context.Context) error {
		ip, err := c.Kubectl(ctx, "-n", "kube-system", "get", "service", "pages", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
		if balanced = ip; err == nil && ip == "" {
			err = fmt.Errorf("none yet")
		}
		return err
	})
	wait("load balancer", func(ctx context.Context) error { return get(ctx, client, "http://"+balanced+"/ready") })
	local, err := c.Forward("127.0.0.1:0", "pages.kube-system:80")
	must("forward", err)
	must("forward", get(ctx, http.DefaultClient, "http://"+local+"/ready"))

	first, second := c.Node(0), c.Node(1)
	pod, err := c.Kubectl(ctx, "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "--field-selector=spec.nodeName="+second.Name, "-o", "jsonpath={.items[0].status.podIP}")
	must("Pod of the second node", err)
	far := "http://" + pod + ":8181/ready"
	must("Pod on the other node", get(ctx, client, far))
	must("cut", second.CutFrom(first))
	client.CloseIdleConnections()
	if err := get(ctx, client, far); err == nil {
		t.Error("the other node's Pod answers across a cut")
	}
	if _, err := c.Kubectl(ctx, "get", "--raw", "/api/v1/nodes/"+second.Name+"/proxy/healthz"); err != nil {
		t.Errorf("the API server reaches no kubelet across a cut between nodes: %v", err)
	}
	must("mend", second.Mend())
	wait("Pod after the cut", func(ctx context.Context) error { return get(ctx, client, far) })

	must("containerd", second.RestartContainerd(ctx))
	second.StopKubelet()
	must("kubelet", second.StartKubelet())
	must("Pod after restarts", get(ctx, client, far))

	must("fill", second.FillDisk())
	wait("disk pressure", func(ctx context.Context) error {
		return c.Wait(ctx, "--for=condition=DiskPressure", "node/"+second.Name)
	})
	must("free", second.FreeDisk())
	wait("no disk pressure", func(ctx context.Context) error {
		return c.Wait(ctx, "--for=condition=DiskPressure=false", "node/"+second.Name)
	})

	second.Kill()
	if err := get(ctx, client, far); err == nil {
		t.Error("a killed node's Pod answers")
	}
	must("boot", second.Start(ctx))
	must("ready", second.WaitReady(ctx))

	must("down", c.Down())
	if after := left(t); len(after) > len(before) {
		t.Errorf("left behind: %v", after)
	}
	if _, err := os.Stat(c.Dir()); err == nil {
		t.Errorf("%s is left behind", c.Dir())
	}
}
