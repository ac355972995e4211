package fleet

import (
	"math"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/xds/internal/scale"
	"millrace.dev/millrace/xds/internal/turns"
)

// meter measures what is asked of a model, and what its replicas can do.
type meter struct {
	at time.Time // of the last count; zero: there was none
	// seen are the totals of engines when they were last counted, by node.
	seen map[string]*enginepb.Totals
	// ended counts requests that have ended, most is how many had ended or were known of at
	// most: what is more than that has just arrived.
	ended, most float64
	// recent is requests that ended of late: tokens that were not cached, and those of
	// answers. The longer ago, the less they count.
	recent   scale.Load
	arrivals float64 // per second, since the last count
	rates    map[int]*capability
	last     scale.Demand
}

// meanFor is in how long a request counts for half as much, nearly, in the mean of its tokens.
const meanFor = 5 * time.Minute

func newMeter() meter {
	return meter{seen: map[string]*enginepb.Totals{}, rates: map[int]*capability{}}
}

// count takes in what engines report, and how many requests wait elsewhere.
func (m *meter) count(now time.Time, heads []*node, queued int) {
	passed := now.Sub(m.at)
	first := m.at.IsZero() || passed <= 0
	m.at = now
	fade := math.Exp(-passed.Seconds() / meanFor.Seconds())
	if first {
		fade = 1
	}
	m.recent = m.recent.Scaled(fade)
	seen := make(map[string]*enginepb.Totals, len(heads))
	known := float64(queued)
	for _, n := range heads {
		t, l := n.engine.GetTotals(), n.engine.GetLoad()
		known += float64(l.GetRunning() + l.GetWaiting())
		seen[n.name] = t
		had := m.seen[n.name]
		stages := len(n.engine.GetAssignment().GetStages())
		p := m.rates[stages]
		if p == nil {
			p = &capability{}
			m.rates[stages] = p
		}
		p.learn(n)
		if had == nil || t.GetRequests() < had.GetRequests() || first {
			continue
		}
		done := doneSince(had, t)
		m.ended += done.Requests
		m.recent = m.recent.Plus(done)
		p.full(n, done, passed)
	}
	m.seen = seen
	came := m.ended + known - m.most
	if first || came < 0 && known == 0 {
		m.most = m.ended + known
		came = 0
	}
	if came = max(0, came); came > 0 {
		m.most += came
	}
	if m.arrivals = 0; passed > 0 && !first {
		m.arrivals = came / passed.Seconds()
	}
}

// doneSince is what an engine has done between two reports.
func doneSince(had, now *enginepb.Totals) scale.Load {
	less := func(a, b uint64) float64 { return float64(a - min(a, b)) }
	return scale.Load{
		Requests: less(now.GetRequests(), had.GetRequests()),
		Prompt:   max(0, less(now.GetPromptTokens(), had.GetPromptTokens())-less(now.GetCachedTokens(), had.GetCachedTokens())),
		Output:   less(now.GetGeneratedTokens(), had.GetGeneratedTokens()),
	}
}

// demand is what is asked now.
func (m *meter) demand(heads []*node, waits turns.Demand, now time.Time) scale.Demand {
	d := scale.Demand{Queued: waits.Waiting, Attainment: -1}
	if waits.Waiting > 0 {
		d.Oldest = max(0, now.Sub(waits.Since))
	}
	for _, n := range heads {
		d.Running += int(n.engine.GetLoad().GetRunning())
		d.Queued += int(n.engine.GetLoad().GetWaiting())
	}
	if d.Load.Requests = m.arrivals; m.recent.Requests > 0 {
		d.Load = m.recent.Scaled(m.arrivals / m.recent.Requests)
	}
	m.last = d
	return d
}

// capability is what replicas of one variant can do.
type capability struct {
	// prompt and output are tokens per second of all slots together, by what the engines
	// have measured of one.
	prompt, output float64
	// reached is which share of that they do when all slots are busy; 0: not known. did is
	// what they have done since it was last found out, within the time busy.
	reached float64
	did     scale.Load
	busy    time.Duration
}

const (
	// busyFor and busyOf are how much has to be seen of replicas that are busy.
	busyFor, busyOf = 10 * time.Second, 3
	// leastReached and mostReached bound how far speed is from what it seems to be.
	leastReached, mostReached = 0.05, 4
	// weightNew is that of a new measurement.
	weightNew = 0.3
)

// learn takes over the speed that an engine has measured.
func (p *capability) learn(n *node) {
	s, slots := n.engine.GetSpeed(), float64(max(1, n.engine.GetLoad().GetSlots()))
	blend := func(was *float64, is float64) {
		switch {
		case is <= 0:
		case *was == 0:
			*was = is
		default:
			*was += weightNew * (is - *was)
		}
	}
	blend(&p.prompt, s.GetPrefill()*slots)
	blend(&p.output, s.GetDecode()*slots)
}

// full takes in what an engine has done while it was busy.
func (p *capability) full(n *node, done scale.Load, passed time.Duration) {
	l := n.engine.GetLoad()
	if l.GetWaiting() == 0 && l.GetRunning() < l.GetSlots() || p.prompt == 0 || p.output == 0 {
		return
	}
	p.busy += passed
	p.did = p.did.Plus(done)
	if p.busy < busyFor || p.did.Requests < busyOf {
		return
	}
	share := (p.did.Prompt/p.prompt + p.did.Output/p.output) / p.busy.Seconds()
	if p.reached > 0 {
		share = p.reached + weightNew*(share-p.reached)
	}
	p.reached = min(max(share, leastReached), mostReached)
	p.did, p.busy = scale.Load{}, 0
}

// rate is what one replica can do; zero: not known.
func (p *capability) rate() scale.Load {
	if p == nil || p.prompt == 0 || p.output == 0 {
		return scale.Load{}
	}
	share := p.reached
	if share == 0 {
		share = 1
	}
	return scale.Load{Prompt: p.prompt * share, Output: p.output * share}
}
