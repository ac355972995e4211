// Package api is the OpenAI API, and Anthropic's messages, in front of the backend: it checks requests, lets
// them in through admit, passes the backend's bytes on unchanged and reports what
// they cost.
//
// Called by Envoy, or by anybody directly. Its one rule: as long as no byte of an
// answer was sent, whatever goes wrong with the backend is a 503, which Envoy
// retries elsewhere.
package api

import (
	"net/http"
	"time"

	"go.opentelemetry.io/otel/trace"

	"millrace.dev/millrace/engine/internal/admit"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/cachelog"
	"millrace.dev/millrace/engine/internal/meter"
	"millrace.dev/millrace/engine/internal/supervise"
)

// Config is what a Server needs.
type Config struct {
	// Node is this engine's node, for the answer's header.
	Node string
	// Kinds are what may be behind us, Transport the way to it.
	Kinds     backend.Kinds
	Transport http.RoundTripper
	// Serving returns the replica that is ready, or nil and why there is none.
	Serving func() (*supervise.Serving, string)
	Gate    *admit.Gate
	Meter   *meter.Meter
	// Cache logs what the backend has cached.
	Cache   *cachelog.Log
	Metrics *Metrics
	Tracer  trace.Tracer
}

// Server answers the API.
type Server struct {
	cfg     Config
	started time.Time
	mux     *http.ServeMux
}

// operation is one endpoint that the backend answers.
type operation struct {
	path string // at the backend, and below /v1
	// content is the field that must be there: the input.
	content string
	// limits are the fields that bound the output, the first one set counts.
	limits []string
	// whole is whether a unary answer can be put together from a stream.
	whole bool
	// anthropic is whether errors take the form of Anthropic's API, responses whether
	// answers have ids that later requests continue from.
	anthropic, responses bool
	// passes is whether the request is forwarded as it is, whatever it asks for.
	passes bool
}

// other is what engine knows nothing of and the backend may.
var other = operation{path: "other", passes: true}

var operations = []operation{
	{path: "/chat/completions", content: "messages", limits: []string{"max_completion_tokens", "max_tokens"}, whole: true},
	{path: "/completions", content: "prompt", limits: []string{"max_tokens"}, whole: true},
	{path: "/embeddings", content: "input"},
	{path: "/responses", content: "input", limits: []string{"max_output_tokens"}, responses: true},
	{path: "/messages", content: "messages", limits: []string{"max_tokens"}, anthropic: true},
	{path: "/messages/count_tokens", content: "messages", anthropic: true},
}

// New returns a server.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, started: time.Now(), mux: http.NewServeMux()}
	for _, prefix := range []string{"", "/v1"} {
		for _, op := range operations {
			s.mux.HandleFunc("POST "+prefix+op.path, func(w http.ResponseWriter, r *http.Request) { s.complete(op, w, r) })
			s.mux.HandleFunc(prefix+op.path, wrongMethod)
		}
		s.mux.HandleFunc("GET "+prefix+"/models", s.models)
		s.mux.HandleFunc("GET "+prefix+"/models/{id...}", s.model)
		s.mux.HandleFunc(prefix+"/models", wrongMethod)
	}
	s.mux.HandleFunc("GET /health", s.health)
	s.mux.HandleFunc("/", s.other)
	return s
}

// other answers what is no operation of engine's: it is forwarded where the backend
// has it.
func (s *Server) other(w http.ResponseWriter, r *http.Request) {
	if v, _ := s.cfg.Serving(); v != nil && s.cfg.Kinds.Of(v.Assignment).Passes(r.URL.Path) {
		s.complete(other, w, r)
		return
	}
	notFound("no such endpoint: "+r.Method+" "+r.URL.Path, "").write(w)
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

func wrongMethod(w http.ResponseWriter, r *http.Request) {
	(&apiError{status: http.StatusMethodNotAllowed, Message: r.Method + " is not allowed here", Type: invalidRequest}).write(w)
}

// health is asked by Envoy: 200 only when a request would be served.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	v, why := s.cfg.Serving()
	if v == nil {
		notReady(why).write(w)
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok", "replica": v.Assignment.GetReplica()})
}

// entry is one model of the list.
type entry struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

func (s *Server) entries() []entry {
	v, _ := s.cfg.Serving()
	if v == nil {
		return []entry{}
	}
	return []entry{{ID: v.Assignment.GetModel(), Object: "model", Created: s.started.Unix(), OwnedBy: "millrace"}}
}

func (s *Server) models(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": s.entries()})
}

func (s *Server) model(w http.ResponseWriter, r *http.Request) {
	for _, e := range s.entries() {
		if e.ID == r.PathValue("id") {
			writeJSON(w, http.StatusOK, e)
			return
		}
	}
	unknownModel(r.PathValue("id")).write(w)
}
