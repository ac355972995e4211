package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/e2e/cluster"
	"millrace.dev/millrace/e2e/epdriver"
	"millrace.dev/millrace/e2e/rig"
)

// What K3 measures: a picker of a pool of 1,000 Pods, which are objects of a real API
// server; their engines are those of P7a.
const (
	poolChanges = 200 // that a Pod becomes Ready, or is not any more
	poolModule  = "sigs.k8s.io/gateway-api-inference-extension@v1.5.0"
	poolObject  = `
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: p}
spec: {selector: {matchLabels: {app: m}}, targetPorts: [{number: ` + probePort + `}], endpointPickerRef: {name: epp, port: {number: 9002}}}
`
)

// pool measures K3.
func pool(ctx context.Context, b *bench) error {
	api, err := cluster.Up(ctx, cluster.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = api.Down() }()
	var engines pageFleet
	defer engines.close()
	addresses, err := engines.listen(probeEndpoints)
	if err != nil {
		return err
	}
	pods := poolPods{api}
	if err := pods.make(ctx, addresses); err != nil {
		return err
	}
	at, err := rig.Addresses(3)
	if err != nil {
		return err
	}
	p, err := b.launch(ctx, "extproc", at[0], filepath.Join(b.bin, "extproc"), []string{"KUBECONFIG=" + api.Kubeconfig()}, "-pool", "default/p", "-listen", at[0], "-metrics", at[1])
	if err != nil {
		return err
	}
	defer p.stop()
	p.admin = at[1]
	err = rig.PollContext(ctx, time.Minute, func() error {
		n, err := p.metric(`millrace_extproc_endpoints{state="ready"}`)
		if err == nil && n != probeEndpoints {
			err = fmt.Errorf("%v endpoints", n)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := pause(ctx, probeSettle); err != nil {
		return err
	}
	cores, err := b.resting(ctx, p)
	if err != nil {
		return err
	}
	memory := p.memory()
	change, err := pods.change(ctx, p, cores)
	if err != nil {
		return err
	}
	floor, err := b.echoPicker(ctx, "echo", at[2], "10.0.0.1:8000")
	if err != nil {
		return err
	}
	defer floor.stop()
	var cpu series
	for range b.rounds {
		high, low, err := b.compareDecisions(ctx, decision{mode: epdriver.Buffered, size: bodySize, endpoints: probeEndpoints}, p, floor)
		if err != nil {
			return err
		}
		cpu.add(high.cpu, low.cpu)
	}
	for _, f := range []figure{
		{What: fmt.Sprintf("idle, %d Pods", probeEndpoints), Unit: "cores", Value: cores, Goal: "≤ 0.02"},
		{What: fmt.Sprintf("idle, %d Pods, resident", probeEndpoints), Unit: "MiB", Value: memory / (1 << 20), Goal: "≤ 64"},
		{What: fmt.Sprintf("a change of one of %d Pods", probeEndpoints), Unit: "CPU ms", Value: change},
		{What: fmt.Sprintf("a decision among %d Pods, 2 KiB", probeEndpoints), Unit: "CPU µs/decision", Value: median(cpu.value), Floor: median(cpu.floor), Ratio: cpu.ratio(), Goal: "≤ 1.2 × floor"},
	} {
		f.Row, f.Env = "K3", here(1)
		if err := b.out.add(f); err != nil {
			return err
		}
	}
	return nil
}

// poolPods are Pods that nobody runs: the test says how they are.
type poolPods struct{ api *cluster.Cluster }

// make makes a pool and its Pods, which are Ready at the addresses.
func (p poolPods) make(ctx context.Context, addresses []string) error {
	out, err := exec.CommandContext(ctx, "go", "mod", "download", "-json", poolModule).Output()
	if err != nil {
		return fmt.Errorf("go mod download %s: %w", poolModule, err)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return err
	}
	if _, err := p.api.Kubectl(ctx, "apply", "--server-side", "-f", filepath.Join(module.Dir, "config", "crd", "bases")); err != nil {
		return err
	}
	if _, err := p.api.Kubectl(ctx, "create", "serviceaccount", "default"); err != nil {
		return err
	}
	err = rig.PollContext(ctx, time.Minute, func() error { _, err := p.api.Apply(ctx, poolObject); return err })
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i, address := range addresses {
		g.Go(func() error {
			err := p.request(ctx, http.MethodPost, "", map[string]any{
				"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": podName(i), "labels": map[string]any{"app": "m"}},
				"spec": map[string]any{"nodeName": "nowhere", "containers": []any{map[string]any{"name": "c", "image": "none"}}},
			})
			if err != nil {
				return err
			}
			return p.mark(ctx, i, address, true)
		})
	}
	return g.Wait()
}

func podName(i int) string { return fmt.Sprintf("pod-%d", i) }

// mark says whether a Pod is Ready.
func (p poolPods) mark(ctx context.Context, i int, address string, ready bool) error {
	ip := address[:len(address)-len(":"+probePort)]
	status := map[bool]string{true: "True", false: "False"}[ready]
	return p.request(ctx, http.MethodPatch, "/"+podName(i)+"/status", map[string]any{"status": map[string]any{
		"phase": "Running", "podIP": ip, "podIPs": []any{map[string]any{"ip": ip}}, "conditions": []any{map[string]any{"type": "Ready", "status": status}},
	}})
}

func (p poolPods) request(ctx context.Context, method, path string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	kind := "application/json"
	if method == http.MethodPatch {
		kind = "application/merge-patch+json"
	}
	_, err = p.api.API(ctx, method, "/api/v1/namespaces/default/pods"+path, kind, io.Reader(bytes.NewReader(b)))
	return err
}

// change returns what a change of a Pod costs beyond the idle picker, in milliseconds of
// CPU time. Each change is taken in by itself.
func (p poolPods) change(ctx context.Context, picker *program, idle float64) (float64, error) {
	before, err := picker.ran()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	for i := range poolChanges {
		if err := p.mark(ctx, 0, fmt.Sprintf("127.1.0.1:%s", probePort), i%2 == 1); err != nil {
			return 0, err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return 0, err
		}
	}
	after, err := picker.ran()
	used := after - before - time.Duration(idle*float64(time.Since(began)))
	return float64(used.Microseconds()) / 1000 / poolChanges, err
}
