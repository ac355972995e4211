// Package gateway is the sidecar of an Envoy: it reports whether Envoy accepts requests,
// forwards its statistics, and drains Envoy before both end.
//
// Called by `millrace gateway`, which in a Pod is the container that ends before Envoy's,
// and by `millrace up`. Its one rule: Envoy's admin port, which can stop Envoy, is asked
// over loopback and shown to nobody.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/internal/obs"
)

// Options is what a gateway is.
type Options struct {
	// Admin is "ip:port" of Envoy's admin port.
	Admin string
	// Probes is "ip:port" of the pages: /healthz, /readyz, /metrics.
	Probes string
	// Linger is how long requests are still taken once the end was asked for: until
	// everybody has learned that they are to go elsewhere.
	Linger time.Duration
	// Grace bounds the whole end, from when it was asked for. Requests in flight are cut then.
	Grace time.Duration
	// Log gets the changes of state.
	Log *slog.Logger
}

// idleWait is for how long after Linger connections without a request are waited for:
// one that is closed while its client writes the next request fails that request.
const idleWait = 10 * time.Second

// gateway is one that runs.
type gateway struct {
	Options
	draining atomic.Bool
}

// Run serves the pages until ctx ends, empties Envoy, and returns.
func Run(ctx context.Context, o Options) error {
	ln, err := net.Listen("tcp", o.Probes)
	if err != nil {
		return &obs.Hint{Err: fmt.Errorf("probes: %w", err), Next: "set -probes to a free ip:port of this machine"}
	}
	x := &gateway{Options: o}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	g := errgroup.Group{}
	g.Go(func() error { return obs.Serve(serving, ln, x.pages()) })
	g.Go(func() error {
		defer stop()
		select {
		case <-ctx.Done():
			x.drain(serving)
		case <-serving.Done(): // the pages are gone
		}
		return nil
	})
	o.Log.Info("ready", "probes", ln.Addr().String(), "admin", o.Admin)
	return g.Wait()
}

// pages are what kubelet and Prometheus ask for.
func (x *gateway) pages() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := x.ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		var text strings.Builder
		err := Admin(r.Context(), http.MethodGet, x.Admin, "/stats/prometheus", func(line string) { text.WriteString(line + "\n") })
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		_, _ = io.WriteString(w, text.String())
	})
	return mux
}

var (
	errDraining   = errors.New("draining: new connections go elsewhere")
	errNoListener = errors.New("envoy has no listener: xds has published none yet")
)

// ready returns why Envoy should not be sent requests; nil: it should. Envoy calls itself
// live also when xds has not answered in time, and then listens nowhere.
func (x *gateway) ready(ctx context.Context) error {
	if x.draining.Load() {
		return errDraining
	}
	if err := Admin(ctx, http.MethodGet, x.Admin, "/ready", nil); err != nil {
		return fmt.Errorf("envoy: %w", err)
	}
	n := 0
	if err := Admin(ctx, http.MethodGet, x.Admin, "/listeners", func(string) { n++ }); err != nil {
		return fmt.Errorf("envoy: %w", err)
	}
	if n == 0 {
		return errNoListener
	}
	return nil
}

// drain has every answer close its connection, and waits until nobody is left.
func (x *gateway) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, x.Grace)
	defer cancel()
	x.draining.Store(true)
	began := time.Now()
	if err := Admin(ctx, http.MethodPost, x.Admin, "/healthcheck/fail", nil); err != nil {
		x.Log.Warn("envoy can't be drained", "error", err)
		return
	}
	x.Log.Info("draining")
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			x.Log.Warn("requests in flight are cut", "after", x.Grace)
			return
		case <-tick.C:
		}
		a, err := InFlight(ctx, x.Admin)
		if err != nil && ctx.Err() == nil {
			x.Log.Warn("envoy has ended before it was empty", "error", err)
			return
		}
		passed := time.Since(began)
		if err == nil && passed >= x.Linger && a.Requests == 0 && (a.Connections == 0 || passed >= x.Linger+idleWait) {
			x.Log.Info("drained", "after", passed.Round(time.Millisecond), "idle", a.Connections)
			return
		}
	}
}
