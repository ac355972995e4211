package probe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/reach"
	"millrace.dev/millrace/internal/scrape"
)

// Endpoint is who is to be probed.
type Endpoint struct {
	config.Endpoint
	// UID is the identity of what is behind the address, if that may become another one.
	UID string
}

// target is an endpoint that is probed.
type target struct {
	// Constant after newTarget.
	spec   Endpoint
	typ    *scrape.Type  // nil: it has no metrics
	page   *http.Request // nil like typ
	health *http.Request
	list   *http.Request  // of its models
	about  *http.Request  // says how long its context is; nil: nothing does
	build  *http.Request  // says which version its engine is; nil: nothing does
	near   bool           // whether the page comes from the endpoint itself
	door   *reach.Door    // nil: nothing is special about it
	client *scrape.Client // of its own, for its TLS; nil: it has none

	// Atomic.
	due  atomic.Int64 // Unix nanoseconds
	busy atomic.Bool  // whether somebody probes it, or will

	// The rest is guarded by Prober.mu.
	vital    vital
	events   *events // nil: its engine publishes nothing
	epoch    uint64
	started  float64        // of its process, as its metrics say; 0: they do not
	sample   *scrape.Sample // nil: none since its engine began
	adapters *scrape.Adapters
	scraped  time.Time     // when it was last probed for all that there is to know
	pause    time.Duration // from then until the next such probe
	metrics  error         // why they do not come; nil: they do
	later    time.Time     // when metrics that fail are asked for again
	healthy  time.Time     // when it was last asked for its health
	models   error         // which of its models it does not list; nil: it lists them
	relist   time.Time     // when it is asked for them again
	slots    int
	kvTokens float64
	untrue   float64   // size of the cache that was disproved; 0: none was
	context  int       // in tokens; 0: not known
	version  string    // empty: not known
	again    time.Time // when it is asked for its context
	speed    speeds
	seen     bool // whether it was probed since it is a target
}

// newTarget returns the endpoint, which is taken to be well until it is probed.
func newTarget(spec Endpoint, log *slog.Logger) (*target, error) {
	t := &target{spec: spec, typ: scrape.Named(spec.Type), slots: spec.Slots, door: reach.New(spec.Endpoint, log)}
	if spec.TLS.On() {
		t.client = scrape.NewClientTLS(t.door.TLS)
	}
	var err error
	if t.health, err = scrape.NewRequest(spec.HealthURL()); err != nil {
		return nil, fmt.Errorf("endpoint %s: health: %w", spec.Address, err)
	}
	if t.list, err = scrape.NewRequest(spec.URL("/v1/models")); err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", spec.Address, err)
	}
	if page := contextPage(&spec.Endpoint); page != "" {
		if t.about, err = scrape.NewRequest(page); err != nil {
			return nil, fmt.Errorf("endpoint %s: %w", spec.Address, err)
		}
	}
	if page := versionPage(&spec.Endpoint); page != "" {
		if t.build, err = scrape.NewRequest(page); err != nil {
			return nil, fmt.Errorf("endpoint %s: %w", spec.Address, err)
		}
	}
	if t.typ != nil {
		if t.page, err = scrape.NewRequest(spec.Metrics); err != nil {
			return nil, fmt.Errorf("endpoint %s: metrics: %w", spec.Address, err)
		}
		t.near = t.page.URL.Host == t.health.URL.Host
	}
	return t, nil
}

// Same reports whether what is known of an endpoint by probes is true of another entry of
// its address, too.
func Same(a, b Endpoint) bool {
	return a.UID == b.UID && a.Type == b.Type && a.Metrics == b.Metrics && a.SameAccess(b.Endpoint)
}

// inherit takes over what was found out of the same endpoint.
func (t *target) inherit(old *target) {
	t.vital, t.epoch, t.started, t.sample, t.adapters = old.vital, old.epoch, old.started, old.sample, old.adapters
	if t.spec.Models[0] != old.spec.Models[0] {
		t.adapters = nil
	}
	t.scraped, t.metrics, t.later, t.speed, t.seen = old.scraped, old.metrics, old.later, old.speed, old.seen
	t.kvTokens, t.untrue, t.healthy = old.kvTokens, old.untrue, old.healthy
	if slices.Equal(t.spec.Models, old.spec.Models) {
		t.context, t.version, t.again = old.context, old.version, old.again
	}
	t.due.Store(old.due.Load())
	if t.slots == 0 {
		t.slots = old.slots
	}
}

// finding is what one probe came to.
type finding struct {
	health   error // nil: it answers
	sample   *scrape.Sample
	adapters *scrape.Adapters
	metrics  error
	// asked is whether metrics were asked for, judged whether health was.
	asked, judged bool
	models        error
	listed        bool // whether models were asked for
	context       int  // in tokens; 0: it does not say
	answered      bool // whether it was asked for its context
	version       string
}

// How often an endpoint that is Ready is asked for its models: seldom, and sooner where
// they are wrong.
const (
	listEvery = 2 * time.Minute
	listAgain = 10 * time.Second
)

// askModels asks the endpoint which models it serves.
func (t *target) askModels(ctx context.Context, get getter, f *finding, buf []byte) []byte {
	b, err := t.get(ctx, get, t.list, buf)
	f.listed = true
	if err == nil {
		f.models = t.spec.unlisted(b)
	}
	return b
}

// getter fetches a page into a buffer, as scrape.Client does.
type getter func(ctx context.Context, r *http.Request, buf []byte) ([]byte, error)

// question is what a probe asks for.
type question struct{ health, page bool }

// ask returns what to ask the endpoint for now. Its metrics alone show that it lives, if it
// shows them itself, for as long as healthAgain; that it is well only its health says.
func (t *target) ask(now time.Time, working bool) question {
	q := question{page: t.pageDue(now, working)}
	q.health = !q.page || !t.near || t.vital.state != Ready || now.Sub(t.healthy) >= healthAgain
	return q
}

// probe asks the endpoint for its health, its metrics or both. What it finds of one says
// nothing about the other, but that metrics that fail are a reason to ask for health, and
// that nobody is there.
func (t *target) probe(ctx context.Context, get getter, q question, buf []byte) (finding, []byte) {
	var f finding
	if q.health {
		f.judged = true
		buf, f.health = t.alive(ctx, get, buf)
	}
	if !q.page || t.near && lost(f.health) {
		return f, buf
	}
	b, err := t.get(ctx, get, t.page, buf)
	buf, f.metrics, f.asked = b, err, true
	if err == nil {
		f.read(t, b)
	} else if !q.health {
		f.judged = true
		buf, f.health = t.alive(ctx, get, buf)
	}
	return f, buf
}

// alive asks the endpoint for its health.
func (t *target) alive(ctx context.Context, get getter, buf []byte) ([]byte, error) {
	buf, err := t.get(ctx, get, t.health, buf)
	return buf, alive(err)
}

// askContext asks an endpoint that lives how long its context is.
func (t *target) askContext(ctx context.Context, get getter, f *finding, buf []byte) []byte {
	if t.about == nil || f.health != nil {
		return buf
	}
	page, err := t.get(ctx, get, t.about, buf)
	switch {
	case err == nil:
		f.answered, f.context = true, contextOf(page, t.spec.Models)
	case !lost(err):
		f.answered = true // it says no
	}
	if t.build == nil || !f.answered {
		return page
	}
	if page, err = t.get(ctx, get, t.build, page); err == nil {
		f.version = versionIn(page)
	}
	return page
}

// read reads a page.
func (f *finding) read(t *target, page []byte) {
	s := t.typ.Scan(page)
	if s.Has&^scrape.Started == 0 {
		f.metrics = errors.New("none of the series of " + t.spec.Type)
		return
	}
	f.sample = &s
	if t.typ.Adapters() && len(t.spec.Models) > 1 {
		a := t.typ.AdaptersOf(page)
		f.adapters = &a
	}
}

func (t *target) get(ctx context.Context, get getter, r *http.Request, buf []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	if t.client != nil {
		get = t.client.Get
	}
	if t.door != nil {
		with, err := t.door.Request(r)
		switch {
		case err == nil:
			r = with
		case r == t.page:
			return buf[:0], err
		} // health mostly needs no key: an engine is not down for ours
	}
	buf, err := get(ctx, r, buf)
	return buf, t.advise(err)
}

// close ends what is the target's own.
func (t *target) close() {
	if t.client != nil {
		t.client.Close()
	}
}

// take takes a probe's finding in. It returns what the engine has done since the last
// probe, if it is known. working is whether requests are known to be there, n is how many
// endpoints there are.
func (t *target) take(f *finding, now time.Time, working bool, n int) (done *scrape.Since, company float64) {
	was, began := t.vital.state, t.epoch
	t.vital.probed(f.health)
	t.seen = true
	if f.answered {
		t.context, t.version, t.again = f.context, f.version, now.Add(jitter(contextAgain))
	}
	moves := t.vital.state != was
	if f.judged {
		t.healthy = now
	}
	if f.asked {
		t.metrics = f.metrics
		t.later = now
		if f.health == nil {
			t.later = now.Add(pageAgain)
		}
	}
	if f.listed {
		t.models, t.relist = f.models, now.Add(jitter(listEvery))
		if f.models != nil {
			t.relist = now.Add(jitter(listAgain))
		}
	}
	if t.vital.state == NotReady {
		t.models, t.relist = nil, time.Time{} // who answers next may be another one
	}
	if s := f.sample; s != nil {
		done, company = t.since(s, now)
		t.doubt(s, done)
		moves = moves || done != nil || s.Running+s.Waiting > 0
		if t.spec.Slots == 0 && s.Waiting > 0 {
			t.learnSlots(int(min(s.Running, maxSlots)))
		}
		t.sample, t.adapters, t.kvTokens = s, f.adapters, s.KVTokens
	} else if t.vital.state == NotReady && was != NotReady && !errors.Is(f.health, scrape.ErrSilent) {
		t.restarted(now) // nobody is there: what was cached is gone
	}
	if t.typ == nil || f.asked || t.metrics != nil || moves {
		t.pause = jitter(t.vital.pause(now.Sub(t.scraped), moves || working, n))
		t.scraped = now
	}
	if t.epoch != began || t.vital.state == NotReady {
		t.again = time.Time{} // the next engine may have another context
	}
	next := now.Add(jitter(healthPause(n)))
	if at := t.scraped.Add(t.pause); at.Before(next) {
		next = at
	}
	t.due.Store(next.UnixNano())
	return done, company
}

// doubt takes the size of the cache out of a sample if it is not true: prompts were longer, or
// more was cached at a time. One that was disproved stays so for as long as it is the same.
func (t *target) doubt(s *scrape.Sample, done *scrape.Since) {
	if s.KVTokens == 0 {
		return
	}
	least := mean(max(s.Prompt, s.Cached), s.Requests)
	if done != nil {
		least = max(least, mean(max(done.Prompt, done.Cached), done.Requests))
	}
	if t.events != nil {
		least = max(least, float64(t.events.Tokens()))
	}
	if least > s.KVTokens {
		t.untrue = s.KVTokens
	}
	if s.KVTokens == t.untrue {
		s.KVTokens = 0
		s.Has &^= scrape.KVTokens
	}
}

// mean is tokens by request; 0: there was none.
func mean(tokens, requests float64) float64 {
	if requests == 0 {
		return 0
	}
	return tokens / requests
}

// figures returns what the endpoint's metrics say; nil: they don't come now.
func (t *target) figures() *scrape.Sample {
	if t.metrics != nil || t.near && lost(t.vital.err) {
		return nil
	}
	return t.sample
}

// learnSlots takes in that requests wait while n run: all slots are taken. Fewer than before
// are believed slowly, as an engine's last moments of a batch have fewer: a number that was
// never true is gone in a minute.
func (t *target) learnSlots(n int) {
	if n < t.slots {
		n = t.slots - max(1, (t.slots-n)/slotsStep)
	}
	t.slots = n
}

// slotsStep is the part of the difference that each probe takes away.
const slotsStep = 4

// maxSlots bounds how many requests an engine is taken to work on at a time.
const maxSlots = 65536

// since compares a sample with the last one, and finds out whether the engine has begun
// anew between them.
func (t *target) since(s *scrape.Sample, now time.Time) (done *scrape.Since, company float64) {
	if old := t.sample; old != nil {
		company = (s.Running + old.Running) / 2
		switch d, restarted := s.Since(old); {
		case restarted:
			t.restarted(now)
		case d != scrape.Since{}:
			done = &d
		}
	}
	if s.Has&scrape.Started != 0 && s.Started != t.started {
		t.started, t.epoch = s.Started, uint64(1000*s.Started)
	}
	return done, company
}

// restarted makes the engine a new one, with empty caches.
func (t *target) restarted(now time.Time) {
	switch {
	case t.started == 0:
		t.epoch = max(uint64(now.UnixMilli()), t.epoch+1)
	case t.vital.state == Ready:
		t.epoch++ // and its process is the same, as far as it says
	}
	t.sample, t.adapters = nil, nil
	t.slots = t.spec.Slots // it may have been started with others
}

// pageDue reports whether metrics are to be asked for now, beside health: seldom where
// nothing moves. working is whether requests are known to be there.
func (t *target) pageDue(now time.Time, working bool) bool {
	switch {
	case t.typ == nil:
		return false
	case t.metrics != nil:
		return !now.Before(t.later)
	}
	return working || t.vital.state != Ready || !now.Before(t.scraped.Add(t.pause))
}

// jitter keeps probes from coming all at once.
func jitter(d time.Duration) time.Duration {
	return d - d/8 + time.Duration(rand.Int64N(int64(d/4)+1))
}
