//go:build vllm

package noxds

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// adapters are the LoRA adapters that the engines may load, two at a time.
var adapters = []string{"poet", "clerk", "judge"}

// kvBlocks is how many blocks of 32 tokens an engine's cache has.
const kvBlocks = 256

// pair is a fleet of two real vLLM, whose events go to extproc.
type pair struct {
	*fleet
	events []int // ports at which extproc listens for each
	asked  int   // requests through Envoy
}

// newPair starts everything. The engines take minutes to start.
func newPair(t *testing.T) *pair {
	t.Helper()
	free := rig.MustPorts(t, 8)
	p := &pair{fleet: &fleet{t: t, dir: t.TempDir(), engines: make([]*rig.Process, 2)}, events: free[6:]}
	p.ports.engines = [3]int{free[0], free[1]}
	p.ports.gateway, p.ports.admin, p.ports.extproc, p.ports.metric = free[2], free[3], free[4], free[5]
	p.writeTokenizer(t)
	p.write(t, "fleet.yaml", p.file(t, 0, 1))
	p.startExtproc()
	for i := range p.engines {
		p.startVLLM(t, i)
	}
	p.write(t, "envoy.yaml", p.adapt(t, "standalone.yaml"))
	rig.StartEnvoy(t, filepath.Join(p.dir, "envoy.yaml"), 2)
	for i := range p.engines {
		p.awaitStart(t, i)
	}
	p.await(t, "Envoy has both", func() error { return p.hosts(2) })
	p.await(t, "extproc has no condition", p.ready)
	return p
}

// file is the fleet's file, with some of the engines.
func (p *pair) file(t *testing.T, engines ...int) string {
	var b strings.Builder
	b.WriteString("endpoints:\n")
	for _, i := range engines {
		fmt.Fprintf(&b, "  - {address: %q, models: [smollm2, %s], type: vllm, kvEvents: {listen: %q}}\n",
			rig.Address(p.ports.engines[i]), strings.Join(adapters, ", "), rig.Address(p.events[i]))
	}
	b.WriteString("models:\n")
	for _, name := range append([]string{"smollm2"}, adapters...) {
		fmt.Fprintf(&b, "  - {name: %s, tokenizer: %q}\n", name, filepath.Join(p.dir, "tokenizer.json"))
	}
	return b.String() + "policy: {explain: true, flow: {gatewayTimeout: 60s}}\n"
}

// startVLLM starts an engine.
func (p *pair) startVLLM(t *testing.T, i int) {
	t.Helper()
	model := rig.MustCached(t, "vllm/model")
	args := []string{
		"serve", model, "--tokenizer", p.dir, "--chat-template", filepath.Join(p.dir, "chat_template.jinja"), "--trust-request-chat-template",
		"--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--host", "127.0.0.1", "--port", strconv.Itoa(p.ports.engines[i]), "--served-model-name", "smollm2",
		"--dtype", "float32", "--enforce-eager", "--block-size", "32", "--num-gpu-blocks-override", strconv.Itoa(kvBlocks),
		"--max-model-len", "4096", "--enable-prompt-tokens-details",
		"--kv-events-config", fmt.Sprintf(`{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://%s"}`, rig.Address(p.events[i])),
		"--enable-lora", "--max-loras", "2", "--max-cpu-loras", "2", "--max-lora-rank", "8", "--lora-modules",
	}
	for _, name := range adapters {
		args = append(args, name+"="+filepath.Join(model, "adapters", name))
	}
	cmd := exec.Command(rig.MustCached(t, "vllm/venv/bin/vllm"), args...)
	cmd.Env = append(os.Environ(), "VLLM_CPU_OMP_THREADS_BIND=nobind", "OMP_NUM_THREADS=1", "VLLM_HOST_IP=127.0.0.1",
		"GLOO_SOCKET_IFNAME=lo", "HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "VLLM_CPU_KVCACHE_SPACE=1", "VLLM_SERVER_DEV_MODE=1")
	p.engines[i] = rig.Start(p.t, fmt.Sprintf("vllm %d", i), cmd)
}

// awaitStart waits until an engine serves: minutes, where others want the CPU, too.
func (p *pair) awaitStart(t *testing.T, i int) {
	t.Helper()
	took := rig.Wait(t, 25*time.Minute, fmt.Sprintf("engine %d serves", i), func() error {
		select {
		case <-p.engines[i].Done():
			return rig.Final(fmt.Errorf("it ended: %v", p.engines[i].Err()))
		default:
		}
		return rig.Healthy(rig.Address(p.ports.engines[i]))
	})
	t.Logf("engine %d serves after %.0f s", i, took.Seconds())
}

// usage is what an engine says of a prompt.
type usage struct {
	prompt, cached int
	answer         string
}

// post sends a request to a port.
func post(port int, path string, body map[string]any) (usage, error) {
	a, err := rig.Post(context.Background(), "http://"+rig.Address(port)+path, body)
	if err == nil && a.Status != http.StatusOK {
		err = fmt.Errorf("status %d: %.300s", a.Status, a.Body)
	}
	if err != nil {
		return usage{}, err
	}
	var c struct {
		rig.Completion
		Count int `json:"count"`
	}
	if err := json.Unmarshal(a.Body, &c); err != nil {
		return usage{}, err
	}
	u := usage{prompt: c.Usage.Prompt + c.Count, cached: c.Usage.Details.Cached}
	if len(c.Choices) > 0 {
		u.answer = c.Choices[0].Message.Content
	}
	return u, nil
}

// chat is the body of a request for a short answer.
func chat(model string, messages ...rig.Message) map[string]any {
	return map[string]any{"model": model, "messages": messages, "max_tokens": 4, "temperature": 0}
}

// direct sends a prompt to an engine past extproc, and waits until extproc has applied
// its events.
func (p *pair) direct(t *testing.T, i int, model, text string) usage {
	t.Helper()
	before := p.metric(t, "millrace_extproc_kv_batches_total")
	u, err := post(p.ports.engines[i], "/v1/chat/completions", chat(model, rig.User(text)))
	if err != nil {
		t.Fatal(err)
	}
	p.await(t, "extproc applies its events", func() error {
		if p.metric(t, "millrace_extproc_kv_batches_total") == before {
			return errors.New("extproc has applied nothing")
		}
		return nil
	})
	return u
}

// metric is a number of extproc's metrics.
func (p *pair) metric(t *testing.T, name string) float64 {
	t.Helper()
	return rig.MustMetric(t, p.admin(), name)
}

// predicted is what extproc said of a request.
type predicted struct {
	port           int // of the engine
	cached, prompt int
	text           string
}

var (
	decisionText = regexp.MustCompile(`"decision":"\w+ 127\.0\.0\.1:(\d+)[^"]*"`)
	cachedText   = regexp.MustCompile(`"expected_cached_tokens":"?(\d+)`)
	promptText   = regexp.MustCompile(`"prompt_tokens":"?(\d+)`)
)

// last returns what extproc said of the last so many requests.
func (p *pair) last(t *testing.T, n int) (all []predicted) {
	t.Helper()
	p.await(t, "the access log has all requests", func() error {
		b, err := os.ReadFile(filepath.Join(p.dir, "access.log"))
		if lines := bytes.Count(b, []byte("\n")); err != nil || lines < p.asked {
			return fmt.Errorf("%d lines in the access log, want %d: %v", lines, p.asked, err)
		}
		return nil
	})
	for line := range strings.Lines(p.decisions(n)) {
		d := predicted{text: strings.TrimSpace(line)}
		for what, n := range map[*regexp.Regexp]*int{decisionText: &d.port, cachedText: &d.cached, promptText: &d.prompt} {
			m := what.FindStringSubmatch(line)
			if m == nil {
				t.Fatalf("%s: nothing in %s", what, line)
			}
			*n, _ = strconv.Atoi(m[1])
		}
		all = append(all, d)
	}
	return all
}

// through sends a request through Envoy.
func (p *pair) through(t *testing.T, path string, body map[string]any) usage {
	t.Helper()
	p.asked++
	u, err := post(p.ports.gateway, path, body)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// ask asks through Envoy and returns the engine that extproc chose, and what it and
// the engine say.
func (p *pair) ask(t *testing.T, model string, messages ...rig.Message) (i int, d predicted, u usage) {
	t.Helper()
	u = p.through(t, "/v1/chat/completions", chat(model, messages...))
	d = p.last(t, 1)[0]
	if d.port == p.ports.engines[1] {
		i = 1
	}
	if d.cached != u.cached || d.prompt != u.prompt {
		t.Errorf("extproc says %d of %d tokens cached, the engine %d of %d (%s)", d.cached, d.prompt, u.cached, u.prompt, d.text)
	}
	return i, d, u
}

// long is a text of its own, of about 12 tokens for each time.
func long(about string, times int) string {
	var b strings.Builder
	for i := range times {
		fmt.Fprintf(&b, "Part %d of what is to be told about %s begins here. ", i, about)
	}
	return b.String()
}

// TestVLLM runs the parts in order on one pair of real engines.
func TestVLLM(t *testing.T) {
	p := newPair(t)
	t.Run("prompts are what the unit tests take them for", p.testRecorded)
	t.Run("counts and blocks of prompts agree", p.testPrompts)
	t.Run("turns go to where their blocks are", p.testTurns)
	t.Run("what came past extproc counts, too", p.testPast)
	t.Run("a reset cache is followed", p.testReset)
	t.Run("eviction is followed", p.testEviction)
	t.Run("adapters have blocks of their own", p.testAdapters)
	t.Run("a restarted engine's cache is forgotten at once", p.testRestart)
}

func (p *pair) testTurns(t *testing.T) {
	messages := []rig.Message{rig.User(long("turns", 40))}
	home, _, u := p.ask(t, "smollm2", messages...)
	var cached []string
	for turn := range 4 {
		messages = append(messages, rig.Assistant(u.answer), rig.User(fmt.Sprintf("Go on, part %d.", turn)))
		var i int
		var d predicted
		if i, d, u = p.ask(t, "smollm2", messages...); i != home || d.cached == 0 {
			t.Errorf("turn %d went to engine %d with %d tokens cached, the first to %d", turn+2, i, d.cached, home)
		}
		cached = append(cached, fmt.Sprintf("%d/%d", d.cached, u.prompt))
	}
	t.Logf("figure: cached tokens predicted, and by the engine, turns 2 to 5: %v", cached)
}

// testPast shows each engine a prompt past extproc, and asks for it through Envoy.
func (p *pair) testPast(t *testing.T) {
	for _, i := range []int{1, 0, 1} {
		text := long(fmt.Sprintf("engine %d, %d", i, p.asked), 50)
		p.direct(t, i, "smollm2", text)
		got, d, u := p.ask(t, "smollm2", rig.User(text))
		if got != i || d.cached < 400 {
			t.Errorf("went to engine %d with %d tokens cached, want engine %d (%s)", got, d.cached, i, d.text)
		}
		t.Logf("figure: what engine %d alone has: asked there, %d of %d tokens cached", i, d.cached, u.prompt)
	}
}

// testReset empties the caches. vLLM publishes that when it next works.
func (p *pair) testReset(t *testing.T) {
	text := long("a reset", 40)
	p.direct(t, 1, "smollm2", text)
	if i, d, _ := p.ask(t, "smollm2", rig.User(text)); i != 1 || d.cached == 0 {
		t.Fatalf("went to engine %d with %d tokens cached", i, d.cached)
	}
	before := p.metric(t, "millrace_extproc_kv_blocks")
	for i := range p.engines {
		if _, err := post(p.ports.engines[i], "/reset_prefix_cache", nil); err != nil {
			t.Fatal(err)
		}
		p.direct(t, i, "smollm2", long("after the reset", 6))
	}
	p.await(t, "the blocks are forgotten", func() error {
		if n := p.metric(t, "millrace_extproc_kv_blocks"); n > 10 {
			return fmt.Errorf("%v blocks are known, %v before", n, before)
		}
		return nil
	})
	_, d, _ := p.ask(t, "smollm2", rig.User(text))
	if d.cached >= 64 {
		t.Errorf("%d tokens believed to be cached after a reset", d.cached)
	}
	t.Logf("figure: %.0f blocks known before the reset, then %d tokens of a prompt believed cached", before, d.cached)
}

// testEviction fills an engine's cache with others' prompts.
func (p *pair) testEviction(t *testing.T) {
	text := long("eviction", 40)
	p.direct(t, 0, "smollm2", text)
	_, d, _ := p.ask(t, "smollm2", rig.User(text))
	was := d.cached
	for n := range 6 {
		p.direct(t, 0, "smollm2", long(fmt.Sprintf("what fills the cache, volume %d", n), 150))
	}
	_, d, u := p.ask(t, "smollm2", rig.User(text))
	if was < 300 || d.cached >= was {
		t.Errorf("%d tokens cached, %d after others have filled the cache", was, d.cached)
	}
	t.Logf("figure: %d of %d tokens cached, after eviction %d", was, u.prompt, d.cached)
}

// testAdapters asks for adapters: base blocks are none of theirs.
func (p *pair) testAdapters(t *testing.T) {
	text := long("adapters", 40)
	base, _, _ := p.ask(t, "smollm2", rig.User(text))
	_, d, _ := p.ask(t, "poet", rig.User(text))
	if d.cached != 0 {
		t.Errorf("%d tokens believed cached of an adapter that nobody has asked", d.cached)
	}
	i, d, u := p.ask(t, "poet", rig.User(text))
	if d.cached == 0 {
		t.Errorf("none of %d tokens cached", u.prompt)
	}
	t.Logf("figure: base at engine %d; adapter 0, then %d of %d tokens cached at engine %d", base, d.cached, u.prompt, i)
	p.direct(t, 0, "clerk", long("what clerks do", 5))
	p.direct(t, 1, "judge", long("what judges do", 5))
	p.awaitLoaded(t)
	for n := range 3 {
		c, d, _ := p.ask(t, "clerk", rig.User(long(fmt.Sprintf("clerk %d", n), 3)))
		j, e, _ := p.ask(t, "judge", rig.User(long(fmt.Sprintf("judge %d", n), 3)))
		if c != 0 || j != 1 {
			t.Errorf("clerk is loaded at engine 0, judge at 1; asked for at %d and %d (%s; %s)", c, j, d.text, e.text)
		}
	}
	t.Log("figure: 6 conversations with adapters, each where its adapter is loaded")
}

// awaitLoaded waits until extproc has scraped the engines since they were used: it
// does so four times a second while something happens there, else every 10 s.
func (p *pair) awaitLoaded(t *testing.T) {
	t.Helper()
	const scrapes = `millrace_extproc_probes_total{found="metrics"}`
	want := p.metric(t, scrapes) + 6
	p.await(t, "extproc has scraped the engines again", func() error {
		if n := p.metric(t, scrapes); n < want {
			return fmt.Errorf("%v scrapes, want %v", n, want)
		}
		return nil
	})
}

// awaitLog waits until extproc has logged a text.
func (p *pair) awaitLog(t *testing.T, text string) {
	t.Helper()
	p.await(t, "extproc logs it", func() error {
		if !strings.Contains(p.extproc.Out.String(), text) {
			return fmt.Errorf("extproc has not logged %q", text)
		}
		return nil
	})
}

// testRestart kills the engine that has a conversation, and starts it anew.
func (p *pair) testRestart(t *testing.T) {
	text, other := long("a restart", 50), long("another restart", 50)
	p.direct(t, 1, "smollm2", text)
	p.direct(t, 1, "smollm2", other)
	if i, d, _ := p.ask(t, "smollm2", rig.User(text)); i != 1 || d.cached < 400 {
		t.Fatalf("went to engine %d with %d tokens cached", i, d.cached)
	}
	before := p.metric(t, "millrace_extproc_kv_blocks")
	began := time.Now()
	p.engines[1].Kill()
	<-p.engines[1].Done()
	p.await(t, "the dead engine's blocks are forgotten", func() error {
		if n := p.metric(t, "millrace_extproc_kv_endpoints"); n != 1 {
			return fmt.Errorf("the blocks of %v engines are known", n)
		}
		return nil
	})
	took := time.Since(began)
	// Who is named first in the moments until it is known to be dead does not matter:
	// Envoy tries the next.
	served := p.through(t, "/v1/chat/completions", chat("smollm2", rig.User(text)))
	if d := p.last(t, 1)[0]; d.cached >= 64 || served.prompt == 0 {
		t.Errorf("engine 1 is dead, and %d tokens are believed to be cached (%s)", d.cached, d.text)
	}
	t.Logf("figure: %.0f blocks known; %d ms after kill -9 those of the dead engine are forgotten, %.0f are left", before, took.Milliseconds(), p.metric(t, "millrace_extproc_kv_blocks"))
	p.startVLLM(t, 1)
	p.awaitStart(t, 1)
	p.await(t, "Envoy has both", func() error { return p.hosts(2) })
	p.await(t, "extproc has no condition", p.ready)
	p.write(t, "fleet.yaml", p.file(t, 1)) // so that it is asked
	p.awaitLog(t, " endpoints=1 ")
	i, d, u := p.ask(t, "smollm2", rig.User(other))
	if i != 1 || d.cached != 0 {
		t.Errorf("engine %d: %d tokens of a prompt believed cached that only the engine before had", i, d.cached)
	}
	t.Logf("figure: after the restart %d of %d tokens believed cached at it", d.cached, u.prompt)
	p.write(t, "fleet.yaml", p.file(t, 0, 1))
	p.awaitLog(t, " endpoints=2 ")
	p.direct(t, 1, "smollm2", long("a new life", 50))
	if i, d, _ := p.ask(t, "smollm2", rig.User(long("a new life", 50))); i != 1 || d.cached < 400 {
		t.Errorf("went to engine %d with %d tokens cached, want the one that is back", i, d.cached)
	}
}
