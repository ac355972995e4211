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
	// Key names what was asked, so that the same request is known again; 0: nothing does.
	Key uint64
	// Answered is the "ip:port" of who gave the answer, which is another one than Served
	// where several were asked at a time; empty: not said.
	Answered string
	// Halted is whether the request was not tried at a further endpoint because it has hurt
	// two, and Unanswered how many of these had it and ended without an answer.
	Halted     bool
	Unanswered int
}

// notImplemented is the status of an operation that an engine does not have.
const notImplemented = 501

// internalError is the status of an engine that fails at a request and serves others.
const internalError = 500

// Judge draws the conclusions about the hosts of a choice: those that failed
// are ejected, the one that answered is reinstated. It returns the endpoint that
// answered, or nil, and whether the request is to blame, not the hosts. sent is when the
// choice was made, h when the next endpoint was to be asked, too.
func (p *Picker) Judge(m *Model, list []Candidate, a Answer, h Hedge, sent, now time.Time) (served *Endpoint, blamed bool) {
	if a.Status == notImplemented {
		return m.Endpoint(a.Served), false // what it can't do is no fault of it, nor of those tried before
	}
	at := indexOf(list, a.Served)
	if a.Halted && at >= a.Attempts {
		at = servedUnknown // the next one was chosen, and not asked
	}
	failed, answered := verdict(len(list), at, a.Attempts, a.Status)
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
	alike := a.Status == internalError || a.Halted
	blamed = alike && failed > 0
	for i := range list[:failed] {
		list[i].served.failures.Add(1)
		if alike && !list[i].ill(a.Key, now) {
			continue
		}
		blamed = false
		if list[i].eject(sent, now, grow) {
			p.metrics.ejections.Inc()
		}
	}
	if blamed {
		p.metrics.blamed.Inc()
	}
	if answered < 0 {
		if a.Status >= 500 {
			return nil, blamed
		}
		return m.Endpoint(a.Served), false
	}
	list[answered].reinstateSince(sent)
	list[answered].well()
	return list[answered].Endpoint, false
}

// ill reports whether a request that an engine could not answer, nor any other that it was
// sent to, says that the engine is ill: that it is if it could not answer two others since
// its last answer either. One request may be asked again and again.
func (l *Live) ill(key uint64, now time.Time) bool {
	if key == 0 {
		key = uint64(now.UnixNano()) | 1
	}
	for i := range l.unanswered {
		switch l.unanswered[i].Load() {
		case key:
			return false
		case 0:
			return !l.unanswered[i].CompareAndSwap(0, key) && l.unanswered[i].Load() != key
		}
	}
	return true
}

// well says that the engine has answered a request.
func (l *Live) well() {
	for i := range l.unanswered {
		if l.unanswered[i].Load() != 0 {
			l.unanswered[i].Store(0)
		}
	}
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
