package fleet

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/probe"
	"millrace.dev/millrace/internal/scrape"
)

// How endpoints are asked who they are.
const (
	// askers is how many are asked at a time.
	askers = 16
	// askFirst is before one that did not answer is asked again, at first, and askMost at
	// most.
	askFirst, askMost = 250 * time.Millisecond, 15 * time.Second
	// askAgain is before one that did is asked again: it may have other models then.
	askAgain = 2 * time.Minute
)

// learning is what an endpoint shows of itself, of which Kubernetes knows no more than the
// address.
type learning struct {
	// Constant.
	address, uid string

	// The rest is guarded by Pools.mu.
	found    probe.Discovered
	answered bool      // whether it has answered
	tries    int       // in a row without an answer
	due      time.Time // when to ask; zero: it is being asked
}

// known returns an entry with what its endpoint has shown of itself. pool is the name of
// its pool, in place of a model's that is not known.
func (p *Pools) known(e inventory.Entry, pool string, now time.Time) inventory.Entry {
	s := p.discoveries[e.Address]
	if s == nil || s.uid != e.UID {
		s = &learning{address: e.Address, uid: e.UID, due: now}
		p.discoveries[e.Address] = s
		p.offerLocked(s)
	}
	e.Type, e.Metrics, e.Models = s.found.Type, s.found.Metrics, s.found.Models
	if e.Type == "" {
		e.Type = config.TypeOpenAI
	}
	if len(e.Models) == 0 {
		e.Models = []string{pool}
	}
	if !scrape.Named(e.Type).Events() {
		e.KVEvents = config.KVEvents{}
	}
	return e
}

// modelsLocked returns the models that an endpoint says it serves; nil: it does not say.
func (p *Pools) modelsLocked(address string) []string {
	if s := p.discoveries[address]; s != nil {
		return s.found.Models
	}
	return nil
}

// newsTicks is after how many ticks it is checked who shows models that it has not named.
const newsTicks = 5

// askLocked has those asked who are due. One whose engine runs adapters that it did not
// name, or which has begun anew, is due soon. n is the number of the tick.
func (p *Pools) askLocked(now time.Time, n int) {
	for address, s := range p.discoveries {
		if n%newsTicks == 0 && s.answered && !s.due.IsZero() && p.newsLocked(address, s) {
			s.due = now
		}
		if !s.due.IsZero() && !now.Before(s.due) && !p.offerLocked(s) {
			return // all are busy: the next tick
		}
	}
}

// newsLocked reports whether an endpoint shows a model that it has not named.
func (p *Pools) newsLocked(address string, s *learning) bool {
	l := p.locals[address]
	if l == nil || l.last == nil || l.last.Adapters == nil {
		return false
	}
	for _, name := range l.last.Adapters.Running {
		if !slices.Contains(s.found.Models, name) {
			return true
		}
	}
	return false
}

// offerLocked has an endpoint asked; false: nobody has the time now.
func (p *Pools) offerLocked(s *learning) bool {
	select {
	case p.due <- s:
		s.due = time.Time{}
		return true
	default:
		return false
	}
}

// ask asks endpoints who they are, one after the other.
func (p *Pools) ask(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-p.due:
			var pages []string
			if p.options.Pages != nil {
				pages = p.options.Pages(s.address)
			}
			found, err := probe.Discover(ctx, p.get, s.address, pages)
			if ctx.Err() != nil {
				return nil
			}
			p.discovered(s, found, err, time.Now())
		}
	}
}

// discovered takes in what an endpoint has shown of itself. One that answers nothing stays what it
// was.
func (p *Pools) discovered(s *learning, found probe.Discovered, err error, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if most := askMost; err != nil || found.Type == "" && found.Models == nil {
		if err == nil {
			most = askAgain // it answers, and says nothing that we understand
		}
		s.due = now.Add(jitter(min(askFirst<<min(s.tries, 12), most)))
		s.tries++
		return
	}
	changed := !s.answered || found.Type != s.found.Type || found.Metrics != s.found.Metrics || !slices.Equal(found.Models, s.found.Models)
	s.found, s.answered, s.tries = found, true, 0
	s.due = now.Add(jitter(askAgain))
	if changed && p.discoveries[s.address] == s {
		p.stale = true
		p.stir()
	}
}

// jitter keeps questions from coming all at once.
func jitter(d time.Duration) time.Duration { return d - d/8 + rand.N(d/4+1) }
