package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/proc"
)

// TestShardedAnswersEqualTheWholeOnes asks both replicas' engines directly: the
// model split over two nodes must say the very same as the whole one.
func TestShardedAnswersEqualTheWholeOnes(t *testing.T) {
	m := shared(t)
	r := m.Replicas(t)
	for _, text := range []string{
		"What is the capital of France?",
		"Count from one to ten.",
		"Write a line about the sea.",
		"def fib(n):",
		"Übersetze: good morning",
	} {
		t.Run(text, func(t *testing.T) {
			whole, sharded := m.direct(t, r.Whole, text), m.direct(t, r.Head, text)
			if whole != sharded {
				t.Errorf("sharded %q, whole %q", sharded, whole)
			}
			if len(whole) < 8 {
				t.Errorf("answer %q is too short to prove anything", whole)
			}
		})
	}
}

// direct asks the engine of one node, past Envoy.
func (m *mesh) direct(t *testing.T, node, text string) string {
	t.Helper()
	a := rig.MustPost(t, "http://"+m.Addr(t, "engine@"+node, "http")+"/v1/chat/completions", rig.Ask(16, text))
	if got := a.Header.Get("x-millrace-node"); got != node {
		t.Errorf("x-millrace-node = %q, want %q", got, node)
	}
	return rig.Decode[rig.Completion](t, a.Body).Choices[0].Message.Content
}

// layersOnRPC matches the backend's log of a buffer that lies on a shard.
var layersOnRPC = regexp.MustCompile(`RPC\d+\[([0-9.:]+)\] model buffer size = +([0-9.]+) MiB`)

// TestBothShardsHoldAPart reads the memory of processes: each shard has half of the
// weights in its memory, and the backend says which.
func TestBothShardsHoldAPart(t *testing.T) {
	m := shared(t)
	r := m.Replicas(t)
	const leastRSS = 60 << 20 // a shard without layers has 40 MiB
	for _, n := range []string{r.Head, r.Tail} {
		p := m.Process(t, "shard@"+n)
		st, err := proc.State(p.PID)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d MiB resident", p.Name, st.RSS>>20)
		if st.RSS < leastRSS {
			t.Errorf("%s: %d MiB resident, want at least %d: it holds no part of the model", p.Name, st.RSS>>20, leastRSS>>20)
		}
	}
	b, err := os.ReadFile(filepath.Join(m.Dir, "logs", "backend@"+r.Head+".log"))
	if err != nil {
		t.Fatal(err)
	}
	found := layersOnRPC.FindAllStringSubmatch(string(b), -1)
	parts := map[string]string{} // MiB by shard address
	for _, f := range found {
		parts[f[1]] = f[2]
	}
	t.Logf("the backend's log: %s", fmt.Sprint(parts))
	for _, n := range []string{r.Head, r.Tail} {
		if addr := m.Addr(t, "shard@"+n, "rpc"); parts[addr] == "" {
			t.Errorf("the backend's log names no part on %s (%s)", n, addr)
		}
	}
}
