package pick

import (
	"math"
	"time"
)

// Answer is what Envoy says of a request's response headers.
type Answer struct {
	// Status is the HTTP status.
	Status int
	// Attempts is how many hosts Envoy tried; 0: not said.
	Attempts int
	// Served is the "ip:port" that answered; empty: not said.
	Served string
	// Answered is the "ip:port" of who gave the answer, which is another one than Served
	// where several were asked at a time; empty: not said.
	Answered string
}

// notImplemented is the status of an operation that an engine does not have.
const notImplemented = 501

// Judge draws the conclusions about the hosts of a choice: those that failed
// are ejected, the one that answered is reinstated. It returns
// the endpoint that answered, or nil. sent is when the choice was made, h when the next
// endpoint was to be asked, too.
func (p *Picker) Judge(m *Model, list []Candidate, a Answer, h Hedge, sent, now time.Time) *Endpoint {
	if a.Status == notImplemented {
		return m.Endpoint(a.Served) // what it can't do is no fault of it, nor of those tried before
	}
	failed, answered := verdict(len(list), indexOf(list, a.Served), a.Attempts, a.Status)
	if i := indexOf(list, a.Answered); h.After > 0 && i >= 0 && a.Status < 500 {
		failed, answered = i, i // those behind it have not failed: they were not waited for
		needed := 0.0
		if i == 0 && a.Attempts > 1 {
			needed = float64(now.Sub(sent)) / float64(h.Due)
		}
		m.patience.answered(needed)
	}
	// What fails on every host accuses the request as much as the hosts.
	grow := a.Status < 500 || failed < 2
	for i := range list[:failed] {
		if list[i].eject(sent, now, grow) {
			p.metrics.ejections.Inc()
		}
		list[i].served.failures.Add(1)
	}
	if answered < 0 {
		if a.Status >= 500 {
			return nil
		}
		return m.Endpoint(a.Served)
	}
	list[answered].reinstateSince(sent)
	return list[answered].Endpoint
}

func indexOf(list []Candidate, address string) int {
	if address == "" {
		return servedUnknown
	}
	for i := range list {
		if list[i].Address == address {
			return i
		}
	}
	return servedOther
}

// compare counts how well an answer that took so many seconds was predicted.
func (m *metrics) compare(predicted *Candidate, completion int, took float64) {
	took = math.Max(took, 0.001)
	expected := math.Max(predicted.Finish()/1000, 0.001)
	m.predictions.Observe(math.Abs(expected-took) / took)
	m.asPredicted.Observe(took / expected)
	if predicted.Output > 0 && completion > 0 {
		real := expected + predicted.Decode/1000*(float64(completion)/float64(predicted.Output)-1)
		m.asLong.Observe(took / math.Max(real, 0.001))
	}
}

// Learn takes in what an engine said of an answer by e. predicted is the
// candidate that was chosen, at sent; now the answer is whole.
func (p *Picker) Learn(m *Model, e *Endpoint, predicted *Candidate, u Usage, sent, now time.Time) {
	took := now.Sub(sent)
	u = u.believed(1000 * took.Seconds())
	company := math.Max(1, predicted.Company)
	estimated := 0
	if predicted.Endpoint.Live == e.Live {
		estimated = predicted.Cached
		p.metrics.compare(predicted, u.Completion, took.Seconds())
	}
	// What was there when it began, and what is when it ends.
	usual := m.usual()
	if w := e.load(now.UnixNano(), &usual); e.Slots > 0 {
		company = (company + min(max(1, w.requests), float64(e.Slots))) / 2
	}
	seen := e.learn(u, company, estimated, now.UnixNano())
	pooled := seen.pooled(e.Prior)
	update(&m.speed, &pooled, now.UnixNano())
	m.learn(u)
	if idle := e.KV.Idle(now.Unix()); idle > 0 {
		m.idle.add(idle, idle)
		m.regret.add(e.KV.Regret(firstReuse), firstReuse)
	}
	s := p.metrics.models.of(m.Name)
	s.answered(&u)
	s.expected.Add(float64(estimated))
	e.served.answered(&u)
}
