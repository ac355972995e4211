//go:build kube

package kubernetes

import (
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/wire"
)

// way is one from a client to the engines.
type way struct {
	name string
	url  string
	// header is what a request carries, as pairs of name and value.
	header []string
}

// calls are what every path must carry, in this order.
var calls = []struct {
	name string
	call func(way, *testing.T)
}{
	{"chat", way.chat},
	{"stream", way.stream},
	{"embeddings", way.embeddings},
	{"responses", way.responses},
	{"responses streamed", way.responsesStreamed},
	{"conversation", way.conversation},
}

// carriesAll makes all calls by a path, once extproc decides about its requests.
func (w way) carriesAll(t *testing.T) {
	t.Helper()
	rig.Wait(t, backLimit, "an answer that extproc has explained", func() error { return w.explained(t) })
	for _, c := range calls {
		t.Run(c.name, func(t *testing.T) { c.call(w, t) })
	}
}

// explained reports whether a request is answered, and extproc was asked.
func (w way) explained(t *testing.T) error {
	_, a, err := rig.Complete(t.Context(), w.url+rig.ChatPath, rig.ShortQuestions(0, 0), append(w.header, wire.DebugHeader, "1")...)
	if err == nil && a.Header.Get(wire.DecisionHeader) == "" {
		err = errors.New("extproc was not asked")
	}
	return err
}

// question is asked in different ways, and has one answer.
const question = "What is the capital of France?"

// answer is that of a chat which is not streamed.
func (w way) answer(t *testing.T) string {
	t.Helper()
	c, a, err := rig.Complete(t.Context(), w.url+rig.ChatPath, rig.Ask(8, question), w.header...)
	if err != nil {
		t.Fatal(err)
	}
	if c.Text() == "" || c.Usage.Prompt == 0 || c.Usage.Completion == 0 || a.Header.Get(wire.ReplicaHeader) == "" {
		t.Errorf("%q by replica %q, usage %+v", c.Text(), a.Header.Get(wire.ReplicaHeader), c.Usage)
	}
	return c.Text()
}

func (w way) chat(t *testing.T) { w.answer(t) }

func (w way) stream(t *testing.T) {
	q := rig.Ask(8, question)
	q.Stream = true
	w.streams(t, rig.ChatPath, q)
}

// responding is a request for a response.
type responding struct {
	Model       string  `json:"model"`
	Input       string  `json:"input"`
	MaxTokens   int     `json:"max_output_tokens"`
	Temperature float64 `json:"temperature"`
	Stream      bool    `json:"stream,omitempty"`
}

func (w way) responses(t *testing.T) {
	r, _, err := rig.Call[rig.Response](t.Context(), w.url+rig.ResponsePath, responding{Model: rig.Model, Input: question, MaxTokens: 8}, w.header...)
	if err != nil {
		t.Fatal(err)
	}
	if want := w.answer(t); r.Object != "response" || r.Text() != want {
		t.Errorf("a %s says %q, a chat %q", r.Object, r.Text(), want)
	}
}

func (w way) responsesStreamed(t *testing.T) {
	w.streams(t, rig.ResponsePath, responding{Model: rig.Model, Input: question, MaxTokens: 8, Stream: true})
}

// streams asks for a stream, whose text must be that of the chat, and must come bit by bit.
func (w way) streams(t *testing.T, at string, q any) {
	t.Helper()
	s, err := rig.Stream(t.Context(), w.url+at, q, nil, w.header...)
	if err != nil {
		t.Fatal(err)
	}
	if want := w.answer(t); s.Text != want || s.Chunks < 5 || s.First >= s.Took {
		t.Errorf("%q in %d events, the first after %v of %v; the chat says %q", s.Text, s.Chunks, s.First, s.Took, want)
	}
}

// width is how long smollm2's vectors are.
const width = 576

func (w way) embeddings(t *testing.T) {
	e, _, err := rig.Call[rig.Embeddings](t.Context(), w.url+rig.EmbeddingPath, map[string]any{"model": rig.Model, "input": []string{"one", "two"}}, w.header...)
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Data) != 2 || len(e.Data[0].Embedding) != width || len(e.Data[1].Embedding) != width {
		t.Errorf("%d vectors: %.300s", len(e.Data), fmt.Sprint(e.Data))
	}
}

// conversations is how many are held until one stays: extproc moves one whose replica has
// become slower, by other work of this machine, than its cache is worth. Ten turns that are
// sent anywhere stay once in 512 times.
const conversations = 3

// conversation has ten turns, which are known by nothing but what was said before.
func (w way) conversation(t *testing.T) {
	var errs []error
	for n := range conversations {
		q := rig.Ask(6, fmt.Sprintf("We speak about the path by %s, time %d. Say something of it.", w.name, n))
		turns, err := rig.Converse(t.Context(), w.url+rig.ChatPath, q, 10, func(http.Header) []string { return append(w.header, wire.DebugHeader, "1") })
		if err != nil {
			t.Fatal(err)
		}
		err = rig.Stayed(turns)
		if err == nil {
			rig.MustStay(t, turns)
			return
		}
		t.Logf("a conversation moved: %v", err)
		errs = append(errs, err)
	}
	t.Error(errors.Join(errs...))
}

// byService is the path to a Service of the cluster.
func byService(t *testing.T, name, service string) way {
	t.Helper()
	at, err := kube.Forward("127.0.0.1:0", service)
	if err != nil {
		t.Fatal(err)
	}
	return way{name: name, url: "http://" + at}
}

// forwarded is where kubectl says that it listens.
var forwarded = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+) `)

// byPod is the path that begins in a Pod's own network: by its loopback, to whoever
// listens there for a host.
func byPod(t *testing.T, name, ns, pod, host string) way {
	t.Helper()
	return way{name: name, header: []string{"host", host}, url: "http://" + forwardPod(t, ns, pod, 80)}
}

// forwardPod reaches a port of a Pod's loopback, as people do, and returns the address here.
func forwardPod(t *testing.T, ns, pod string, port int) (address string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(kube.Tools(), "kubectl"), "port-forward", "-n", ns, "pod/"+pod, "--address=127.0.0.1", fmt.Sprintf(":%d", port))
	cmd.Env = kube.Env()
	forward := rig.Start(t, "port-forward", cmd)
	rig.Wait(t, backLimit, "kubectl forwards", func() error {
		m := forwarded.FindStringSubmatch(forward.Out.String())
		if m == nil {
			return errors.New(forward.Out.String())
		}
		address = m[1]
		return nil
	})
	return address
}
