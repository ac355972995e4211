package mesh

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/state"
	"millrace.dev/millrace/xds/fleetpb"
)

// sweepEvery is how often the kernel is asked whether state.json is still true.
const sweepEvery = 100 * time.Millisecond

// mesh is the running mesh.
type mesh struct {
	plan  Plan
	store *state.Store
	show  *console
	// first are the replicas of the configuration at the start: what is desired until
	// xds reports what it has accepted.
	first []replica
	// example is a model that can be asked.
	example string
	// certs replaces the certificates, and operator is the one of `millrace up` itself;
	// nil: cleartext.
	certs    *certificates
	operator *mtls.Source
	// key is the API key of `millrace up` and `millrace chat`; empty: none is needed.
	key string
	// config follows the user's file; nil: there is none.
	config *desired.File

	// Atomic.
	view   atomic.Pointer[fleetpb.FleetView] // what xds said last; nil: nothing yet
	proven atomic.Bool                       // whether every replica has answered once
}

// run keeps the mesh up until ctx ends.
func (m *mesh) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		watchParent(ctx, func() { cancel(errOrphaned) })
		return nil
	})
	g.Go(func() error {
		newSupervisor(m.plan.Specs, m.store, m.show).Run(ctx, m.drain)
		return nil
	})
	g.Go(func() error {
		return watchFleet(ctx, m.plan.XDS, m.operator.DialOption(mtls.Is(mtls.XDS)), m.view.Store)
	})
	for node, addr := range m.plan.Engines {
		c := children{node: node}
		security := m.operator.DialOption(mtls.IsEngineOf(node))
		g.Go(func() error {
			return watchEngine(ctx, addr, security, func(st *enginepb.Status) { m.engine(&c, st) })
		})
	}
	if m.certs != nil {
		g.Go(func() error { return m.certs.run(ctx, m.show) })
	}
	if m.config != nil {
		g.Go(func() error { return m.config.Run(ctx) })
		g.Go(func() error { return m.follow(ctx) })
	}
	g.Go(func() error { return m.sweep(ctx) })
	g.Go(func() error { return m.announce(ctx) })
	err := g.Wait()
	if cause := context.Cause(ctx); errors.Is(cause, errOrphaned) {
		m.show.progress("%v: everything was stopped", cause)
	}
	return err
}

func (m *mesh) engine(c *children, st *enginepb.Status) {
	_ = m.store.Update(func(s *state.State) { c.apply(s, st) })
}

// sweep keeps state.json in step with what nothing reports, and the logs
// within their bounds. It prints once when the file can't be written.
func (m *mesh) sweep(ctx context.Context) error {
	last, trim := "", time.Now()
	for sleep(ctx, sweepEvery) {
		err := m.store.Update(func(s *state.State) { s.Ready = m.ready(s) })
		if text := fmt.Sprint(err); err != nil && text != last {
			m.show.progress("state.json is out of date: %v", err)
			last = text
		}
		if time.Since(trim) > trimEvery {
			trimLogs(m.plan.Logs)
			trim = time.Now()
		}
	}
	return m.store.Update(func(s *state.State) { s.Ready = false })
}

// ready is as State.Ready says. While xds is away its last word holds, as it
// does for Envoy.
func (m *mesh) ready(s *state.State) bool {
	envoy := s.Find("envoy")
	return m.proven.Load() && envoy != nil && envoy.Status == state.Running && serves(m.view.Load(), m.replicas(m.view.Load()))
}

// announce waits for true readiness and says so.
func (m *mesh) announce(ctx context.Context) error {
	began := time.Now()
	if err := m.awaitReady(ctx); err != nil {
		return nil // only ctx ends it
	}
	m.proven.Store(true)
	_ = m.store.Update(func(s *state.State) { s.Ready = m.ready(s) })
	m.show.progress("every replica that is loaded has answered, %s after the start", short(time.Since(began)))
	if m.plan.HTTPS != "" {
		m.show.progress("clients with TLS: https://%s", m.plan.HTTPS)
	}
	model := m.example
	if rs, out := m.due(m.view.Load()); len(out) > 0 && len(rs) > 0 {
		model = rs[0].model // one that is served
	}
	m.show.line(readyText(reachable(m.plan.Listen), model, m.plan.Page, obs.Quote(m.plan.Logs)))
	return nil
}

// example is the model of the first replica, and where there is none, as others run all
// engines, the first that these serve; empty: there is no model.
func example(f config.File) string {
	if r := replicas(f); len(r) > 0 {
		return r[0].model
	}
	if len(f.Models) > 0 {
		return f.Models[0].Metadata.Name
	}
	return ""
}

func readyText(addr, model, page, logs string) string {
	return fmt.Sprintf(`ready http://%[1]s
try:  curl http://%[1]s/v1/chat/completions -H 'content-type: application/json' -d '{"model":%[2]q,"messages":[{"role":"user","content":"Hello!"}]}'
page: http://%[3]s/page/
logs: %[4]s
`, addr, model, page, logs)
}
