package noxds

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// received is what a stand-in engine answers: what it has received.
type received struct {
	Engine      int
	Path        string
	ContentType string
	Sum         string // of the body
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// startStandIn starts an engine that answers every operation with what it has received.
func (f *fleet) startStandIn(i int) {
	l, err := net.Listen("tcp", rig.Address(f.ports.engines[i]))
	if err != nil {
		f.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return // Envoy has gone
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(received{i, r.URL.Path, r.Header.Get("Content-Type"), sum(b)})
	})
	s := &http.Server{Handler: mux}
	go s.Serve(l)
	f.t.Cleanup(func() { _ = s.Close() })
}

// upload is a form with a sound of so many bytes, and a model behind it unless it is
// empty. It returns the body and its type.
func upload(t *testing.T, model string, size int) ([]byte, string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	part, err := w.CreateFormFile("file", "a.wav")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = part.Write(bytes.Repeat([]byte("RIFF\r\n--"), size/8)) // a buffer takes all
	if model != "" {
		_ = w.WriteField("model", model)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), w.FormDataContentType()
}

// TestOperationsBesideChats sends forms, and what else is no chat, through Envoy to the
// engines of the model that each names: two serve "ears", the third one "words".
func TestOperationsBesideChats(t *testing.T) {
	f := newFleetOf(t, (*fleet).startStandIn, func(file string) string {
		file = strings.ReplaceAll(file, "type: llamacpp", "type: openai")
		file = strings.Replace(file, "models: [smollm2]", "models: [ears]", 2)
		file = strings.Replace(file, "models: [smollm2]", "models: [words]", 1)
		return file + "\nmodels: [{name: words, default: true}, {name: ears}]\n"
	})
	ears, words := []int{0, 1}, []int{2}
	tests := []struct {
		path        string
		model       string // of the form; empty: none
		size        int    // of its sound
		body        string // JSON in place of a form
		wantEngines []int
		wantStatus  int
		wantError   string // in the answer
	}{
		{path: "/v1/audio/transcriptions", model: "ears", size: 1 << 10, wantEngines: ears},
		{path: "/v1/audio/translations", model: "words", size: 1 << 20, wantEngines: words},
		{path: "/v1/audio/transcriptions", model: "ears", size: 10 << 20, wantEngines: ears},
		{path: "/v1/audio/transcriptions", size: 1 << 10, wantStatus: 400, wantError: `"param":"model"`},
		{path: "/v1/audio/transcriptions", model: "nobody", wantStatus: 404, wantError: `"code":"model_not_found"`},
		{path: "/v1/audio/transcriptions", body: `{"model":"ears"}`, wantStatus: 415, wantError: "multipart/form-data"},
		{path: "/v1/rerank", body: `{"model":"ears","query":"a","documents":["b","c"]}`, wantEngines: ears},
		{path: "/v1/score", body: `{"model":"ears","text_1":"a","text_2":"b"}`, wantEngines: ears},
		{path: "/tokenize", body: `{"model":"ears","prompt":"a"}`, wantEngines: ears},
		{path: "/tokenize", body: `{"content":"a"}`, wantEngines: words},
		{path: "/detokenize", body: `{"model":"ears","tokens":[1,2]}`, wantEngines: ears},
		{path: "/v1/images/edits", model: "ears", size: 1 << 10, wantEngines: ears},
		{path: "/v1/images/edits", model: "nobody", wantStatus: 404, wantError: `"code":"model_not_found"`},
		{path: "/v1/images/generations", body: `{"model":"ears","prompt":"a cat"}`, wantEngines: ears},
		{path: "/v1/images/generations", body: `{"prompt":"a cat"}`, wantEngines: words},
		{path: "/v1/realtime/sessions?model=ears", body: `{}`, wantEngines: ears},
		{path: "/v1/realtime/sessions?model=nobody", body: `{}`, wantStatus: 404, wantError: `"code":"model_not_found"`},
		{path: "/v1/rerank/", body: `{"model":"ears","query":"a","documents":["b","c"]}`, wantEngines: ears},
		{path: "/v1/rerank/", body: `{"model":"ears",`, wantStatus: 400, wantError: `"code":"invalid_json"`},
		{path: "/v1/files", size: 1 << 10, wantEngines: words},
	}
	t.Run("fields of a form", func(t *testing.T) {
		const kind = "application/x-www-form-urlencoded"
		a, err := rig.Send(t.Context(), f.url("/v1/x"), strings.NewReader("a=b&model=ears"), "content-type", kind)
		if err != nil || a.Status != http.StatusOK || rig.Decode[received](t, a.Body).Engine == 2 {
			t.Errorf("status %d, %v: %.300s; want an engine of ears", a.Status, err, a.Body)
		}
	})
	t.Run("models", func(t *testing.T) {
		for path, want := range map[string]string{
			"/v1/models": `"id":"ears"`, "/v1/models/?limit=9": `"id":"words"`, "/v1/models/ears": `{"id":"ears"`, "/v1/models/nobody": `"code":"model_not_found"`,
		} {
			if b, err := rig.Get(f.url(path)); !strings.Contains(fmt.Sprint(string(b), err), want) {
				t.Errorf("GET %s: %s, %v; want %s", path, b, err, want)
			}
		}
	})
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s of %q%s", tt.path, tt.model, tt.body), func(t *testing.T) {
			body, kind := []byte(tt.body), "application/json"
			if tt.body == "" {
				body, kind = upload(t, tt.model, tt.size)
			}
			seen := map[int]bool{}
			for range 2 * len(tt.wantEngines) {
				a, err := rig.Send(t.Context(), f.url(tt.path), bytes.NewReader(body), "content-type", kind)
				if err != nil || a.Status != http.StatusOK {
					t.Fatalf("status %d, %v: %.300s", a.Status, err, a.Body)
				}
				got := rig.Decode[received](t, a.Body)
				if path, _, _ := strings.Cut(tt.path, "?"); got.Path != path || got.ContentType != kind || got.Sum != sum(body) {
					t.Errorf("the engine has received %+v; want %q and the body as it was sent", got, kind)
				}
				seen[got.Engine] = true
			}
			for _, e := range tt.wantEngines {
				if !seen[e] {
					t.Errorf("engine %d has received nothing: %v", e, seen)
				}
				delete(seen, e)
			}
			if len(seen) > 0 {
				t.Errorf("engines of another model have received it: %v", seen)
			}
			if tt.wantStatus != 0 {
				a, err := rig.Send(t.Context(), f.url(tt.path), bytes.NewReader(body), "content-type", kind)
				if err != nil || a.Status != tt.wantStatus || !strings.Contains(string(a.Body), tt.wantError) {
					t.Errorf("status %d, %v: %.300s; want %d with %q", a.Status, err, a.Body, tt.wantStatus, tt.wantError)
				}
			}
		})
	}
}
