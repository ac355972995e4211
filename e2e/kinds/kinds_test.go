// Package kinds runs the same cases against meshes whose engines have different kinds
// of backends behind them: llama.cpp, vLLM, and an external server.
//
// Run by `make test` (llama.cpp, an external server) and `make test-vllm`. Its one
// rule: a case is written once; what differs between kinds is a field of the subject.
package kinds

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/wire"
)

func TestMain(m *testing.M) { os.Exit(rig.Main(m)) }

// subject is a mesh with one kind of backend.
type subject struct {
	*rig.Mesh
	model string
	// busy counts the requests in all backends, by their own account. Of unary ones
	// deaf backends notice late that the client has left: what counts is that engine
	// has let them go.
	busy func() (float64, error)
	deaf bool
}

// cases are those that leave the mesh as it was.
func (s *subject) cases(t *testing.T) {
	t.Run("chat", s.chat)
	t.Run("stream", s.stream)
	t.Run("usage", s.usage)
	t.Run("cancelled stream", func(t *testing.T) { s.cancel(t, true) })
	t.Run("cancelled unary request", func(t *testing.T) { s.cancel(t, false) })
	t.Run("conversation", s.conversation)
	t.Run("refusals", s.refusals)
}

func (s *subject) ask(maxTokens int, text string) rig.Chat {
	q := rig.Ask(maxTokens, text)
	q.Model = s.model
	return q
}

func (s *subject) chat(t *testing.T) {
	c, a, err := rig.Complete(t.Context(), s.URL(t, rig.ChatPath), s.ask(8, "Name a colour."))
	if err != nil {
		t.Fatal(err)
	}
	if c.Text() == "" || c.Usage.Completion == 0 || c.Usage.Completion > 8 || a.Header.Get(wire.ReplicaHeader) == "" {
		t.Errorf("%+v, replica %q", c, a.Header.Get(wire.ReplicaHeader))
	}
	if want := fmt.Sprintf("prompt=%d,cached=%d,completion=%d,", c.Usage.Prompt, c.Usage.Details.Cached, c.Usage.Completion); !strings.HasPrefix(a.Header.Get(wire.UsageHeader), want) {
		t.Errorf("usage %q, the body says %s", a.Header.Get(wire.UsageHeader), want)
	}
}

// stream asks for a stream without its account, and with it.
func (s *subject) stream(t *testing.T) {
	q := s.ask(24, "Count to ten.")
	q.Stream = true
	type options struct {
		Usage bool `json:"include_usage"`
	}
	bare, err := rig.Stream(t.Context(), s.URL(t, rig.ChatPath), q, nil)
	if err != nil {
		t.Fatal(err)
	}
	if bare.Text == "" || bare.Chunks < 5 || bare.Usage != (rig.Usage{}) || bare.First >= bare.Took {
		t.Errorf("%+v", bare)
	}
	full, err := rig.Stream(t.Context(), s.URL(t, rig.ChatPath), struct {
		rig.Chat
		Options options `json:"stream_options"`
	}{q, options{true}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if full.Usage.Prompt == 0 || full.Usage.Completion == 0 || full.Text != bare.Text {
		t.Errorf("%+v, want an account and the text of %+v", full, bare)
	}
	t.Logf("figure: first text of a stream after %v, the last of %d after %v", full.First.Round(time.Millisecond), full.Chunks, full.Took.Round(time.Millisecond))
}

// usage asks the same twice.
func (s *subject) usage(t *testing.T) {
	q := s.ask(4, "What do you know of usage? "+strings.Repeat("Tell me more. ", 20))
	var cached []int
	for range 2 {
		c, _, err := rig.Complete(t.Context(), s.URL(t, rig.ChatPath), q)
		if err != nil {
			t.Fatal(err)
		}
		cached = append(cached, c.Usage.Details.Cached)
	}
	if cached[1] <= cached[0] {
		t.Errorf("cached tokens %v, want more of the second", cached)
	}
}

// cancel leaves while the backend works.
func (s *subject) cancel(t *testing.T, stream bool) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	body := fmt.Sprintf(`{"model":%q,"stream":%t,"max_tokens":2000,"ignore_eos":true,"messages":[{"role":"user","content":"Count to 1000, stream %t."}]}`, s.model, stream, stream)
	ended := make(chan error, 1)
	go func() {
		_, err := rig.Send(ctx, s.URL(t, rig.ChatPath), strings.NewReader(body), "content-type", "application/json")
		ended <- err
	}()
	rig.Wait(t, rig.BackLimit, "a backend works", func() error {
		if n, err := s.busy(); n != 1 {
			return fmt.Errorf("%v requests, want 1: %v", n, err)
		}
		return nil
	})
	cancel()
	busy := s.busy
	if s.deaf && !stream {
		busy = s.running
	}
	took := rig.Wait(t, 10*time.Second, "no backend works", func() error {
		if n, err := busy(); n != 0 || err != nil {
			return fmt.Errorf("%v requests: %v", n, err)
		}
		return nil
	})
	if err := <-ended; err == nil {
		t.Error("it was answered to its end")
	}
	t.Logf("figure: idle %v after the client left", took.Round(time.Millisecond))
}

// running counts the requests in all engines.
func (s *subject) running() (float64, error) {
	v, err := s.Fleet(context.Background())
	n := uint32(0)
	for _, node := range v.GetNodes() {
		n += node.GetReport().GetEngine().GetLoad().GetRunning()
	}
	return float64(n), err
}

// conversation has ten turns, known by a header and by nothing but what was said.
func (s *subject) conversation(t *testing.T) {
	for _, header := range [][]string{{"x-session-id", "kinds"}, nil} {
		q := s.ask(6, fmt.Sprintf("We speak about what is known, by a header: %t. Say something of it.", header != nil))
		turns, err := rig.Converse(t.Context(), s.URL(t, rig.ChatPath), q, 10, func(http.Header) []string { return header })
		if err != nil {
			t.Fatal(err)
		}
		rig.MustStay(t, turns)
	}
}

// refusals are the backend's, in the API's form.
func (s *subject) refusals(t *testing.T) {
	for name, tt := range map[string]struct {
		body   string
		status int
	}{
		"prompt over the context":   {fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":%q}]}`, s.model, strings.Repeat("long ", 9000)), http.StatusBadRequest},
		"a field of another type":   {fmt.Sprintf(`{"model":%q,"temperature":"hot","messages":[{"role":"user","content":"hi"}]}`, s.model), http.StatusBadRequest},
		"a model that is not there": {`{"model":"nobody","messages":[{"role":"user","content":"hi"}]}`, http.StatusNotFound},
	} {
		a, err := rig.Send(t.Context(), s.URL(t, rig.ChatPath), strings.NewReader(tt.body), "content-type", "application/json")
		if err != nil {
			t.Fatal(err)
		}
		e := rig.Decode[rig.APIError](t, a.Body)
		if a.Status != tt.status || e.Error.Message == nil || *e.Error.Message == "" || e.Error.Type == nil {
			t.Errorf("%s: %d %s, want %d in the API's form", name, a.Status, a.Body, tt.status)
		}
	}
}

// TestLlamaCpp has the default mesh, of a replica on two nodes and one on a third.
func TestLlamaCpp(t *testing.T) {
	m := rig.SharedMesh(t)
	s := &subject{Mesh: m, model: rig.Model}
	s.busy = s.running
	s.cases(t)
}

// TestExternalServer has engine in front of a llama-server.
func TestExternalServer(t *testing.T) {
	rig.PauseShared(t)
	address := rig.MustAddresses(t, 1)[0]
	server := rig.StartLlamaServer(t, address)
	m := rig.OwnMesh(t, "-nodes", "1", "-config", rig.Write(t, t.TempDir()+"/openai.yaml", fmt.Sprintf(`
apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: theirs}
spec:
  backend: {kind: openai, url: "http://%s/v1", model: %s}
  replicas: 1
`, address, rig.Model)))
	m.Engines = 1
	s := &subject{Mesh: m, model: "theirs", deaf: true, busy: func() (float64, error) { return rig.Metric(address, "llamacpp:requests_processing") }}
	s.cases(t)
	t.Run("what engine does not know passes", func(t *testing.T) {
		engine := "http://" + m.Addr(t, "engine@node-a", "http")
		a, err := rig.Post(t.Context(), engine+"/tokenize", map[string]any{"content": "Hello there"})
		if err != nil || a.Status != http.StatusOK || !strings.Contains(string(a.Body), `"tokens"`) {
			t.Errorf("%d %s %v", a.Status, a.Body, err)
		}
	})
	t.Run("hang", func(t *testing.T) {
		resume := rig.Suspend(t, server.PID())
		s.out(t, "does not answer")
		resume()
		t.Logf("figure: serves again after %v", s.back(t).Round(time.Millisecond))
	})
	t.Run("kill", func(t *testing.T) {
		server.KillAndWait()
		s.out(t, "connection refused")
		a, err := rig.Post(t.Context(), m.URL(t, rig.ChatPath), s.ask(1, "Anybody?"))
		if err != nil {
			t.Fatal(err)
		}
		if e := rig.Decode[rig.APIError](t, a.Body); a.Status != http.StatusServiceUnavailable || e.Error.Message == nil {
			t.Errorf("without a server: %d %s", a.Status, a.Body)
		}
		rig.StartLlamaServer(t, address)
		t.Logf("figure: serves again after %v", s.back(t).Round(time.Millisecond))
	})
}

// out waits until node-a's replica is out, for a reason that has a text.
func (s *subject) out(t *testing.T, text string) {
	t.Helper()
	took := rig.Wait(t, rig.BackLimit, "the replica is out", func() error {
		v, err := s.Fleet(t.Context())
		if err != nil {
			return err
		}
		for _, n := range v.GetNodes() {
			if r := n.GetReport().GetEngine().GetReason(); strings.Contains(r, text) && n.GetWeight() == 0 {
				return nil
			}
		}
		return fmt.Errorf("%v", v.GetNodes())
	})
	t.Logf("figure: out %v after it", took.Round(time.Millisecond))
}

// errNone is why a question was not answered as it should.
var errNone = errors.New("no answer")

// back waits until a question is answered.
func (s *subject) back(t *testing.T) time.Duration {
	t.Helper()
	return rig.Wait(t, rig.BackLimit, "the model serves", func() error {
		c, _, err := rig.Complete(t.Context(), s.URL(t, rig.ChatPath), s.ask(2, "Are you back?"))
		if err == nil && c.Text() == "" {
			err = errNone
		}
		return err
	})
}
