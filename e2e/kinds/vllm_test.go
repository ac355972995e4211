//go:build vllm

package kinds

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/proc"
	"millrace.dev/millrace/internal/wire"
)

// slow is how long a vLLM may take to start where others need the CPU, too.
const slow = 25 * time.Minute

// vllmMesh starts a mesh of two nodes from models of a vLLM on CPUs.
func vllmMesh(t *testing.T, models string) *rig.Mesh {
	t.Helper()
	for name, value := range map[string]string{"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"} {
		t.Setenv(name, value)
	}
	config := strings.ReplaceAll(models, "MODEL", rig.MustCached(t, "vllm/model"))
	m := rig.OwnMeshWithin(t, slow, "-nodes", "2", "-vllm", rig.MustCached(t, "vllm/venv"), "-config", rig.Write(t, t.TempDir()+"/vllm.yaml", config))
	t.Logf("figure: ready after %v", m.Took.Round(time.Second))
	return m
}

// object is a model of the mesh with a backend's settings.
func object(name string, replicas int, settings string) string {
	return fmt.Sprintf(`
---
apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: %s}
spec:
  weights: MODEL
  replicas: %d
  backend:
    kind: vllm
    slots: 4
    %s
`, name, replicas, settings)
}

// small are the arguments of a model that is small enough for a laptop.
const small = `--dtype, float32, --block-size, "32", --num-gpu-blocks-override, "256"`

// greedy are the questions whose answers are compared.
var greedy = []string{"Name a colour.", "Count to ten.", "What is a mill?", "Where do rivers end?", "Say nothing at all."}

// TestVLLM has two replicas, then ranks of one.
func TestVLLM(t *testing.T) {
	var whole []string
	t.Run("two replicas", func(t *testing.T) {
		s := &subject{Mesh: vllmMesh(t, object("tiny", 2, "args: ["+small+", --enforce-eager]")), model: "tiny"}
		s.busy = func() (n float64, err error) {
			for _, node := range []string{"node-a", "node-b"} {
				state, err := s.ReadState()
				if err != nil {
					return 0, err
				}
				running, err := rig.SumMetric(state.Find("backend@" + node).Addrs["http"], "vllm:num_requests_running")
				if err != nil {
					return 0, err
				}
				n += running
			}
			return n, nil
		}
		s.cases(t)
		t.Run("what engine does not know passes", s.passes)
		t.Run("KV events", s.events)
		whole = s.answers(t, "tiny")
		t.Run("kill -9 of the engine core", func(t *testing.T) { s.hurt(t, "node-a", "EngineCore", syscall.SIGKILL, "backend") })
		t.Run("hang of the engine core", func(t *testing.T) { s.hurt(t, "node-b", "EngineCore", syscall.SIGSTOP, "backend stopped") })
		t.Run("kill -9 of engine", s.orphans)
	})
	t.Run("ranks", func(t *testing.T) {
		eager := `compilation-config, '{"mode":1,"backend":"eager"}'`
		m := vllmMesh(t, object("tensors", 1, "tensorParallel: 2\n    args: ["+small+", --enforce-eager]")+
			object("layers", 1, "pipelineParallel: 2\n    args: ["+small+", --"+eager+"]"))
		s := &subject{Mesh: m}
		for name, ranks := range map[string]string{"tensors": "tensor", "layers": "pipeline"} {
			got := s.answers(t, name)
			for i, text := range got {
				if text != whole[i] {
					t.Errorf("%s, %q: %q, whole %q", name, greedy[i], text, whole[i])
				}
			}
			t.Logf("figure: %s-parallel 2: %d answers of 32 tokens equal those of the whole model", ranks, len(got))
		}
		if table := m.StatusTable(t); !strings.Contains(table, "2 of 2 replicas ready") {
			t.Errorf("status:\n%s", table)
		}
	})
}

// answers are those of a model to all questions.
func (s *subject) answers(t *testing.T, model string) (all []string) {
	t.Helper()
	for _, text := range greedy {
		q := rig.Ask(32, text)
		q.Model = model
		c, _, err := rig.Complete(t.Context(), s.URL(t, rig.ChatPath), q)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c.Text())
	}
	return all
}

// passes asks an engine for what only vLLM knows.
func (s *subject) passes(t *testing.T) {
	engine := "http://" + s.Addr(t, "engine@node-a", "http")
	for path, want := range map[string]int{"/tokenize": http.StatusOK, "/reset_prefix_cache": http.StatusNotFound} {
		if a, err := rig.Post(t.Context(), engine+path, map[string]any{"model": "tiny", "prompt": "Hello there"}); err != nil || a.Status != want {
			t.Errorf("%s: %d %s %v, want %d", path, a.Status, a.Body, err, want)
		}
	}
}

// events shows one server a prompt past everything, and asks for it through Envoy: it
// goes there, as the server has published that it has it.
func (s *subject) events(t *testing.T) {
	const cached = "millrace_extproc_engines_in_cache_tokens"
	extproc := s.Addr(t, "extproc", "metrics")
	for n, node := range []string{"node-b", "node-a", "node-b"} {
		text := fmt.Sprintf("Story %d of the mill: %s", n, strings.Repeat(fmt.Sprintf("wheel %d turns and turns again. ", n), 40))
		before := rig.MustMetric(t, extproc, cached)
		direct, _, err := rig.Complete(t.Context(), "http://"+s.Addr(t, "backend@"+node, "http")+rig.ChatPath, s.ask(2, text))
		if err != nil {
			t.Fatal(err)
		}
		// Asked before extproc knows, another replica would have it, too.
		took := rig.Wait(t, 10*time.Second, "extproc knows what "+node+" has", func() error {
			if now, err := rig.Metric(extproc, cached); err != nil || now < before+float64(direct.Usage.Prompt)/2 {
				return fmt.Errorf("%v tokens cached, %v before: %v", now, before, err)
			}
			return nil
		})
		c, a, err := rig.Complete(t.Context(), s.URL(t, rig.ChatPath), s.ask(2, text))
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Header.Get(wire.NodeHeader); got != node || c.Usage.Details.Cached < direct.Usage.Prompt/2 {
			t.Errorf("asked at %s: %d of %d tokens cached; %s has the prompt", got, c.Usage.Details.Cached, c.Usage.Prompt, node)
		}
		t.Logf("figure: what %s alone has: known after %v, asked there, %d of %d tokens cached", node, took.Round(time.Millisecond), c.Usage.Details.Cached, c.Usage.Prompt)
	}
}

// member finds a process of a node's group by a part of its name.
func (s *subject) member(t *testing.T, node, name string) int {
	t.Helper()
	leader := s.Process(t, "backend@"+node).PID
	pids, err := proc.Group(leader)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && pid != leader && strings.Contains(string(b), name) {
			return pid
		}
	}
	t.Fatalf("no %s in the group of %d: %s", name, leader, strings.Join(rig.Describe(pids), "; "))
	return 0
}

// hurt sends a signal to a process of a node's group under load: no request may fail,
// the replica must be out for a reason, and the whole group be started again.
func (s *subject) hurt(t *testing.T, node, name string, sig syscall.Signal, reason string) {
	before := s.Process(t, "backend@"+node)
	pids, err := proc.Group(before.PID)
	if err != nil {
		t.Fatal(err)
	}
	load := rig.StartLoad(t, s.URL(t, rig.ChatPath), 3, func(client, n int) any { return s.ask(4, fmt.Sprintf("client %d, question %d", client, n)) })
	load.More(t, 6)
	began := time.Now()
	if err := syscall.Kill(s.member(t, node, name), sig); err != nil {
		t.Fatal(err)
	}
	s.out(t, reason)
	rig.Wait(t, slow, "the replica is back", func() error { return s.Whole(t.Context()) })
	back := time.Since(began)
	load.More(t, 6)
	load.Stop()
	load.MustAllSucceed(t)
	if now := s.Process(t, "backend@"+node); now.PID == before.PID || now.Restarts != before.Restarts+1 {
		t.Errorf("%+v, before %+v", now, before)
	}
	for _, pid := range pids {
		if proc.Alive(pid) {
			t.Errorf("%s is left", rig.Describe([]int{pid}))
		}
	}
	t.Logf("figure: whole again after %v; %v", back.Round(time.Second), load)
}

// orphans kills an engine: its group must not outlive it.
func (s *subject) orphans(t *testing.T) {
	pids, err := proc.Group(s.Process(t, "backend@node-a").PID)
	if err != nil || len(pids) < 3 {
		t.Fatal(pids, err)
	}
	rig.Kill(t, s.Process(t, "engine@node-a").PID)
	took := rig.Wait(t, 10*time.Second, "the group has ended", func() error {
		for _, pid := range pids {
			if proc.Alive(pid) {
				return fmt.Errorf("%s is left", rig.Describe([]int{pid}))
			}
		}
		return nil
	})
	t.Logf("figure: %d processes ended %v after engine", len(pids), took.Round(time.Millisecond))
}
