package fleet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/xds/fleetpb"
)

// plain is an endpoint of a file, which we look at ourselves.
type plain struct {
	// Constant after newPlain.
	spec   config.Endpoint
	typ    *scrape.Type  // nil: it has no metrics
	page   *http.Request // nil like typ
	health *http.Request
	near   bool // whether the page comes from the endpoint itself

	// Atomic.
	due  atomic.Int64 // Unix nanoseconds
	busy atomic.Bool  // whether somebody looks at it, or will

	// The rest is guarded by Local.mu.
	vital   vital
	hearing *hearing // nil: its engine publishes nothing
	// adapters is nil if it serves one model, or its engine shows no adapters.
	adapters *pick.Adapters
	said     *fleetpb.EndpointState
	live     *pick.Live
	last     scrape.Sample
	seen     bool          // whether last was taken
	looked   time.Time     // when last was taken
	pause    time.Duration // before the next look
	fault    error         // of the metrics; nil: they come
	later    time.Time     // when metrics that fail are asked for again
}

// newPlain returns the endpoint; until it is looked at, it is taken to be well.
func newPlain(spec config.Endpoint) (*plain, error) {
	p := &plain{spec: spec, typ: scrape.Named(spec.Type), vital: vital{state: pick.Ready}}
	var err error
	if p.health, err = scrape.NewRequest("http://" + spec.Address + "/health"); err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", spec.Address, err)
	}
	if p.typ != nil {
		if p.page, err = scrape.NewRequest(spec.Metrics); err != nil {
			return nil, fmt.Errorf("endpoint %s: metrics: %w", spec.Address, err)
		}
		u, err := url.Parse(spec.Metrics)
		p.near = err == nil && u.Host == spec.Address
	}
	p.said = &fleetpb.EndpointState{
		Address: spec.Address, Node: spec.Node, Zone: spec.Zone, Model: spec.Models[0], Replica: spec.Address,
		State: fleetpb.EndpointState_READY, Weight: 1, Health: 1, Epoch: 1,
		Load: &enginepb.Load{Slots: uint32(spec.Slots)},
	}
	if len(spec.Models) > 1 && p.typ.Adapters() {
		p.adapters = new(pick.Adapters)
	}
	return p, nil
}

// finding is what one look came to.
type finding struct {
	health error // nil: it answers
	sample *scrape.Sample
	loads  scrape.Adapters
	fault  error // of the metrics
	asked  bool  // whether metrics were asked for
}

// getter fetches a page into a buffer, as scrape.Client does.
type getter func(ctx context.Context, r *http.Request, buf []byte) ([]byte, error)

// look asks the endpoint for its metrics and, if these don't show that it lives,
// for its health.
func (p *plain) look(ctx context.Context, get getter, page bool, buf []byte) (finding, []byte) {
	var f finding
	if page {
		b, err := p.get(ctx, get, p.page, buf)
		buf, f.fault, f.asked = b, err, true
		if err == nil {
			s := p.typ.Scan(b)
			if s.Has == 0 {
				f.fault = errors.New("none of the series of " + p.spec.Type)
			} else {
				f.sample = &s
				if p.adapters != nil {
					f.loads = p.typ.AdaptersOf(b)
				}
			}
		}
		if lost := errors.Is(err, scrape.ErrSilent) || errors.Is(err, scrape.ErrGone); p.near && (err == nil || lost) {
			f.health = err
			return f, buf
		}
	}
	b, err := p.get(ctx, get, p.health, buf)
	f.health = alive(err)
	return f, b
}

func (p *plain) get(ctx context.Context, get getter, r *http.Request, buf []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, lookWait)
	defer cancel()
	return get(ctx, r, buf)
}

// take takes a look's finding in. It returns whether what tables say of the
// endpoint is to change, and what its engine has done since the last look.
func (p *plain) take(f *finding, now time.Time, n int) (changed bool, done *scrape.Since, company float64) {
	was := p.vital.state
	p.vital.look(f.health)
	changed = p.vital.state != was
	moves := changed
	if f.asked {
		p.fault = f.fault
		p.later = now
		if f.health == nil {
			p.later = now.Add(pageAgain)
		}
	}
	if s := f.sample; s != nil {
		if p.seen {
			d, restarted := s.Since(&p.last)
			switch {
			case restarted:
				p.restart()
				changed = true
			case d != scrape.Since{}:
				done, moves = &d, true
			}
			company = (s.Running + p.last.Running) / 2
		}
		moves = moves || s.Running+s.Waiting > 0
		changed = p.learnSize(s) || changed
		if p.adapters != nil {
			p.adapters.Report(f.loads.Most, f.loads.Running, f.loads.Waiting)
		}
		p.live.ReportFromFleet(pick.Report{Requests: int64(s.Running + s.Waiting), Waiting: int64(s.Waiting), KV: s.KV}, now)
		p.last, p.seen = *s, true
	} else if p.vital.state == pick.NotReady && was != pick.NotReady && !errors.Is(f.health, scrape.ErrSilent) {
		p.restart() // nobody is there: what was cached is gone
		changed = true
	}
	p.pause = jitter(p.vital.pause(now.Sub(p.looked), moves || p.working(), n))
	p.looked = now
	p.due.Store(now.Add(p.pause).UnixNano())
	return changed, done, company
}

// wantsPage tells whether metrics are to be asked for now.
func (p *plain) wantsPage(now time.Time) bool {
	return p.typ != nil && (p.fault == nil || !now.Before(p.later))
}

// working tells whether requests of our own are there.
func (p *plain) working() bool {
	n, _ := p.live.InFlight()
	return n > 0
}

// restart makes the engine a new one, with empty caches.
func (p *plain) restart() {
	p.said.Epoch++
	p.seen = false
	if p.adapters != nil {
		p.adapters.Forget()
	}
}

// learnSize finds out how large the engine is: its cache says so, and if requests
// wait, all slots are taken.
func (p *plain) learnSize(s *scrape.Sample) (changed bool) {
	l := p.said.GetLoad()
	if n := uint64(s.KVTokens); n != l.GetKvTotalTokens() {
		l.KvTotalTokens, changed = n, true
	}
	if n := uint32(min(s.Running, 65536)); p.spec.Slots == 0 && s.Waiting > 0 && n > l.GetSlots() {
		l.Slots, changed = n, true
	}
	return changed
}

// jitter keeps looks from coming all at once.
func jitter(d time.Duration) time.Duration {
	return d - d/8 + time.Duration(rand.Int64N(int64(d/4)+1))
}
