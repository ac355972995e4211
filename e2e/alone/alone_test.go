// Package alone tests extproc without xds: envoy/standalone.yaml with a real Envoy,
// `extproc -fleet`, and three of llama.cpp's own servers that nobody of ours
// started.
//
// Its one rule: what is asserted is what a client, Envoy or an engine says; the
// engines tell us nothing but what they tell everybody.
package alone

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace.dev/millrace/internal/proc"
)

// root is the repository, seen from this package's folder.
var root = filepath.Join("..", "..")

// fleet is three engines, extproc and Envoy.
type fleet struct {
	t       *testing.T // of the whole fleet
	dir     string
	ports   ports
	engines []*engine
	extproc *proc.Process
	log     *buffer // of extproc
}

// ports are those that standalone.yaml names, by what stands there.
type ports struct {
	engines                         [3]int
	gateway, admin, extproc, metric int
}

// engine is a plain server.
type engine struct {
	*proc.Process
	stdin io.Closer
}

// cache is set-up's folder, filled by `make setup`.
func cache(t *testing.T, pattern string) string {
	t.Helper()
	dir := os.Getenv("MILLRACE_CACHE")
	if dir == "" {
		dir = filepath.Join(root, ".cache")
	}
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s in %s: %v, %v; run `make setup` first", pattern, dir, found, err)
	}
	path, err := filepath.Abs(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// newFleet starts everything and waits until it serves.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{t: t, dir: t.TempDir(), log: new(buffer)}
	free, err := proc.FreePorts(7)
	if err != nil {
		t.Fatal(err)
	}
	copy(f.ports.engines[:], free)
	f.ports.gateway, f.ports.admin, f.ports.extproc, f.ports.metric = free[3], free[4], free[5], free[6]
	f.engines = make([]*engine, len(f.ports.engines))
	for i := range f.engines {
		f.startEngine(t, i)
	}
	f.write(t, "fleet.yaml", f.adapt(t, "fleet.yaml"))
	f.startExtproc(t)
	f.write(t, "envoy.yaml", f.adapt(t, "standalone.yaml"))
	f.start(t, new(buffer), cache(t, "envoy-*/envoy"), "-c", filepath.Join(f.dir, "envoy.yaml"), "--concurrency", "2",
		"--disable-hot-restart", "--file-flush-interval-msec", "200", "--log-level", "warning")
	for i := range f.engines {
		f.await(t, func() error { return healthy(f.ports.engines[i]) })
	}
	f.await(t, func() error { return f.hosts(3) })
	f.await(t, f.ready)
	return f
}

// adapt returns a file of envoy/ with our ports in place of its own.
func (f *fleet) adapt(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "envoy", name))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for old, port := range map[string]int{
		"8001": f.ports.engines[0], "8002": f.ports.engines[1], "8003": f.ports.engines[2],
		"8080": f.ports.gateway, "9901": f.ports.admin, "7200": f.ports.extproc,
	} {
		for _, before := range []string{"port_value: ", "127.0.0.1:"} {
			text = strings.ReplaceAll(text, before+old, before+strconv.Itoa(port))
		}
	}
	return strings.Replace(text, "/dev/stdout", filepath.Join(f.dir, "access.log"), 1)
}

func (f *fleet) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// startEngine starts a plain llama.cpp server.
func (f *fleet) startEngine(t *testing.T, i int) {
	t.Helper()
	cmd := exec.Command("python3", filepath.Join("..", "rig", "testdata", "llama_server.py"),
		cache(t, "llamacpp-*"), cache(t, "models/SmolLM2-*.gguf"), address(f.ports.engines[i]))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out := new(buffer)
	f.engines[i] = &engine{f.run(t, out, cmd), stdin}
}

func (f *fleet) startExtproc(t *testing.T) {
	t.Helper()
	f.extproc = f.start(t, f.log, filepath.Join(root, "bin", "extproc"), "-fleet", filepath.Join(f.dir, "fleet.yaml"),
		"-listen", address(f.ports.extproc), "-metrics", address(f.ports.metric))
}

// start starts a program that ends with the test.
func (f *fleet) start(t *testing.T, out *buffer, path string, args ...string) *proc.Process {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; run `make build setup` first", err)
	}
	return f.run(t, out, exec.Command(path, args...))
}

func (f *fleet) run(t *testing.T, out *buffer, cmd *exec.Cmd) *proc.Process {
	t.Helper()
	cmd.Stdout, cmd.Stderr = out, out
	p, err := proc.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	f.t.Cleanup(func() {
		_ = p.Stop(5 * time.Second)
		if f.t.Failed() {
			f.t.Logf("%s said:\n%s", filepath.Base(cmd.Path), out.tail())
		}
	})
	return p
}

func address(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// await asks cond until it returns nil.
func (f *fleet) await(t *testing.T, cond func() error) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(60 * time.Second); ; <-tick.C {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %v", err)
		}
	}
}

var client = &http.Client{Timeout: 60 * time.Second}

// get returns the status and body of a page.
func get(url string) (int, []byte, error) {
	resp, err := client.Get(url)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

func healthy(port int) error {
	status, _, err := get("http://" + address(port) + "/health")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d", status)
	}
	return err
}

// ready says why extproc is not content.
func (f *fleet) ready() error {
	status, b, err := get("http://" + address(f.ports.metric) + "/readyz")
	if err == nil && status != http.StatusOK {
		err = errors.New(string(b))
	}
	return err
}

// troubled says why extproc does not complain of what it should.
func (f *fleet) troubled(code string) error {
	_, b, err := get("http://" + address(f.ports.metric) + "/readyz")
	if err == nil && !strings.Contains(string(b), `"`+code+`"`) {
		err = fmt.Errorf("conditions %s, want %s", b, code)
	}
	return err
}

// served returns how many requests each engine got, by Envoy's count.
func (f *fleet) served(t *testing.T) [3]int {
	t.Helper()
	n, _, err := f.clusters()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// hosts says why Envoy has not so many engines and an extproc.
func (f *fleet) hosts(want int) error {
	_, healthy, err := f.clusters()
	if err == nil && healthy != want+1 {
		err = fmt.Errorf("%d healthy hosts, want %d engines and extproc", healthy, want)
	}
	return err
}

// clusters asks Envoy for its hosts: requests by engine, and how many are healthy.
func (f *fleet) clusters() (requests [3]int, healthy int, err error) {
	_, b, err := get("http://" + address(f.ports.admin) + "/clusters?format=json")
	if err != nil {
		return requests, 0, err
	}
	var c struct {
		Clusters []struct {
			Hosts []struct {
				Address struct {
					Socket struct {
						Port int `json:"port_value"`
					} `json:"socket_address"`
				} `json:"address"`
				Health map[string]any `json:"health_status"`
				Stats  []struct {
					Name  string `json:"name"`
					Value string `json:"value"`
				} `json:"stats"`
			} `json:"host_statuses"`
		} `json:"cluster_statuses"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return requests, 0, err
	}
	for _, cl := range c.Clusters {
		for _, h := range cl.Hosts {
			if len(h.Health) == 1 && h.Health["eds_health_status"] == "HEALTHY" {
				healthy++
			}
			for i, port := range f.ports.engines {
				for _, s := range h.Stats {
					if h.Address.Socket.Port == port && s.Name == "rq_total" {
						requests[i], _ = strconv.Atoi(s.Value)
					}
				}
			}
		}
	}
	return requests, healthy, nil
}

// message is one of a conversation.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// completion is what of an answer is needed.
type completion struct {
	Choices []struct {
		Message message `json:"message"`
	} `json:"choices"`
	Usage struct {
		Prompt  int `json:"prompt_tokens"`
		Details struct {
			Cached int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	} `json:"usage"`
}

// ask sends a conversation; header holds pairs of name and value.
func (f *fleet) ask(messages []message, tokens int, header ...string) (completion, http.Header, error) {
	var c completion
	body, err := json.Marshal(map[string]any{"model": "smollm2", "messages": messages, "max_tokens": tokens, "temperature": 0})
	if err != nil {
		return c, nil, err
	}
	req, err := http.NewRequest(http.MethodPost, "http://"+address(f.ports.gateway)+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return c, nil, err
	}
	req.Header.Set("content-type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return c, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %.300s", resp.StatusCode, b)
	}
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err == nil && len(c.Choices) == 0 {
		err = fmt.Errorf("no choices: %s", b)
	}
	return c, resp.Header, err
}

// buffer collects what a process says.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends p.
func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String is all of it.
func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// tail is the end of it.
func (b *buffer) tail() string {
	s := b.String()
	return s[max(0, len(s)-4000):]
}
