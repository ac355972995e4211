// Package api is the OpenAI API, and Anthropic's messages, in front of the backend: it checks requests, admits
// them through admit, forwards the backend's bytes unchanged and reports their
// usage.
//
// Called by Envoy, or by anybody directly. Its one rule: as long as no byte of an
// answer was sent, whatever goes wrong with the backend is a 503, which Envoy
// retries elsewhere.
package api

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"

	"millrace.dev/millrace/engine/internal/admit"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/cachelog"
	"millrace.dev/millrace/engine/internal/coalesce"
	"millrace.dev/millrace/engine/internal/conversation"
	"millrace.dev/millrace/engine/internal/meter"
	"millrace.dev/millrace/engine/internal/supervise"
	"millrace.dev/millrace/internal/apis"
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
	// Snapshots saves and restores what the backend has cached; nil: nothing is.
	Snapshots Snapshots
	// Conversations stores responses and conversations; nil: none are.
	Conversations *conversation.Service
	Log           *slog.Logger

	// Address is where others reach this Server, "ip:port". Peers is the way to the other
	// engines that a request names, by Scheme; nil: a stream is continued here alone.
	Address, Scheme string
	Peers           http.RoundTripper
	// ResumeFor bounds how long a stream whose backend was lost waits for another.
	ResumeFor time.Duration
}

// Server answers the API.
type Server struct {
	cfg     Config
	started time.Time
	mux     *http.ServeMux
	room    *semaphore.Weighted // for bodies, in bytes
	batcher *batcher
	single  chan struct{} // holds one while something is in the backend that may not be there with another

	// apart is until when nothing is sent together, in nanoseconds since the epoch. Atomic.
	apart atomic.Int64
}

// operation is one of the API's operations, which the backend answers.
type operation struct {
	*apis.Row
	api apis.API
	// whole is whether a unary answer can be put together from a stream.
	whole bool
	// responses is whether answers have ids that later requests continue.
	responses bool
	// passes is whether the request is forwarded as it is, whatever it asks for.
	passes bool
}

// other is what engine knows nothing of and the backend may.
var other = operation{Row: apis.Other.Row(), passes: true}

var operations = func() (all []operation) {
	for a := apis.Chat; a < apis.Len; a++ {
		all = append(all, operation{Row: a.Row(), api: a, whole: a == apis.Chat || a == apis.Completions, responses: a == apis.Responses})
	}
	return all
}()

// label names the operation in metrics.
func (o operation) label() string {
	if o.passes {
		return o.Name
	}
	return strings.TrimPrefix(o.Path, "/v1")
}

// New returns a server.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, started: time.Now(), mux: http.NewServeMux(), room: semaphore.NewWeighted(Bodies), batcher: coalesce.New[kin, json.RawMessage, share](), single: make(chan struct{}, 1)}
	for _, op := range operations {
		for _, path := range append([]string{op.Path}, op.Aliases...) {
			s.mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) { s.complete(op, w, r) })
			s.mux.HandleFunc(path, wrongMethod)
		}
		if op.Generates {
			s.mux.HandleFunc("POST "+ContinuePath+op.Path, func(w http.ResponseWriter, r *http.Request) { s.proceed(op, w, r) })
		}
	}
	if cfg.Conversations != nil {
		s.handleStored()
	}
	for _, prefix := range []string{"", "/v1"} {
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

// ServeHTTP answers one request. A slash behind a path changes nothing.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if path := strings.TrimRight(r.URL.Path, "/"); path != "" && path != r.URL.Path {
		u := *r.URL
		u.Path, u.RawPath = path, ""
		r = r.WithContext(r.Context())
		r.URL = &u
	}
	s.mux.ServeHTTP(w, r)
}

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

func (s *Server) entries() []apis.Model {
	v, _ := s.cfg.Serving()
	if v == nil {
		return nil
	}
	return []apis.Model{apis.NewModel(v.Assignment.GetModel(), s.started.Unix())}
}

func (s *Server) models(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, apis.NewModels(s.entries()...))
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
