package fleet

import (
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/meter"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// bill is a payer that keeps what it was last charged.
type bill struct {
	generated int
	final     bool
}

func (b *bill) Metered(_ uint64, generated int, final bool, _ time.Time) {
	b.generated, b.final = generated, final
}

// TestCountersReachThroughXDS has a request at an engine of others be paid for by what xds
// has read of its counters, whatever its clock says.
func TestCountersReachThroughXDS(t *testing.T) {
	const address = "127.0.0.1:1"
	for name, skew := range map[string]time.Duration{"clocks agree": 0, "xds is late": -time.Hour, "xds is early": time.Hour} {
		s, now, version := newState(true), time.Now(), 0
		page := func(tokens float64, running uint32, asked time.Duration) {
			t.Helper()
			version++
			m := endpointState(address, func(m *fleetpb.EndpointState) {
				m.Replica, m.Load = address+" m", &enginepb.Load{Running: running}
				m.Work = &fleetpb.EndpointState_Work{
					Requests: float64(version), GeneratedTokens: tokens, Counting: fleetpb.EndpointState_Work_AS_MADE,
					Asked: timestamppb.New(now.Add(asked + skew)),
				}
			})
			if err := s.apply(say(wire.EndpointType, resource(address, string(rune('a'+version)), m)), now.Add(asked+50*time.Millisecond)); err != nil {
				t.Fatal(err)
			}
		}
		page(1000, 0, 0)
		b := new(bill)
		m := &pick.Model{Name: "m", Learned: new(pick.Learned)}
		metering := s.endpoints[address].live.Meter(meter.Run[pick.Metered]{Who: pick.Metered{Payer: b, Request: 1, Model: m}, From: now.Add(time.Second), Most: 500, Reserved: 100}, now.Add(time.Second))
		if !metering.On() {
			t.Fatalf("%s: not metered", name)
		}
		page(1120, 1, 2*time.Second)
		if b.generated != 120 || b.final {
			t.Errorf("%s: while it runs %+v, want 120", name, b)
		}
		metering.Leave(now.Add(3 * time.Second))
		page(1130, 0, 3*time.Second) // asked for just as it ended: that may not be all
		if b.final {
			t.Errorf("%s: settled by a page of before its end: %+v", name, b)
		}
		page(1150, 0, 4*time.Second)
		if b.generated != 150 || !b.final {
			t.Errorf("%s: %+v, want 150 in the end", name, b)
		}
	}
}

// TestPagesOfBeforeAStream has what xds knew when its stream began be no page of now, from
// the same xds and from another whose clock differs.
func TestPagesOfBeforeAStream(t *testing.T) {
	const address = "127.0.0.1:1"
	for name, skew := range map[string]time.Duration{"the same": 0, "one that is late": -time.Hour, "one that is early": time.Hour} {
		c := &Client{state: newState(true)}
		s, now, version := c.state, time.Now(), 0
		page := func(tokens float64, running uint32, came, asked time.Duration) {
			t.Helper()
			version++
			m := endpointState(address, func(m *fleetpb.EndpointState) {
				m.Replica, m.Load = address+" m", &enginepb.Load{Running: running}
				m.Work = &fleetpb.EndpointState_Work{
					Requests: float64(version), GeneratedTokens: tokens, Counting: fleetpb.EndpointState_Work_AS_MADE, Asked: timestamppb.New(now.Add(asked)),
				}
			})
			if err := s.apply(say(wire.EndpointType, resource(address, string(rune('a'+version)), m)), now.Add(came)); err != nil {
				t.Fatal(err)
			}
		}
		c.subscriptions()
		page(1000, 0, 0, -time.Second) // better than none
		b := new(bill)
		m := &pick.Model{Name: "m", Learned: new(pick.Learned)}
		metering := s.endpoints[address].live.Meter(meter.Run[pick.Metered]{Who: pick.Metered{Payer: b, Request: 1, Model: m}, From: now.Add(time.Second), Most: 500}, now.Add(time.Second))
		if !metering.On() {
			t.Fatalf("%s: not metered", name)
		}
		page(1010, 1, 2*time.Second, 2*time.Second)
		metering.Leave(now.Add(8 * time.Second))
		c.subscriptions()
		page(1050, 0, 10*time.Second, 5*time.Second+skew) // asked for 5 s ago, while it ran
		page(1050, 0, 11*time.Second, 5*time.Second+skew) // again, as something else has changed
		if b.final || b.generated > 10 {
			t.Errorf("%s: settled by a page of before its end: %+v", name, b)
		}
		page(1150, 0, 12*time.Second, 12*time.Second+skew)
		if b.generated != 150 || !b.final {
			t.Errorf("%s: %+v, want 150 in the end", name, b)
		}
	}
}

// TestClock has times of another machine be never later than they came, and right but for
// the shortest way, also after its clock was set.
func TestClock(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var c clock
	now, skew := time.Unix(1e9, 0), time.Hour
	for i := range 3000 {
		if i > 0 && i%1000 == 0 {
			skew = time.Duration(rng.Int64N(int64(time.Hour)))
			now = now.Add(2*span + time.Second)
		}
		now = now.Add(time.Duration(rng.IntN(500)) * time.Millisecond)
		late := 5*time.Millisecond + time.Duration(rng.IntN(300))*time.Millisecond
		if i%7 == 0 {
			late = 5 * time.Millisecond
		}
		got := c.here(now.Add(skew-late), now)
		if off := got.Sub(now.Add(-late)); off < 0 || got.After(now) || i%1000 > 10 && off != 5*time.Millisecond {
			t.Fatalf("%d: off by %v", i, off)
		}
	}
}

// TestAnswersWithoutUsage are a condition of their endpoints as long as tenants are charged the
// most for them.
func TestAnswersWithoutUsage(t *testing.T) {
	s := full(t)
	c := &Client{state: s, loader: newLoader(nil, nil)}
	c.connected.Store(true)
	e := s.endpoints["127.0.0.1:1"]
	codes := func(budget int64, replica string) (codes []string) {
		table := s.table()
		policy := *table.Policy
		policy.Flow = &flow.Policy{Budget: flow.Budget{Tokens: budget}}
		table.Policy = &policy
		for _, m := range table.Models {
			for _, e := range m.Endpoints {
				e.Replica = replica
			}
		}
		c.table.Store(table)
		for _, one := range c.unpriced() {
			codes = append(codes, one.Code)
		}
		return codes
	}
	others := "127.0.0.1:1 m"
	if got := codes(100, others); got != nil {
		t.Errorf("%v before an answer", got)
	}
	e.live.Priced(false)
	if got := codes(100, others); len(got) != 1 || got[0] != wire.NoUsage {
		t.Errorf("%v, want %s", got, wire.NoUsage)
	}
	if a, b := codes(0, others), codes(100, "m-0"); a != nil || b != nil {
		t.Errorf("%v without a budget, %v of our own engines", a, b)
	}
	e.live.Priced(true)
	if got := codes(100, others); got != nil {
		t.Errorf("%v after an answer that said its usage", got)
	}
}

// TestEndpointsThatAreProbedWithoutUsage are the same condition where extproc probes them itself.
func TestEndpointsThatAreProbedWithoutUsage(t *testing.T) {
	const address = "127.0.0.1:1"
	s := full(t)
	p := &probed{state: s, locals: map[string]*local{address: {}}}
	s.endpoints[address].live.Priced(false)
	for _, tt := range []struct {
		flow *flow.Policy
		want int
	}{{&flow.Policy{Budget: flow.Budget{Tokens: 100}}, 1}, {&flow.Policy{Budget: flow.Budget{Requests: 100}}, 0}, {nil, 0}} {
		s.policy.Flow = tt.flow
		if got := p.count().unpriced; len(got) != tt.want {
			t.Errorf("with %+v: %v", tt.flow, got)
		}
	}
}
