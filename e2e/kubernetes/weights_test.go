//go:build kube

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/e2e/rig"
)

// fakeGPUs are a GPU of each node by a library of our own in place of NVIDIA's: what it
// says is in a file of the node's name.
type fakeGPUs struct{ dir string }

// newFakeGPUs gives each node a GPU, all with the same clock.
func newFakeGPUs(t *testing.T) *fakeGPUs {
	t.Helper()
	g := &fakeGPUs{t.TempDir()}
	rig.FakeNVML(t, g.dir)
	for i := range kube.Nodes() {
		g.clock(t, kube.Node(i).Name, 100)
	}
	return g
}

// values have nodeagent read them, by the values of the chart that bring a driver in. What a
// node is worth is said, so that weights are of its health alone.
func (g *fakeGPUs) values() []string {
	return []string{
		"nodeagent.args={-nvml=/fake/libnvidia-ml.so.1,-capacity=100}",
		"nodeagent.extraEnv[0].name=FAKE_NVML_STATE", "nodeagent.extraEnv[0].value=/fake/$(NODE_NAME)",
		"nodeagent.extraVolumes[0].name=fake", "nodeagent.extraVolumes[0].hostPath.path=" + g.dir,
		"nodeagent.extraVolumeMounts[0].name=fake", "nodeagent.extraVolumeMounts[0].mountPath=/fake", "nodeagent.extraVolumeMounts[0].readOnly=true",
	}
}

// clock has a node's GPU run at a share of its clock; below 100 % it is throttled by heat.
func (g *fakeGPUs) clock(t *testing.T, node string, percent int) {
	t.Helper()
	reasons := 0
	if percent < 100 {
		reasons = 0x40
	}
	text := fmt.Sprintf("count 1\n0.uuid GPU-%s\n0.name Fake\n0.clock %d\n0.maxclock 2000\n0.reasons %d\n", node, 20*percent, reasons)
	file := filepath.Join(g.dir, node)
	if err := os.WriteFile(file+".new", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil { // it is read at any moment
		t.Fatal(err)
	}
}

// weighed is where the weight of the second node's engine shows.
type weighed struct {
	gpus  *fakeGPUs
	node  string // that is throttled
	ip    string // of its engine's Pod
	agent string // page of its nodeagent
	// ours and istios are the admin pages of the gateways' Envoys.
	ours, istios string
	client       *http.Client
}

func newWeighed(t *testing.T, ns string, gpus *fakeGPUs) *weighed {
	t.Helper()
	w := &weighed{gpus: gpus, node: kube.Node(1).Name, client: kube.HTTP()}
	for _, p := range podsOf(t, ns, "engine") {
		if p.node == w.node {
			w.ip, w.agent = p.ip, "http://"+p.ip+":7401/metrics"
		}
	}
	w.ours = "http://" + forwardPod(t, ns, podsOf(t, ns, "gateway")[0].name, 9901)
	w.istios = "http://" + kubectl(t, "get", "pods", "-n", ns, "-l", "gateway.networking.k8s.io/gateway-name=public", "-o", "jsonpath={.items[0].status.podIP}") + ":15000"
	return w
}

func (w *weighed) get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	client := w.client
	if strings.HasPrefix(url, w.ours) {
		client = rig.Client
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// reported is the share of its clock that the node's agent has reported of its GPU.
func (w *weighed) reported(ctx context.Context) (float64, error) {
	text, err := w.get(ctx, w.agent)
	if err != nil {
		return 0, err
	}
	return after(text, "millrace_nodeagent_gpu_sm_clock_ratio{", " ")
}

// weight is what an Envoy weighs the node's engine.
func (w *weighed) weight(ctx context.Context, admin string) (float64, error) {
	text, err := w.get(ctx, admin+"/clusters")
	if err != nil {
		return 0, err
	}
	return after(text, "", "::"+w.ip+":8000::weight::")
}

// after is the number behind a text, of the first line that begins with another one and
// has it.
func after(page, begin, text string) (float64, error) {
	for line := range strings.Lines(page) {
		if i := strings.LastIndex(line, text); i >= 0 && strings.HasPrefix(line, begin) {
			return strconv.ParseFloat(strings.TrimSpace(line[i+len(text):]), 64)
		}
	}
	return 0, fmt.Errorf("no %q in %.300s", text, page)
}

// until is when a figure is what it is to be.
func until(ctx context.Context, want float64, figure func(context.Context) (float64, error)) (time.Time, error) {
	err := rig.PollContext(ctx, backLimit, func() error {
		got, err := figure(ctx)
		if err == nil && got != want {
			err = fmt.Errorf("%v, want %v", got, want)
		}
		return err
	})
	return time.Now(), err
}

// Full weights, in our own Envoy and in Istio's.
const (
	fullOurs  = 1000
	fullIstio = 64
)

// throttle has the node's GPU run at a share of its clock, and returns how long it took from
// the agent's report until each Envoy weighed the node by it.
func (w *weighed) throttle(t *testing.T, percent int) (ours, istios time.Duration) {
	t.Helper()
	w.gpus.clock(t, w.node, percent)
	share := float64(percent) / 100
	var report, ourTime, istioTime time.Time
	g, ctx := errgroup.WithContext(t.Context())
	wait := func(at *time.Time, want float64, figure func(context.Context) (float64, error)) {
		g.Go(func() (err error) {
			*at, err = until(ctx, want, figure)
			return err
		})
	}
	wait(&report, share, w.reported)
	wait(&ourTime, share*fullOurs, func(ctx context.Context) (float64, error) { return w.weight(ctx, w.ours) })
	wait(&istioTime, share*fullIstio, func(ctx context.Context) (float64, error) { return w.weight(ctx, w.istios) })
	if err := g.Wait(); err != nil {
		t.Fatalf("GPU at %d %%: %v", percent, err)
	}
	return max(0, ourTime.Sub(report)), max(0, istioTime.Sub(report))
}

// weightsFollow measures how soon weights follow the figures of a GPU.
func (w *weighed) weightsFollow(t *testing.T) {
	const half, most = time.Second, 3 * time.Second // at Istio's Envoys; ours are faster
	var ours, istios []time.Duration
	for i := range 12 {
		a, b := w.throttle(t, []int{50, 25, 75, 100}[i%4])
		ours, istios = append(ours, a), append(istios, b)
	}
	for name, all := range map[string][]time.Duration{"our Envoy": ours, "Istio's Envoy": istios} {
		slices.Sort(all)
		p50, p99 := all[len(all)/2], all[len(all)-1]
		t.Logf("K5: report until weighed at %s: p50 %v, p99 %v", name, p50.Round(time.Millisecond), p99.Round(time.Millisecond))
		if p50 > half || p99 > most {
			t.Errorf("%s weighs by a report %v later, and %v at worst", name, p50, p99)
		}
	}
}

// number asks something else each time, same always the same, which engines have cached.
func number(i int) any { return rig.Ask(1, fmt.Sprintf("number %d", i)) }
func same(int) any     { return rig.Ask(1, "a number") }

// share sends n requests of some clients and returns the share of them that the throttled
// node answered.
func (w *weighed) share(t *testing.T, url string, n, clients int, ask func(i int) any) float64 {
	t.Helper()
	var mu sync.Mutex
	served := map[string]int{}
	var errs []error
	rig.Each(n, clients, func(i int) {
		_, a, err := rig.Complete(t.Context(), url, ask(i))
		mu.Lock()
		defer mu.Unlock()
		served[a.Header.Get("x-millrace-node")]++
		if err != nil {
			errs = append(errs, err)
		}
	})
	if len(errs) > 0 {
		t.Errorf("%d of %d failed: %v", len(errs), n, errors.Join(errs[:min(len(errs), 5)]...))
	}
	t.Logf("%d requests: %v", n, served)
	return float64(served[w.node]) / float64(n)
}
