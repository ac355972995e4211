package pick

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestHedge(t *testing.T) {
	const s = time.Second
	known := &Endpoint{Prior: Speed{Prefill: 1, Decode: 10}}
	tests := []struct {
		name   string
		policy time.Duration
		first  Candidate
		hosts  int
		whole  bool
		most   int
		needed float64 // of a hedge for nothing before
		want   time.Duration
	}{
		{"off", 0, Candidate{Endpoint: known}, 2, false, 0, 0, 0},
		{"nobody else", 2 * s, Candidate{Endpoint: known}, 1, false, 0, 0, 0},
		{"no speed is known", 2 * s, Candidate{Endpoint: &Endpoint{}}, 2, false, 0, 0, unknownStream},
		{"nor is one, and all comes at once", 2 * s, Candidate{Endpoint: &Endpoint{}}, 2, true, 0, 0, unknownWhole},
		{"soon", 2 * s, Candidate{Endpoint: known, Terms: Terms{Prefill: 100, Decode: 60_000}}, 2, false, 0, 0, 2 * s},
		{"a long prompt in a queue", 2 * s, Candidate{Endpoint: known, Terms: Terms{Wait: 1000, Load: 500, Prefill: 3500}}, 2, false, 0, 0, 20 * s},
		{"all at once, however long", 2 * s, Candidate{Endpoint: known, Terms: Terms{Prefill: 1000, Decode: 2000}, Output: 100}, 2, true, 0, 0, 36 * s},
		{"all at once, bounded", 2 * s, Candidate{Endpoint: known, Terms: Terms{Prefill: 1000, Decode: 2000}, Output: 100}, 2, true, 150, 0, 16 * s},
		{"all at once, with a bound far away", 2 * s, Candidate{Endpoint: known, Terms: Terms{Prefill: 1000, Decode: 2000}, Output: 100}, 2, true, 1 << 20, 0, 36 * s},
		{"no longer than anybody waits", 2 * s, Candidate{Endpoint: known, Terms: Terms{Prefill: 1e12}}, 2, false, 0, 0, longestHedge},
		{"after one for nothing that took twice as long", 2 * s, Candidate{Endpoint: known}, 2, false, 0, 2, 5 * s},
		{"after one for nothing that took for ever", 2 * s, Candidate{Endpoint: known}, 2, false, 0, 1e9, 16 * s},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := &Model{Learned: new(Learned)}
			for range 3 { // at the same time: it is one fact
				m.patience.answered(tt.needed)
			}
			list := make([]Candidate, tt.hosts)
			list[0] = tt.first
			if got := m.Hedge(&Policy{HedgeAfter: tt.policy}, list, tt.whole, tt.most).After; got != tt.want {
				t.Errorf("Hedge() = %v, want %v", got, tt.want)
			}
		})
	}
}

// TestHedgesAtEndpointsOfOthers: they have a time of their own, where the policy has none for all.
func TestHedgesAtEndpointsOfOthers(t *testing.T) {
	m := &Model{Learned: new(Learned)}
	ours, theirs := &Endpoint{Address: "a:1", Replica: "m-0", Prior: Speed{Decode: 1}}, &Endpoint{Address: "b:1", Prior: Speed{Decode: 1}}
	for _, tt := range []struct {
		first *Endpoint
		p     Policy
		want  time.Duration
	}{
		{ours, Policy{HedgeOthers: 2 * time.Second}, 0},
		{theirs, Policy{HedgeOthers: 2 * time.Second}, 2 * time.Second},
		{theirs, Policy{HedgeAfter: 5 * time.Second, HedgeOthers: 2 * time.Second}, 5 * time.Second},
		{ours, Policy{HedgeAfter: 5 * time.Second, HedgeOthers: 2 * time.Second}, 5 * time.Second},
		{theirs, Policy{}, 0},
	} {
		if got := m.Hedge(&tt.p, []Candidate{{Endpoint: tt.first}, {Endpoint: ours}}, false, 0).After; got != tt.want {
			t.Errorf("%s, %v and %v: %v, want %v", tt.first.Address, tt.p.HedgeAfter, tt.p.HedgeOthers, got, tt.want)
		}
	}
}

func TestPatienceIsLostAgain(t *testing.T) {
	var p patience
	p.answered(100)
	if got := p.value(); got != mostPatience {
		t.Errorf("after one for nothing: %v", got)
	}
	for range 2000 {
		p.answered(0)
	}
	if got := p.value(); got != 1 {
		t.Errorf("after 2000 answers: %v", got)
	}
}

// TestJudgeOfTwoAtATime: where two were asked at a time, who has answered is well, and those
// behind it have not failed.
func TestJudgeOfTwoAtATime(t *testing.T) {
	tests := []struct {
		name     string
		answer   Answer
		hedged   bool
		want     string // who answered
		ejected  string // of a, b and c
		patience float64
	}{
		{"the first after all", Answer{Status: 200, Attempts: 2, Served: "b", Answered: "a"}, true, "a", "", 2.5},
		{"the second", Answer{Status: 200, Attempts: 2, Served: "b", Answered: "b"}, true, "b", "a", 1},
		{"the second of three", Answer{Status: 200, Attempts: 3, Served: "c", Answered: "b"}, true, "b", "a", 1},
		{"the first at once", Answer{Status: 200, Attempts: 1, Served: "a", Answered: "a"}, true, "a", "", 1},
		{"Envoy does not say who", Answer{Status: 200, Attempts: 2, Served: "b"}, true, "b", "a", 1},
		{"nobody", Answer{Status: 504, Attempts: 3, Served: "c"}, true, "", "abc", 1},
		{"not hedged", Answer{Status: 200, Attempts: 2, Served: "b", Answered: "b"}, false, "b", "a", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, m := New(prometheus.NewRegistry()), &Model{Learned: new(Learned)}
			var list []Candidate
			for _, address := range []string{"a", "b", "c"} {
				e := &Endpoint{Address: address, Live: new(Live)}
				m.Endpoints = append(m.Endpoints, e)
				list = append(list, Candidate{Endpoint: e})
			}
			now := time.Now()
			h := Hedge{}
			if tt.hedged {
				h = Hedge{2 * time.Second, time.Second}
			}
			got, _ := p.Judge(m, list, tt.answer, h, now.Add(-2*time.Second), now)
			if (got == nil) != (tt.want == "") || got != nil && got.Address != tt.want {
				t.Errorf("answered: %v, want %q", got, tt.want)
			}
			ejected := ""
			for _, c := range list {
				if c.standing(now.UnixNano()) != fine {
					ejected += c.Address
				}
			}
			if ejected != tt.ejected || m.patience.value() != tt.patience {
				t.Errorf("ejected %q, patience %v; want %q, %v", ejected, m.patience.value(), tt.ejected, tt.patience)
			}
		})
	}
}
