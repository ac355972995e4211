package pick

import (
	"math"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestLoadTakesTheBetterReport(t *testing.T) {
	l := new(Live)
	l.ReportFromFleet(Report{Requests: 9}, epoch)
	l.ReportFromAnswer(Report{Requests: 2}, epoch.Add(100*time.Millisecond))
	l.ReportFromFleet(Report{Requests: 7}, epoch.Add(400*time.Millisecond))
	if n := l.load(epoch.Add(500*time.Millisecond).UnixNano(), new(usual)).requests; n != 2 {
		t.Errorf("load() = %v requests, want the 2 that an answer told", n)
	}
	if n := l.load(epoch.Add(trustFor+200*time.Millisecond).UnixNano(), new(usual)).requests; n != 7 {
		t.Errorf("load() = %v requests, want the 7 that xds told since", n)
	}
}

// TestOthersDoAsWeDo holds what is taken to be at an engine that has six requests of others, by a report that
// came when one of ours was there.
func TestOthersDoAsWeDo(t *testing.T) {
	tests := []struct {
		name              string
		own               int // now
		requests, prompts float64
	}{
		{"as many of ours", 1, 7, 10 * (1 + unseen*6)},
		{"none of ours left: half of theirs", 0, 3, 10 * (1 + unseen*3)},
		{"one more", 2, 11, 10 * (1 + unseen*4.5)},
		{"many more: twice as many at most", 40, 52, 10 * (1 + unseen*12/40)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := new(Live)
			first := l.Reserve(1, 1)
			l.ReportFromAnswer(Report{Requests: 7}, epoch)
			for range tt.own - 1 {
				l.Reserve(1, 1)
			}
			if tt.own == 0 {
				first.Release()
			}
			w := l.load(epoch.UnixNano(), new(usual))
			prompts := w.mirror(10)
			if math.Abs(w.requests-tt.requests) > 1e-9 || math.Abs(prompts-tt.prompts) > 1e-9 {
				t.Errorf("%g requests, %g ms of prompts; want %g, %g", w.requests, prompts, tt.requests, tt.prompts)
			}
		})
	}
}

func TestReservation(t *testing.T) {
	a, b := new(Live), new(Live)
	r := a.Reserve(7, 3)
	r.Move(b)
	if n, tokens := a.InFlight(); n != 0 || tokens != 0 {
		t.Errorf("after Move: %d requests, %d tokens at the first", n, tokens)
	}
	if n, tokens := b.InFlight(); n != 1 || tokens != 10 {
		t.Errorf("after Move: %d requests, %d tokens at the second", n, tokens)
	}
	r.Release()
	r.Release()
	r.Move(a)
	if n, tokens := b.InFlight(); n != 0 || tokens != 0 {
		t.Errorf("after Release: %d requests, %d tokens", n, tokens)
	}
}

func TestVerdict(t *testing.T) {
	tests := []struct {
		name                        string
		n, served, attempts, status int
		failed, answered            int
	}{
		{"the first answers", 3, 0, 1, 200, 0, 0},
		{"the second answers", 3, 1, 2, 200, 1, 1},
		{"the first is unknown to Envoy", 3, 1, 1, 200, 1, 1},
		{"the last fails too", 3, 2, 3, 503, 3, -1},
		{"a client's error is not the host's", 3, 0, 1, 400, 0, 0},
		{"another host answers", 3, servedOther, 4, 200, 3, -1},
		{"another host answers at once", 3, servedOther, 1, 200, 0, -1},
		{"another host answers at the second attempt", 3, servedOther, 2, 200, 1, -1},
		{"another host fails at once", 3, servedOther, 1, 503, 0, -1},
		{"another host answers, attempts are not said", 3, servedOther, 0, 200, 0, -1},
		{"the last named host is said, but Envoy went on", 3, 2, 4, 200, 3, -1},
		{"served is not said", 3, servedUnknown, 2, 200, 1, 1},
		{"nothing is said", 3, servedUnknown, 0, 200, 0, 0},
		{"nothing is said and it failed", 3, servedUnknown, 0, 503, 1, -1},
		{"more attempts than hosts", 2, servedUnknown, 4, 503, 2, -1},
		{"no list", 0, servedUnknown, 1, 200, 0, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			failed, answered := verdict(tt.n, tt.served, tt.attempts, tt.status)
			if failed != tt.failed || answered != tt.answered {
				t.Errorf("verdict() = %d failed, %d answered; want %d, %d", failed, answered, tt.failed, tt.answered)
			}
		})
	}
}

func TestEjection(t *testing.T) {
	l, now := new(Live), epoch
	at := func(d time.Duration) time.Time { return now.Add(d) }
	l.eject(at(-time.Millisecond), now, true)
	if l.standing(at(499*time.Millisecond).UnixNano()) != out {
		t.Fatal("not left out for the first 0.5 s")
	}
	l.eject(at(-time.Millisecond), at(time.Millisecond), true)
	if got := ejection(l.ejected.Load()).fails(); got != 1 {
		t.Errorf("requests sent before the ejection count again: %d failures", got)
	}
	now = at(600 * time.Millisecond)
	if l.standing(now.UnixNano()) != trial || !l.try(now.UnixNano()) || l.try(now.UnixNano()) {
		t.Fatal("want one trial after 0.5 s, and not two")
	}
	l.eject(now, at(10*time.Millisecond), true)
	if l.standing(at(time.Second).UnixNano()) != out || l.standing(at(1011*time.Millisecond).UnixNano()) != trial {
		t.Error("the second ejection does not last 1 s")
	}
	l.reinstateSince(at(-time.Second))
	if l.standing(at(500*time.Millisecond).UnixNano()) == fine {
		t.Error("an answer to an older request ends the ejection")
	}
	l.reinstateSince(at(1200 * time.Millisecond))
	if l.standing(now.UnixNano()) != fine {
		t.Error("an answer does not end the ejection")
	}
	for range 12 {
		l.eject(now, now, true)
		now = now.Add(ejectMost)
	}
	if l.standing(now.UnixNano()) != trial {
		t.Error("an ejection lasts longer than 10 s")
	}
	l.Reinstate()
	if l.standing(now.UnixNano()) != fine {
		t.Error("a change of state does not end the ejection")
	}
}

func TestJudge(t *testing.T) {
	a, b, c := endpoint(0), endpoint(1), endpoint(2)
	m, p := model(a, b, c), New(prometheus.NewRegistry())
	list := []Candidate{{Endpoint: a}, {Endpoint: b}}
	now := epoch.Add(time.Second)
	if got, _ := p.Judge(m, list, Answer{Status: 200, Attempts: 2, Served: b.Address}, Hedge{}, epoch, now); got != b {
		t.Errorf("Judge() = %v, want the second", got)
	}
	if a.standing(now.UnixNano()) != out || b.standing(now.UnixNano()) != fine {
		t.Error("the skipped host is not left out, or the one that answered is")
	}
	if got, _ := p.Judge(m, list, Answer{Status: 200, Attempts: 3, Served: c.Address}, Hedge{}, epoch, now); got != c {
		t.Errorf("Judge() = %v, want the one that Envoy's own policy chose", got)
	}
	a.Reinstate()
	b.Reinstate()
	if got, _ := p.Judge(m, list, Answer{Status: 501, Attempts: 2, Served: b.Address}, Hedge{}, epoch, now); got != b || a.standing(now.UnixNano()) != fine {
		t.Errorf("Judge() = %v of an operation that no host has, want who answered and no ejection", got)
	}
}

// TestRequestsThatHurt distinguishes a request that fails everywhere from an engine that is ill.
func TestRequestsThatHurt(t *testing.T) {
	type step struct {
		status, attempts int
		served           int // the endpoint that answered last
		key              uint64
	}
	fail := func(key uint64) step { return step{500, 2, 1, key} }
	tests := []struct {
		name    string
		steps   []step
		ejected [3]bool
		blamed  int
	}{
		{"it fails on two", []step{fail(1)}, [3]bool{}, 1},
		{"it is asked again and again", []step{fail(1), fail(1), fail(1), fail(1), fail(1)}, [3]bool{}, 5},
		{"two such, and others are answered", []step{fail(1), fail(2), {200, 1, 0, 3}, {200, 1, 1, 4}, fail(5), fail(1)}, [3]bool{}, 4},
		{"it fails on the only one", []step{{500, 1, 0, 1}, {500, 1, 0, 1}}, [3]bool{}, 2},
		{"it fails on all three", []step{{500, 3, 2, 1}}, [3]bool{}, 1},
		{"all fail on two engines: they are ill", []step{fail(1), fail(2), fail(3)}, [3]bool{true, true, false}, 2},
		{"one of the two answers others", []step{fail(1), {200, 1, 1, 9}, fail(2), {200, 1, 1, 9}, fail(3)}, [3]bool{true, false, false}, 2},
		{"the second engine answers: the first is ill", []step{{200, 2, 1, 1}}, [3]bool{true, false, false}, 0},
		{"the second engine refuses it: the first is ill", []step{{400, 2, 1, 1}}, [3]bool{true, false, false}, 0},
		{"nobody can be reached", []step{{503, 2, 1, 1}}, [3]bool{true, true, false}, 0},
		{"a backend is lost", []step{{502, 2, 1, 1}}, [3]bool{true, true, false}, 0},
		{"they are busy", []step{{429, 2, 1, 1}}, [3]bool{true, false, false}, 0},
		{"no keys: each is another request", []step{fail(0), fail(0), fail(0)}, [3]bool{true, true, false}, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			all := []*Endpoint{endpoint(0), endpoint(1), endpoint(2)}
			m, p := model(all...), New(prometheus.NewRegistry())
			var list []Candidate
			for _, e := range all {
				list = append(list, Candidate{Endpoint: e})
			}
			now, blamed := epoch, 0
			for _, s := range tt.steps {
				now = now.Add(time.Millisecond)
				choice := list
				if s.attempts == 1 {
					choice = list[s.served:]
				}
				if _, b := p.Judge(m, choice, Answer{Status: s.status, Attempts: s.attempts, Served: all[s.served].Address, Key: s.key}, Hedge{}, now, now); b {
					blamed++
				}
			}
			for i, e := range all {
				if got := e.standing(now.UnixNano()) == out; got != tt.ejected[i] {
					t.Errorf("endpoint %d ejected: %v, want %v", i, got, tt.ejected[i])
				}
			}
			if blamed != tt.blamed {
				t.Errorf("%d requests are blamed, want %d", blamed, tt.blamed)
			}
		})
	}
}

// asSaid is a model of which nothing was learned.
var asSaid = new(Learned).usual()

func TestLearnsSpeed(t *testing.T) {
	e := endpoint(0)
	m, p := model(e), New(prometheus.NewRegistry())
	var c Choice
	for range 40 {
		if err := p.Pick(&Query{Model: m, Prompt: 200, Output: m.Output(&Shape{Limit: -1}), Most: 1, Now: epoch}, &c); err != nil {
			t.Fatal(err)
		}
		p.Learn(m, e, &c.List[0], Usage{Prompt: 200, Completion: 40, PrefillMs: 200 * 3, DecodeMs: 40 * 7}, epoch, epoch.Add(time.Second))
	}
	usual := m.usual()
	pace := e.pace(epoch.UnixNano(), &usual)
	if math.Abs(pace.prefill-3) > 0.3 || math.Abs(pace.decode-7) > 1.5 {
		t.Errorf("pace = %.2f ms prefill, %.2f ms decode; want about 3 and 7", pace.prefill, pace.decode)
	}
	half := *e
	half.Health = 0.5
	if slow := half.pace(epoch.UnixNano(), &usual); math.Abs(slow.decode-2*pace.decode) > 1e-9 {
		t.Errorf("at half health decode takes %v ms, want twice %v", slow.decode, pace.decode)
	}
	if got := m.Output(&Shape{Limit: -1}); got > 80 {
		t.Errorf("Output() = %d after 40 answers of 40 tokens", got)
	}
	if got := m.Output(&Shape{Limit: 5}); got != 5 {
		t.Errorf("Output(5) = %d", got)
	}
}

// TestOutliersCountForLittle lets one answer of a known endpoint take a hundred
// times as long as the others.
func TestOutliersCountForLittle(t *testing.T) {
	e := endpoint(0)
	usual := Usage{Prompt: 200, Completion: 40, PrefillMs: 200 * 2, DecodeMs: 40 * 20}
	for range 40 {
		e.learn(usual, 1, 0, epoch.UnixNano())
	}
	e.learn(Usage{Prompt: 200, Completion: 40, PrefillMs: 200 * 200, DecodeMs: 40 * 2000}, 1, 0, epoch.UnixNano())
	if pace := e.pace(epoch.UnixNano(), &asSaid); pace.prefill > 3 || pace.decode > 30 {
		t.Errorf("pace = %.2f ms prefill, %.2f ms decode after one slow answer; were 2 and 20", pace.prefill, pace.decode)
	}
}

func TestWhatWasLearnedFades(t *testing.T) {
	e := endpoint(0)
	for range 400 {
		e.learn(Usage{Prompt: 200, Completion: 40, PrefillMs: 200 * 8, DecodeMs: 40 * 80}, 1, 0, epoch.UnixNano())
	}
	was, is := e.pace(epoch.UnixNano(), &asSaid), e.pace(epoch.Add(20*time.Minute).UnixNano(), &asSaid)
	if was.prefill < 6 || is.prefill > 2.1 || is.decode > 21 {
		t.Errorf("prefill %.2f ms, then %.2f; decode %.2f; want about 8, then what the engine says of itself: 2 and 20", was.prefill, is.prefill, is.decode)
	}
}

func TestLearnsThatTheCacheIsShort(t *testing.T) {
	e := endpoint(0)
	m, p := model(e), New(prometheus.NewRegistry())
	for range 60 {
		p.Learn(m, e, &Candidate{Endpoint: e, Cached: 100, Company: 1}, Usage{Prompt: 120, Completion: 10, PrefillMs: 1, DecodeMs: 1}, epoch, epoch.Add(time.Second))
	}
	if got := e.pace(epoch.UnixNano(), &asSaid).hit; got > 0.1 {
		t.Errorf("hit = %v though nothing believed cached ever was", got)
	}
}

func TestLearnsCrowding(t *testing.T) {
	e := endpoint(0)
	m, p := model(e), New(prometheus.NewRegistry())
	for range 200 { // four at a time take as long as one: the machine batches
		p.Learn(m, e, &Candidate{Endpoint: e, Company: 1}, Usage{Prompt: 10, Completion: 20, PrefillMs: 1, DecodeMs: 400}, epoch, epoch.Add(time.Second))
		e.requests.Store(4)
		p.Learn(m, e, &Candidate{Endpoint: e, Company: 4}, Usage{Prompt: 10, Completion: 20, PrefillMs: 1, DecodeMs: 400}, epoch, epoch.Add(time.Second))
		e.requests.Store(0)
	}
	if got := e.pace(epoch.UnixNano(), &asSaid).crowd; got > 0.1 {
		t.Errorf("crowd = %v on a machine that batches for free", got)
	}
}

// TestShortPromptsTeachNothingOfPrefill lets an engine answer short prompts, whose time
// is that of a step, and long ones: its speed is that of the long ones.
func TestShortPromptsTeachNothingOfPrefill(t *testing.T) {
	e := endpoint(0, func(e *Endpoint) { e.Prior = Speed{Prefill: 0.1, Decode: 20} })
	m, p := model(e), New(prometheus.NewRegistry())
	const truth = 0.05
	for i := range 200 {
		n := 20
		if i%10 == 0 {
			n = 8000
		}
		p.Learn(m, e, &Candidate{Endpoint: e}, Usage{Prompt: n, Completion: 50, PrefillMs: 20 + truth*float64(n), DecodeMs: 50 * 20}, epoch, epoch)
	}
	u := m.usual()
	if got := e.pace(epoch.UnixNano(), &u).prefill; got < truth*0.9 || got > truth*1.3 {
		t.Errorf("a prompt token takes %.3f ms, want about %.3f", got, truth)
	}
}

func TestCrowdIsLearnedWhereRequestsAreFew(t *testing.T) {
	e := endpoint(0)
	for i := range 60 {
		more := float64(i % 2)
		e.learn(Usage{Completion: 50, DecodeMs: 50 * 20 * (1 + 0.02*more)}, 1+more, 0, epoch.UnixNano())
	}
	alone, crowd := e.rates.Load().decode.fit()
	if math.Abs(alone-1) > 0.02 || math.Abs(crowd-0.02) > 0.02 {
		t.Errorf("alone %.3f, crowd %.3f; want 1 and 0.02", alone, crowd)
	}
}
