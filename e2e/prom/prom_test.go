// Package prom asks a real Prometheus, which scrapes a mesh by the configuration in
// manifests/watch.md, the queries of that page.
//
// Its one rule: configuration and queries are read from the page, so that what an operator
// copies is what is tested; each query is asked while all is well, and while that goes
// wrong which it is to find.
package prom

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

func TestMain(m *testing.M) { os.Exit(rig.Main(m)) }

// policy has few places, so that a queue is soon there, and budgets for those who name a
// tenant. How many replicas it should have is recommended.
const policy = `
apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
spec: {replicas: 2, layout: [{stages: 2}, {stages: 1}], scaling: {mode: recommend, maxReplicas: 4}}
---
apiVersion: millrace.dev/v1alpha1
kind: Policy
metadata: {name: default}
spec:
  flow: {maxWait: {sheddable: 1s}, tenants: {header: x-tenant, requestsPerMinute: 12}}
`

// watched is a mesh and the Prometheus that scrapes it.
type watched struct {
	*rig.Mesh
	dir      string // of Prometheus' configuration
	page     *page
	prom     *rig.Prometheus
	replicas rig.Replicas
}

// TestFiveQuestions runs the parts in order on one mesh.
func TestFiveQuestions(t *testing.T) {
	w := watch(t)
	began := time.Now()
	l := w.load(t, 2, 8, "standard")
	t.Run("all is well", w.well)
	well := time.Now()
	t.Run("how much is found in caches?", w.cached)
	t.Run("which engine is slow?", w.slowEngine)
	t.Run("who is hurt?", w.hurt)
	t.Run("who waits in a queue?", w.queue)
	l.MustAllSucceed(t)
	t.Run("is it well?", w.unwell)
	t.Run("which engine fails?", w.failing)
	t.Run("control plane", w.withoutXDS)
	w.gpuNode(t) // which runs until all has been asked
	t.Run("dashboards", func(t *testing.T) { w.boards(t, began, well) })
	t.Run("alerts", func(t *testing.T) { w.fired(t, began, well) })
	if err := w.page.unasked(); err != nil {
		t.Errorf("manifests/watch.md: no part of this test asks %v", err)
	}
}

// load is a steady load of answers of so many tokens: clients ask ever more of one text, so
// that there is something to find in caches, and each text is a tenant's of its own, so that
// no budget is used up.
func (w *watched) load(t *testing.T, clients, tokens int, priority string) *rig.Load {
	t.Helper()
	const turns = 10
	url := w.URL(t, rig.ChatPath)
	return rig.StartLoadOf(t, clients, func(ctx context.Context, client, n int) (rig.Outcome, error) {
		tenant := fmt.Sprintf("%s-%d-%d", priority, client, n/turns)
		text := tenant + " counts:"
		for i := range n % turns {
			text += fmt.Sprintf(" %d", i)
		}
		header := []string{"x-tenant", tenant, "x-millrace-priority", priority}
		ask := rig.Ask(tokens, text)
		if ask.Stream = client%2 == 1; ask.Stream {
			_, err := rig.Stream(ctx, url, ask, nil, header...)
			return rig.Outcome{}, err
		}
		_, _, err := rig.Complete(ctx, url, ask, header...)
		return rig.Outcome{}, err
	})
}

// watch starts a mesh and a Prometheus as the page says.
func watch(t *testing.T) *watched {
	t.Helper()
	p := readPage(t)
	dir := t.TempDir()
	m := rig.OwnMesh(t, "-config", rig.Write(t, filepath.Join(dir, "policy.yaml"), policy))
	m.AwaitWhole(t)
	file := strings.Replace(p.block(t, "Scrape", "yaml", 0), pageInterval, interval, 1)
	file = strings.Replace(file, "files: [targets.json]", "files: [targets.json, gpu.json]", 1) + "rule_files: [rules.yaml]\n"
	rig.Write(t, filepath.Join(dir, "rules.yaml"), readAlerts(t).quick())
	rig.Write(t, filepath.Join(dir, "gpu.json"), "[]")
	rig.Write(t, filepath.Join(dir, "prometheus.yml"), file)
	targets, _, ok := strings.Cut(p.block(t, "Scrape", "sh", 0), "prometheus --config.file")
	if !ok {
		t.Fatal("manifests/watch.md: its script does not end by starting Prometheus")
	}
	cmd := exec.Command("sh", "-c", strings.Replace(targets, ".millrace/state.json", m.File("state.json"), 1))
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := rig.Promtool(t, "", "check", "config", filepath.Join(dir, "prometheus.yml")); err != nil {
		t.Errorf("promtool check config: %v: %s", err, out)
	}
	return &watched{m, dir, p, rig.StartPrometheus(t, filepath.Join(dir, "prometheus.yml")), m.Replicas(t)}
}

// await waits until the n-th query of a section is answered as cond has it, and returns
// the answer.
func (w *watched) await(t *testing.T, section string, n int, cond func([]rig.Sample) error) []rig.Sample {
	t.Helper()
	query := w.page.query(t, section, n)
	var got []rig.Sample
	took := rig.Wait(t, rig.BackLimit, section, func() (err error) {
		if got, err = w.prom.Query(query); err != nil {
			return rig.Final(err)
		}
		if err = cond(got); err != nil {
			err = fmt.Errorf("%w: %v", err, got)
		}
		return err
	})
	t.Logf("%s query %d: %v after %v", section, n+1, got, took)
	return got
}

// none is a condition: there is no series.
func none(got []rig.Sample) error {
	if len(got) > 0 {
		return errors.New("want none")
	}
	return nil
}

// only returns a condition: all series have these labels, pairs of name and value, and
// there is one.
func only(labels ...string) func([]rig.Sample) error {
	return func(got []rig.Sample) error {
		if len(got) == 0 {
			return fmt.Errorf("want %v", labels)
		}
		for _, s := range got {
			for i := 0; i < len(labels); i += 2 {
				if s.Labels[labels[i]] != labels[i+1] {
					return fmt.Errorf("want %v", labels)
				}
			}
		}
		return nil
	}
}

// between returns a condition: there is one series, with a value from low to high.
func between(low, high float64) func([]rig.Sample) error {
	return func(got []rig.Sample) error {
		if len(got) != 1 || !(got[0].Value >= low && got[0].Value <= high) {
			return fmt.Errorf("want one value from %v to %v", low, high)
		}
		return nil
	}
}

// Sections of the page.
const (
	isWell  = "Is it well?"
	whoHurt = "Who is hurt?"
	slow    = "Which engine is slow?"
	caches  = "How much is found in caches?"
	queues  = "Who waits in a queue?"
	names   = "Names that other dashboards know"
)

// well shows that every program is scraped, and that what is to be empty is.
func (w *watched) well(t *testing.T) {
	want := 0
	for _, p := range w.State(t).Processes {
		if p.Addrs["metrics"] != "" || p.Addrs["admin"] != "" {
			want++
		}
	}
	rig.Wait(t, rig.BackLimit, "every program is scraped", func() error {
		got, err := w.prom.Query("up == 1")
		if err == nil && len(got) != want {
			err = fmt.Errorf("%d of %d programs", len(got), want)
		}
		return err
	})
	for n := range 3 {
		w.await(t, isWell, n, none)
	}
	w.await(t, isWell, 3, between(0, 0))
	w.await(t, whoHurt, 0, none)
	w.await(t, whoHurt, 1, none)
	w.await(t, whoHurt, 2, none)
	w.await(t, whoHurt, 3, only("model", rig.Model, "priority", "standard"))
	w.await(t, slow, 1, none)
	w.await(t, queues, 0, none)
}

// cached shows that what conversations repeat is found in caches.
func (w *watched) cached(t *testing.T) {
	w.await(t, names, 0, between(0.001, 2.5))
	if got := w.await(t, caches, 0, between(0.2, 1)); got[0].Labels["model"] != rig.Model {
		t.Errorf("of model %v", got[0].Labels)
	}
}

// slowEngine slows the whole replica's backend down: it must be named first, far below its
// speed of before.
func (w *watched) slowEngine(t *testing.T) {
	both := func(got []rig.Sample) error {
		if len(got) != 2 {
			return errors.New("want two engines")
		}
		return nil
	}
	before := w.await(t, slow, 0, both)
	engine := w.Addr(t, "engine@"+w.replicas.Whole, "http")
	was := before[slices.IndexFunc(before, func(s rig.Sample) bool { return s.Labels["endpoint"] == engine })].Value
	normal := w.SlowDown(t, "backend@"+w.replicas.Whole, "backend@"+w.replicas.Head, "shard@"+w.replicas.Head, "shard@"+w.replicas.Tail)
	w.await(t, slow, 0, func(got []rig.Sample) error {
		if err := both(got); err != nil {
			return err
		}
		if got[0].Labels["endpoint"] != engine || got[0].Value > was*0.7 {
			return fmt.Errorf("want %s first, far below the %.0f tokens a second of before", engine, was)
		}
		return nil
	})
	normal()
}

// hurt has a tenant use up its budget: its priority is hurt, and no other.
func (w *watched) hurt(t *testing.T) {
	shed := 0
	for i := range 24 {
		a, err := rig.Post(t.Context(), w.URL(t, rig.ChatPath), rig.Ask(1, fmt.Sprintf("greedy %d", i)), "x-tenant", "greedy", "x-millrace-priority", "sheddable")
		if err != nil {
			t.Fatal(err)
		}
		if a.Status == http.StatusTooManyRequests {
			shed++
		}
	}
	if shed == 0 {
		t.Fatal("no request was refused")
	}
	w.await(t, whoHurt, 0, only("model", rig.Model, "priority", "sheddable", "outcome", "shed"))
	w.await(t, whoHurt, 1, only("what", "requests"))
	w.await(t, whoHurt, 2, func(got []rig.Sample) error {
		// Its series begin when it comes into use: what is counted before the first scrape is no rate.
		if _, err := rig.Post(t.Context(), w.URL(t, rig.ChatPath), rig.Ask(1, "greedy"), "x-tenant", "greedy", "x-millrace-priority", "sheddable"); err != nil {
			return err
		}
		return only("tenant", "greedy", "outcome", "shed")(got)
	})
	w.await(t, whoHurt, 0, none)
}

// queue sends more critical requests than there are places.
func (w *watched) queue(t *testing.T) {
	flood := w.load(t, 24, 8, "critical")
	critical := func(got []rig.Sample) error {
		for _, s := range got {
			if only("model", rig.Model, "priority", "critical")([]rig.Sample{s}) == nil && s.Value > 0 {
				return nil
			}
		}
		return errors.New("want critical requests")
	}
	w.await(t, queues, 0, critical)
	w.await(t, queues, 1, critical)
	// What may wait for a second only is refused while critical requests wait.
	rig.Wait(t, rig.BackLimit, "a sheddable request is refused", func() error {
		a, err := rig.Post(t.Context(), w.URL(t, rig.ChatPath), rig.Ask(1, "hurry"), "x-millrace-priority", "sheddable")
		if err == nil && a.Status != http.StatusTooManyRequests {
			err = fmt.Errorf("status %d", a.Status)
		}
		return err
	})
	flood.MustAllSucceed(t)
}

// unwell suspends a nodeagent: Prometheus can't reach it, and its node is not ready.
func (w *watched) unwell(t *testing.T) {
	agent := w.Process(t, "nodeagent@"+w.replicas.Whole)
	resume := rig.Suspend(t, agent.PID)
	w.await(t, isWell, 0, only("instance", agent.Name))
	w.await(t, isWell, 1, between(1, 1))
	w.await(t, isWell, 2, between(1, 1))
	resume()
	for n := range 3 {
		w.await(t, isWell, n, none)
	}
}

// failing kills what serves: requests fail at the public address, and their engines are
// named.
func (w *watched) failing(t *testing.T) {
	w.AwaitWhole(t)
	var engines []string
	for _, node := range []string{w.replicas.Head, w.replicas.Whole} {
		engines = append(engines, w.Addr(t, "engine@"+node, "http"))
		rig.Kill(t, w.Process(t, "engine@"+node).PID)
	}
	rig.Wait(t, rig.BackLimit, "requests fail", func() error {
		a, err := rig.Post(t.Context(), w.URL(t, rig.ChatPath), rig.Ask(1, "anybody?"))
		if err == nil && a.Status < 500 {
			err = fmt.Errorf("status %d", a.Status)
		}
		return err
	})
	w.await(t, isWell, 3, between(0.001, 1))
	w.await(t, slow, 1, func(got []rig.Sample) error {
		if len(got) == 0 || !slices.Contains(engines, got[0].Labels["endpoint"]) {
			return fmt.Errorf("want one of %v", engines)
		}
		return nil
	})
	w.AwaitWhole(t)
	rig.Kill(t, w.Process(t, "backend@"+w.replicas.Whole).PID)
	rig.Wait(t, rig.BackLimit, "a backend that was killed is counted", func() error {
		got, err := w.prom.Query("sum_over_time((sum(increase(millrace_engine_restarts_total" + span + ")) > bool 0)" + "[5s:1s]) >= 3")
		if err == nil && len(got) == 0 {
			err = errors.New("no restart")
		}
		return err
	})
	w.AwaitWhole(t)
}

// theirs are names that promtool does not like, and that are not ours to choose: engine
// shows what others watch of vLLM by vLLM's names.
var theirs = regexp.MustCompile(`(?m)^vllm:[a-z0-9_]+ metric names should not contain ':'\n`)

// TestMetricsAreWellFormed has promtool read the page of each of our programs.
func TestMetricsAreWellFormed(t *testing.T) {
	m := rig.SharedMesh(t)
	rig.MustPost(t, m.URL(t, rig.ChatPath), rig.Ask(4, "Say something."))
	for _, p := range m.State(t).Processes {
		if p.Addrs["metrics"] == "" {
			continue
		}
		metrics, err := rig.Get("http://" + p.Addrs["metrics"] + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		out, err := rig.Promtool(t, string(metrics), "check", "metrics")
		if rest := theirs.ReplaceAllString(out, ""); rest != "" || err != nil && out == "" {
			t.Errorf("%s: promtool check metrics: %v: %s", p.Name, err, rest)
		}
	}
}

// documented is the name of a metric of ours in a document; a name of which a row gives
// only the end is not found.
var documented = regexp.MustCompile("`(millrace_[a-z_]+)")

// TestDocumentedMetricsExist finds each metric that a document names on a program's page: of
// a mesh, or of extproc alone. What there is with -pool only is left out.
func TestDocumentedMetricsExist(t *testing.T) {
	m := rig.SharedMesh(t)
	exist := map[string]bool{}
	add := func(admin string) {
		all, err := rig.Metrics(admin)
		if err != nil {
			t.Fatal(err)
		}
		for series := range all {
			name, _, _ := strings.Cut(series, "{")
			exist[name] = true
			for _, part := range []string{"_sum", "_count", "_bucket"} {
				exist[strings.TrimSuffix(name, part)] = true
			}
		}
	}
	for _, p := range m.State(t).Processes {
		if admin := p.Addrs["metrics"]; admin != "" {
			add(admin)
		}
	}
	addrs := rig.MustAddresses(t, 2)
	rig.StartProgram(t, "extproc", "-fleet", filepath.Join(rig.Root(), "envoy", "fleet.yaml"), "-listen", addrs[0], "-metrics", addrs[1])
	rig.Wait(t, rig.BackLimit, "extproc alone serves", func() error { _, err := rig.Get("http://" + addrs[1] + "/healthz"); return err })
	add(addrs[1])
	found := 0
	for _, page := range []string{"extproc/README.md", "envoy/README.md", "manifests/operate.md", "manifests/watch.md"} {
		for line := range strings.Lines(rig.Read(t, filepath.Join(rig.Root(), page))) {
			for _, m := range documented.FindAllStringSubmatch(line, -1) {
				found++
				if !exist[m[1]] && !strings.Contains(line, "with `-pool`:") {
					t.Errorf("%s names %s, which no program shows", page, m[1])
				}
			}
		}
	}
	if found < 40 {
		t.Errorf("%d metrics found in the documents, want far more", found)
	}
}

// withoutXDS suspends xds: extproc goes by its last state.
func (w *watched) withoutXDS(t *testing.T) {
	resume := rig.Suspend(t, w.Process(t, "xds").PID)
	rig.Wait(t, rig.BackLimit, "extproc misses xds", func() error {
		got, err := w.prom.Query("millrace_extproc_xds_connected == 0")
		if err == nil && len(got) == 0 {
			err = errors.New("it is connected")
		}
		return err
	})
	resume()
	w.AwaitWhole(t)
}
