//go:build kube

package kubernetes

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/e2e/cluster"
	"millrace.dev/millrace/e2e/rig"
)

var (
	seed    = flag.Uint64("seed", 1, "of the questions that are asked while things break")
	long    = flag.Bool("long", false, "keep kubelet stopped until Kubernetes gives up the node")
	apiAway = flag.Duration("api-away", 30*time.Second, "how long the API server and etcd are stopped; 10m is what users are promised")
)

// faulty is an installation in which things break.
type faulty struct {
	ns string
	// service is the address of the gateway for clients, front that of the gateway's Pod on
	// the first node, which no fault of the second node takes away.
	service, front string
	// page is where that Pod shows Envoy's figures, reached from the first node.
	page string
	// client speaks from the first node.
	client *http.Client
	// more are figures of a fault besides those of its load.
	more map[string]any
}

// fault is something that breaks, and is whole again when do returns.
type fault struct {
	name string
	// front: clients speak to the gateway's Pod on the first node. Else: to the Service.
	front bool
	// reconnects: the gateway that holds a client's connection goes, which then takes
	// another one, as any client of a proxy that died.
	reconnects bool
	do         func(t *testing.T, f *faulty)
}

// faults are in the order in which they happen to one installation.
func faults() []fault {
	all := []fault{
		{name: "istiod is killed", do: func(t *testing.T, _ *faulty) {
			kubectl(t, "delete", "pod", "-n", "istio-system", "-l", "app=istiod", "--force", "--grace-period=0")
		}},
		{name: "containerd is restarted", do: func(t *testing.T, _ *faulty) { onNodes(t, (*cluster.Node).RestartContainerd) }},
	}
	for _, component := range []string{"xds", "extproc", "engine", "gateway"} {
		program := component
		if component == "gateway" {
			program = "envoy"
		}
		all = append(all,
			fault{name: component + " is killed", reconnects: component == "gateway", do: func(t *testing.T, f *faulty) {
				f.kill(t, f.pods(t, component)[0], program)
			}},
			fault{name: component + " is evicted", do: func(t *testing.T, f *faulty) { f.evict(t, f.pods(t, component)[0]) }})
	}
	return append(all,
		fault{name: "everything is replaced", do: replaceAll},
		fault{name: "a node is drained", do: drainNode},
		fault{name: "the API server and etcd are stopped", do: stopAPI},
		fault{name: "the network between the nodes is cut", front: true, do: cutNetwork},
		fault{name: "kubelet is stopped", front: true, do: stopKubelet},
		fault{name: "a disk is full", front: true, do: fillDisk},
		fault{name: "a node is killed", front: true, do: killNode},
	)
}

// TestFaults holds that no request that isn't streamed fails while parts of a cluster
// break, one after the other, under load. It prints a JSON line for each.
func TestFaults(t *testing.T) {
	const ns = "faults"
	f := &faulty{ns: ns, service: install(t, ns), client: kube.HTTP()}
	for _, x := range faults() {
		t.Run(x.name, func(t *testing.T) {
			f.more = map[string]any{}
			f.reach(t)
			url := f.service
			if x.front {
				url = f.front
			}
			c := &clients{url: url + rig.ChatPath, ask: rig.SeededQuestions(*seed, 8)}
			load := rig.StartLoadOf(t, 4, c.send)
			load.More(t, 20)
			began := time.Now()
			x.do(t, f)
			load.More(t, 20)
			f.whole(t)
			load.Stop()
			f.report(t, x.name, began, load, c)
			load.MustAllSucceed(t)
			if n := c.reconnected.Load(); n > 0 && !x.reconnects {
				t.Errorf("%d requests lost their connection", n)
			}
		})
	}
}

// clients send requests, and send them again where a connection was lost.
type clients struct {
	url         string
	ask         func(client, n int) any
	reconnected atomic.Int64

	// mu guards the field below.
	mu   sync.Mutex
	slow []request // those that took longer than slowFrom, or more than one attempt
}

// request is when a request was sent and how long it took.
type request struct {
	sent time.Time
	took time.Duration
}

// slowFrom is what no short answer takes while all is well, on two busy cores.
const slowFrom = 5 * time.Second

// againFor is how long a client tries to get a connection.
const againFor = 20 * time.Second

func (c *clients) send(ctx context.Context, client, n int) (rig.Outcome, error) {
	sent := time.Now()
	for {
		_, a, err := rig.Complete(ctx, c.url, c.ask(client, n))
		if a.Status == 0 && time.Since(sent) < againFor {
			c.reconnected.Add(1)
			wait(ctx, 50*time.Millisecond)
			continue
		}
		if err != nil {
			err = fmt.Errorf("client %d, question %d, after %v from %q: %w", client, n, time.Since(sent), a.Header.Get("x-millrace-replica"), err)
		}
		attempts := a.Header.Get("x-envoy-attempt-count")
		retried := attempts != "" && attempts != "1"
		if took := time.Since(sent); retried || took > slowFrom {
			c.mu.Lock()
			c.slow = append(c.slow, request{sent, took})
			c.mu.Unlock()
		}
		return rig.Outcome{Replica: a.Header.Get("x-millrace-replica"), Retried: retried}, err
	}
}

// lastSlow is when the last request was sent, after that moment, that took long or more than
// one attempt.
func (c *clients) lastSlow(after time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	var last time.Duration
	for _, r := range c.slow {
		last = max(last, r.sent.Sub(after))
	}
	return last
}

func (c *clients) slowest() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	var most time.Duration
	for _, r := range c.slow {
		most = max(most, r.took)
	}
	return most
}

// wait is a pause that the fault itself needs.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// report prints the figures of a fault.
func (f *faulty) report(t *testing.T, name string, began time.Time, load *rig.Load, c *clients) {
	t.Helper()
	line := map[string]any{
		"fault": name, "seconds": seconds(time.Since(began)), "requests": load.Done(), "failed": len(load.Failed()), "reconnected": c.reconnected.Load(),
		"last_slow_s": seconds(c.lastSlow(began)), "slowest_s": seconds(c.slowest()), "seed": *seed,
	}
	for k, v := range f.more {
		line[k] = v
	}
	b, err := json.Marshal(line)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(string(b))
}

func seconds(d time.Duration) float64 {
	return float64(d.Round(10*time.Millisecond)) / float64(time.Second)
}

// pod is a Pod of an installation.
type pod struct{ name, uid, ip, node string }

// pods are those of a component that run, the ones of the last node first.
func (f *faulty) pods(t *testing.T, component string) []pod {
	t.Helper()
	return podsOf(t, f.ns, component)
}

// podsOf returns the Pods of an installation's component that run, the ones of the last
// node first.
func podsOf(t *testing.T, ns, component string) []pod {
	t.Helper()
	out := kubectl(t, "get", "pods", "-n", ns, "-l", "app.kubernetes.io/instance=millrace,app.kubernetes.io/component="+component, "--field-selector=status.phase=Running",
		"-o", `jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.status.podIP} {.spec.nodeName} {.metadata.deletionTimestamp}{"\n"}{end}`)
	var all []pod
	for line := range strings.Lines(out) {
		w := strings.Fields(line)
		if len(w) != 4 {
			continue // it is going
		}
		p := pod{w[0], w[1], w[2], w[3]}
		if p.node == kube.Node(0).Name {
			all = append(all, p)
		} else {
			all = append([]pod{p}, all...)
		}
	}
	if len(all) == 0 {
		t.Fatalf("no Pod of %s runs", component)
	}
	return all
}

// reach finds the gateway's Pod on the first node.
func (f *faulty) reach(t *testing.T) {
	t.Helper()
	for _, p := range f.pods(t, "gateway") {
		if p.node != kube.Node(0).Name {
			continue
		}
		address, err := kube.Forward("127.0.0.1:0", p.ip+":8080")
		if err != nil {
			t.Fatal(err)
		}
		f.front, f.page = "http://"+address, "http://"+p.ip+":8081/metrics"
		return
	}
	t.Fatal("no gateway runs on the first node")
}

// whole waits until every Pod is there and both replicas serve.
func (f *faulty) whole(t *testing.T) {
	t.Helper()
	for _, w := range []string{"daemonset/millrace-engine", "deployment/millrace-gateway", "deployment/millrace-xds", "deployment/millrace-extproc"} {
		kubectl(t, "rollout", "status", w, "-n", f.ns, "--timeout=3m")
	}
	ready(t, f.ns, "smollm2", "2/2")
}

// kill ends a program of a Pod at once.
func (f *faulty) kill(t *testing.T, p pod, program string) {
	t.Helper()
	rig.Kill(t, p.process(t, program))
}

// process returns the id of a process of a Pod by the name of its program.
func (p pod) process(t *testing.T, program string) int {
	t.Helper()
	groups, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range groups {
		group, err := os.ReadFile(name)
		if err != nil || !strings.Contains(string(group), "pod"+p.uid) {
			continue
		}
		comm, err := os.ReadFile(filepath.Join(filepath.Dir(name), "comm"))
		if err != nil || strings.TrimSpace(string(comm)) != program {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	t.Fatalf("no process %s in %s", program, p.name)
	return 0
}

// evict asks Kubernetes to move a Pod elsewhere, which a disruption budget may delay.
func (f *faulty) evict(t *testing.T, p pod) {
	t.Helper()
	body := fmt.Sprintf(`{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": %q, "namespace": %q}}`, p.name, f.ns)
	rig.Wait(t, rig.BackLimit, "eviction of "+p.name, func() error {
		_, err := kube.API(t.Context(), http.MethodPost, "/api/v1/namespaces/"+f.ns+"/pods/"+p.name+"/eviction", "application/json", strings.NewReader(body))
		return err
	})
	kubectl(t, "wait", "--for=delete", "pod/"+p.name, "-n", f.ns, "--timeout=3m")
}

func onNodes(t *testing.T, do func(*cluster.Node, context.Context) error) {
	t.Helper()
	g, ctx := errgroup.WithContext(t.Context())
	for i := range kube.Nodes() {
		g.Go(func() error { return do(kube.Node(i), ctx) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

func replaceAll(t *testing.T, f *faulty) {
	kubectl(t, "rollout", "restart", "-n", f.ns, "deployment")
	kubectl(t, "rollout", "restart", "-n", f.ns, "daemonset")
	f.whole(t)
}

func drainNode(t *testing.T, f *faulty) {
	began, node := time.Now(), kube.Node(1).Name
	kubectl(t, "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--pod-selector=app.kubernetes.io/name=millrace", "--timeout=3m")
	f.more["drain_s"] = seconds(time.Since(began))
	wait(t.Context(), 5*time.Second)
	kubectl(t, "uncordon", node)
	f.spread(t)
}

// spread has Pods that were moved to one node run on both again.
func (f *faulty) spread(t *testing.T) {
	t.Helper()
	f.whole(t)
	kubectl(t, "rollout", "restart", "-n", f.ns, "deployment")
	f.whole(t)
}

func stopAPI(t *testing.T, f *faulty) {
	kube.StopAPI()
	wait(t.Context(), *apiAway)
	began := time.Now()
	if err := kube.StartAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.more["away_s"], f.more["back_s"] = seconds(*apiAway), seconds(time.Since(began))
}

func cutNetwork(t *testing.T, _ *faulty) {
	if err := kube.Node(0).CutFrom(kube.Node(1)); err != nil {
		t.Fatal(err)
	}
	wait(t.Context(), 15*time.Second)
	if err := kube.Node(0).Mend(); err != nil {
		t.Fatal(err)
	}
}

// notReady waits until Kubernetes has noticed that the second node is gone.
func (f *faulty) notReady(t *testing.T, began time.Time) {
	t.Helper()
	kubectl(t, "wait", "node/"+kube.Node(1).Name, "--for=condition=Ready=Unknown", "--timeout=3m")
	f.more["kubernetes_s"] = seconds(time.Since(began))
}

func stopKubelet(t *testing.T, f *faulty) {
	began := time.Now()
	kube.Node(1).StopKubelet()
	if *long {
		f.notReady(t, began)
	}
	wait(t.Context(), 15*time.Second)
	if err := kube.Node(1).StartKubelet(); err != nil {
		t.Fatal(err)
	}
	f.back(t)
}

func fillDisk(t *testing.T, f *faulty) {
	n := kube.Node(1)
	if err := n.FillDisk(); err != nil {
		t.Fatal(err)
	}
	wait(t.Context(), 20*time.Second)
	if err := n.FreeDisk(); err != nil {
		t.Fatal(err)
	}
	// Kubelet remembers the pressure for five minutes; a new one looks.
	n.StopKubelet()
	if err := n.StartKubelet(); err != nil {
		t.Fatal(err)
	}
	f.back(t)
}

func killNode(t *testing.T, f *faulty) {
	before, err := f.endpoints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	kube.Node(1).Kill()
	rig.Wait(t, rig.BackLimit, "Envoy takes the node's endpoints for dead", func() error {
		n, err := f.endpoints(t.Context())
		if err == nil && n >= before {
			err = fmt.Errorf("%v healthy endpoints, %v before", n, before)
		}
		return err
	})
	f.more["ours_s"] = seconds(time.Since(began))
	f.notReady(t, began)
	if err := kube.Node(1).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.back(t)
}

// endpoints is how many endpoints of engines are healthy to the gateway on the first node:
// by what xds says of them and by its own checks. It sends to no other.
func (f *faulty) endpoints(ctx context.Context) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.page, nil)
	if err != nil {
		return 0, err
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, `envoy_cluster_membership_healthy{envoy_cluster_name="engines`) {
			continue
		}
		w := strings.Fields(line)
		n, err := strconv.ParseFloat(w[len(w)-1], 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	if sum == 0 {
		return 0, fmt.Errorf("%s has no cluster of engines: %.300s", f.page, text)
	}
	return sum, nil
}

// back waits until the second node is in use again.
func (f *faulty) back(t *testing.T) {
	t.Helper()
	node := kube.Node(1)
	if err := node.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	rig.Wait(t, rig.BackLimit, "no taint is left", func() error {
		if out := kubectl(t, "get", "node", node.Name, "-o", "jsonpath={.spec.taints}"); out != "" {
			return fmt.Errorf("taints %s", out)
		}
		return nil
	})
}
