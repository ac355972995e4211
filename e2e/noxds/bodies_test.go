package noxds

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"millrace.dev/millrace/e2e/rig"
)

// testBodies sends what the engines alone would refuse: compressed bodies, and a
// name that the policy gives to a model.
func (f *fleet) testBodies(t *testing.T) {
	whole := f.adapt(t, "fleet.yaml")
	const policy = "\npolicy:\n"
	f.write(t, "fleet.yaml", strings.Replace(whole, policy, policy+"  explain: true\n  rewrites: [{model: chat, to: [{model: smollm2}]}]\n", 1))
	const chat = `{"model":"chat","max_tokens":2,"messages":[{"role":"user","content":"Hi"}]}`
	f.await(t, "the name is given to a model", func() error {
		status, b, err := f.post("/v1/chat/completions", []byte(chat))
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d: %.300s", status, b)
		}
		return err
	})
	for encoding, body := range packed(t, chat) {
		status, b, err := f.post("/v1/chat/completions", body, "content-encoding", encoding)
		var got struct{ Model string }
		if err == nil {
			err = json.Unmarshal(b, &got)
		}
		if err != nil || status != http.StatusOK || got.Model != "smollm2" {
			t.Errorf("%q: status %d, %v: %.300s; want an answer of smollm2", encoding, status, err, b)
		}
	}
	f.testAnthropic(t)
	f.testWhy(t)
	f.write(t, "fleet.yaml", whole)
	f.await(t, "the name is unknown again", func() error {
		if status, b, err := f.post("/v1/chat/completions", []byte(chat)); err != nil || status != http.StatusNotFound {
			return fmt.Errorf("status %d, %v: %.300s; want the name to be unknown again", status, err, b)
		}
		return nil
	})
}

// testWhy asks why a request went where it went.
func (f *fleet) testWhy(t *testing.T) {
	question := []rig.Message{rig.User("Why did this go there?")}
	if _, h, err := f.ask(question, 2); err != nil || h.Get("x-millrace-decision") != "" {
		t.Errorf("a request that did not ask for it has the decision %q, %v", h.Get("x-millrace-decision"), err)
	}
	_, h, err := f.ask(question, 2, "x-millrace-debug", "1")
	if err != nil {
		t.Fatal(err)
	}
	var why struct {
		Reason     string
		Named      []string
		Candidates []struct {
			Address string
			Finish  float64
		}
	}
	if err := json.Unmarshal([]byte(h.Get("x-millrace-decision")), &why); err != nil {
		t.Fatalf("x-millrace-decision: %q: %v", h.Get("x-millrace-decision"), err)
	}
	if why.Reason != "sticky" || len(why.Named) != 3 || len(why.Candidates) != 3 || why.Candidates[0].Finish <= 0 {
		t.Errorf("x-millrace-decision: %s", h.Get("x-millrace-decision"))
	}
	t.Logf("why: %s", h.Get("x-millrace-decision"))
	// Envoy may write a line some seconds late.
	f.await(t, "the access log explains the request", func() error {
		got := rig.Millrace(t, "", "explain", "-log", filepath.Join(f.dir, "access.log"), h.Get("x-request-id"))
		if got.Code != 0 || !strings.Contains(got.Stdout, "sticky: the conversation is cached there") {
			return fmt.Errorf("exit code %d: %s%s", got.Code, got.Stdout, got.Stderr)
		}
		t.Logf("\n%s", got.Stdout)
		return nil
	})
}

func (f *fleet) testAnthropic(t *testing.T) {
	status, b, err := f.post("/v1/messages", []byte(`{"model":"chat","max_tokens":2,"system":[{"type":"text","text":"Be kind."}],"messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]}]}`))
	if err != nil || status != http.StatusOK || !strings.Contains(string(b), `"type":"message"`) {
		t.Errorf("messages: status %d, %v: %.300s", status, err, b)
	}
	status, b, err = f.post("/v1/messages", []byte(`{"model":"nobody","max_tokens":2,"messages":[]}`))
	if err != nil || status != http.StatusNotFound || !strings.HasPrefix(string(b), `{"type":"error","error":{"type":"not_found_error"`) {
		t.Errorf("an unknown model: status %d, %v: %.300s", status, err, b)
	}
	status, b, err = f.post("/v1/messages", []byte("x"), "content-encoding", "gzip")
	if err != nil || status != http.StatusBadRequest || !strings.HasPrefix(string(b), `{"type":"error","error":{"type":"invalid_request_error"`) {
		t.Errorf("not gzip: status %d, %v: %.300s", status, err, b)
	}
}

// packed is a text in the encodings that extproc knows, by their names.
func packed(t *testing.T, text string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{"identity": []byte(text)}
	for name, maker := range map[string]func(io.Writer) (io.WriteCloser, error){
		"gzip":    func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		"deflate": func(w io.Writer) (io.WriteCloser, error) { return zlib.NewWriter(w), nil },
		"zstd":    func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
	} {
		var b bytes.Buffer
		w, err := maker(&b)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, text) // a buffer takes all
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		out[name] = b.Bytes()
	}
	return out
}

// post sends a body; header holds pairs of name and value.
func (f *fleet) post(path string, body []byte, header ...string) (int, []byte, error) {
	a, err := rig.Send(context.Background(), f.url(path), bytes.NewReader(body), append([]string{"content-type", "application/json"}, header...)...)
	return a.Status, a.Body, err
}
