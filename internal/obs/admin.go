package obs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"millrace.dev/millrace/internal/secret"
)

// Condition is something that is wrong now. Text is for a person, Next is the
// way out, Code is for a machine and never changes its meaning.
type Condition struct {
	Code string `json:"code"`
	Text string `json:"text,omitempty"`
	Next string `json:"next,omitempty"`
	// Severity is how much of the program's own work is stopped by it.
	Severity Severity `json:"severity"`
}

// Severity is what a Condition means for the program that has it. Whoever says nothing
// says Degraded: a probe that takes a program out of service by mistake takes out every
// one of its kind at once, as they all see the same.
type Severity int

// The severities. What is wrong with others (an engine that is down, a file that can't be
// read again) is Degraded, as the program serves on without it.
const (
	// Degraded is worth a look; the program does its work.
	Degraded Severity = iota
	// Blocking keeps the program from its work: who asks it is served better by another.
	Blocking
)

// severities are the names, by Severity.
var severities = []string{"degraded", "blocking"}

// String returns the name.
func (s Severity) String() string { return severities[s] }

// MarshalText writes the name.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the name.
func (s *Severity) UnmarshalText(text []byte) error {
	i := slices.Index(severities, string(text))
	if i < 0 {
		return fmt.Errorf("severity %q; must be one of %s", text, strings.Join(severities, ", "))
	}
	*s = Severity(i)
	return nil
}

// stopGrace is how long Serve waits for requests in flight when it is to end.
const stopGrace = 2 * time.Second

// Admin returns the handler of a program's admin port: the pages of Probes and
// /debug/pprof/.
func Admin(reg *prometheus.Registry, conditions func() []Condition, w *Watch) http.Handler {
	mux := pages(reg, conditions, w)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// Probes returns the handler of the pages for who has no certificate, a kubelet and
// Prometheus: those that hold no secret and cost little. Of conditions they have the
// codes and severities: texts name files, nodes and addresses.
func Probes(reg *prometheus.Registry, conditions func() []Condition, w *Watch) http.Handler {
	return pages(reg, func() (list []Condition) {
		if conditions == nil {
			return nil
		}
		for _, c := range conditions() {
			list = append(list, Condition{Code: c.Code, Severity: c.Severity})
		}
		return list
	}, w)
}

// pages returns the handler of /metrics, /healthz (200 while nothing that w watches is
// stuck, else 503: start the program anew) and
// /readyz (the list of conditions, with 503 while one of them is Blocking; a nil
// conditions is never unready).
func pages(reg *prometheus.Registry, conditions func() []Condition, watch *Watch) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if stuck := watch.Stuck(); len(stuck) > 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(strings.Join(stuck, "\n") + "\n"))
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		writeConditions(w, conditions)
	})
	return mux
}

func writeConditions(w http.ResponseWriter, conditions func() []Condition) {
	list := []Condition{}
	if conditions != nil {
		list = append(list, conditions()...)
	}
	for i := range list {
		list[i].Text, list[i].Next = secret.Hide(list[i].Text), secret.Hide(list[i].Next)
	}
	w.Header().Set("Content-Type", "application/json")
	if slices.ContainsFunc(list, func(c Condition) bool { return c.Severity == Blocking }) {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(list)
}

// Serve serves h on ln until ctx ends, then gives requests in flight two
// seconds. It returns nil when it ended because of ctx. It speaks HTTP/1.1 and
// HTTP/2, both without TLS unless tune sets it up: Envoy finds a program that hangs
// by HTTP/2's pings.
func Serve(ctx context.Context, ln net.Listener, h http.Handler, tune ...func(*http.Server)) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	for _, t := range tune {
		t(srv)
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	})
	err := srv.Serve(ln)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
