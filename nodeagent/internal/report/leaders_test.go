package report

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/xds/fleetpb"
)

// history is the naive twin of leaders: all that has ever happened.
type history struct {
	up   map[string]bool
	term map[string]uint64
	// lived has until when a stream with a term was open.
	lived map[uint64]time.Time
}

func (h *history) pass(now time.Time) {
	for xds, up := range h.up {
		if up {
			h.lived[h.term[xds]] = now
		}
	}
}

// obeyed is the contract: nobody has a higher term, or had one less than fenceFor ago.
func (h *history) obeyed(now time.Time, xds string) bool {
	for term, last := range h.lived {
		if term > h.term[xds] && now.Sub(last) < fenceFor {
			return false
		}
	}
	return h.up[xds]
}

// TestHighestTermIsObeyed gives an agent directives of several xds, whose terms rise
// and fall as leaders change, die, sleep and wake, and compares with the naive twin.
func TestHighestTermIsObeyed(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		a, now := newAgent(), start
		a.Step(now, engineIs(enginepb.State_READY, 0, 1))
		h := &history{up: map[string]bool{}, term: map[string]uint64{}, lived: map[uint64]time.Time{}}
		generation := uint64(0)
		for range 200 {
			now = now.Add(time.Duration(rnd.IntN(20)) * time.Second / 4)
			a.Step(now, engineIs(enginepb.State_READY, generation, 1)) // as often as the engine says something
			h.pass(now)
			xds := fmt.Sprint(rnd.IntN(3))
			switch rnd.IntN(5) {
			case 0:
				a.Step(now, Up{xds})
				h.up[xds], h.term[xds] = true, 0
			case 1:
				a.Step(now, Down{XDS: xds, Err: errors.New("gone")})
				h.up[xds] = false
			default:
				if !h.up[xds] {
					continue
				}
				if rnd.IntN(3) == 0 {
					h.term[xds] = uint64(rnd.IntN(6))
				}
				h.pass(now)
				d := Directed{xds, &fleetpb.Directive{Term: h.term[xds], Assignment: assignment(generation + 1)}}
				took := a.Step(now, d).Assign != nil
				if want := h.obeyed(now, xds); took != want {
					t.Fatalf("seed %d at %s: directive of %s with term %d taken: %t, want %t; %+v", seed, now.Sub(start), xds, h.term[xds], took, want, h)
				}
				if took {
					generation++
					a.Step(now, Assigned{enginepb.Version{Generation: generation}, nil})
					a.Step(now, engineIs(enginepb.State_READY, generation, 1))
				}
			}
			if r, err := a.Report(now, telemetry()); err != nil || h.up[xds] && r.GetTerm() < h.term[xds] {
				t.Fatalf("seed %d: report of term %d, %v; %s has %d", seed, r.GetTerm(), err, xds, h.term[xds])
			}
		}
	}
}

// replicas are several fake xds behind one name.
type replicas struct {
	*network
	all  map[string]*control // by address
	kill map[string]func()
	// named are the addresses that the name has; none: it can't be resolved.
	named []string
	asked atomic.Int64 // how long an answer takes, in nanoseconds
}

func (s *replicas) resolve(ctx context.Context, _ string) ([]netip.Addr, error) {
	select {
	case <-time.After(time.Duration(s.asked.Load())):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.named == nil {
		return nil, errors.New("no such host")
	}
	var all []netip.Addr
	for _, a := range s.named {
		all = append(all, netip.MustParseAddr(a))
	}
	return all, nil
}

func (s *replicas) name(addrs ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.named = addrs
}

func (s *replicas) start(host string) {
	c := &control{directives: make(chan *fleetpb.Directive)}
	s.all[host] = c
	s.kill[host] = s.serve(host+":7100", func(srv *grpc.Server) { fleetpb.RegisterFleetServer(srv, c) })
}

// fresh reports whether the xds got a report within a second.
func (s *replicas) fresh(host string) bool {
	said, ago := s.all[host].last()
	return said != "" && ago <= time.Second
}

func inMesh(t *testing.T, f func(t *testing.T, s *replicas, r *Reporter, e *engine)) {
	synctest.Test(t, func(t *testing.T) {
		s := &replicas{network: &network{listeners: map[string]*bufconn.Listener{}}, all: map[string]*control{}, kill: map[string]func(){}}
		e := newEngine()
		stop := s.serve("engine", func(srv *grpc.Server) { enginepb.RegisterEngineServer(srv, e) })
		cfg := Config{Node: "node-a", Engine: "engine", XDS: "xds.millrace.svc:7100", Interval: beat, Timeout: 1500 * time.Millisecond}
		r := New(cfg, fixed{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		r.dial, r.resolve = s.dial, s.resolve
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		s.start("10.0.0.1")
		s.start("10.0.0.2")
		s.name("10.0.0.1", "10.0.0.2")
		go func() { done <- r.Run(ctx) }()
		sleep(5 * time.Second)
		f(t, s, r, e)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
		for _, kill := range s.kill {
			kill()
		}
		stop()
	})
}

func TestEveryXDSOfANameGetsReports(t *testing.T) {
	inMesh(t, func(t *testing.T, s *replicas, r *Reporter, _ *engine) {
		check := func(when string, hosts ...string) {
			t.Helper()
			for host := range s.all {
				if got, want := s.fresh(host), slices.Contains(hosts, host); got != want {
					t.Errorf("%s: %s gets reports: %t, want %t", when, host, got, want)
				}
			}
		}
		check("two", "10.0.0.1", "10.0.0.2")
		s.start("10.0.0.3")
		s.name("10.0.0.1", "10.0.0.2", "10.0.0.3")
		sleep(3 * time.Second)
		check("a third", "10.0.0.1", "10.0.0.2", "10.0.0.3")
		s.name("10.0.0.3")
		sleep(time.Minute)
		check("names that vanish while their streams are open", "10.0.0.1", "10.0.0.2", "10.0.0.3")
		s.kill["10.0.0.1"]()
		sleep(10 * time.Second)
		check("one of them ended", "10.0.0.2", "10.0.0.3")
		if c := r.Conditions(); len(c) != 0 {
			t.Errorf("conditions %v, want none: nobody is looked for", c)
		}
		s.name()
		sleep(time.Minute)
		check("no answer of the name server", "10.0.0.2", "10.0.0.3")
		if c := r.Conditions(); len(c) != 1 || c[0].Code != "xds_not_found" || c[0].Severity != obs.Degraded {
			t.Errorf("conditions %v", c)
		}
		s.asked.Store(int64(time.Hour)) // late, and then wrong
		sleep(time.Minute)
		check("a name server that hangs", "10.0.0.2", "10.0.0.3")
		s.asked.Store(0)
		s.name("192.0.2.1", "10.0.0.2", "10.0.0.3")
		sleep(time.Minute)
		check("an address of nobody", "10.0.0.2", "10.0.0.3")
		if c := r.Conditions(); len(c) != 1 || c[0].Code != "xds_partly_unreachable" || c[0].Severity != obs.Degraded {
			t.Errorf("conditions %v", c)
		}
	})
}

func TestReplacedLeaderIsNotObeyed(t *testing.T) {
	inMesh(t, func(t *testing.T, s *replicas, _ *Reporter, e *engine) {
		direct := func(host string, term, generation uint64) bool {
			d := &fleetpb.Directive{Term: term}
			if generation > 0 {
				d.Assignment = assignment(generation)
			}
			s.all[host].directives <- d
			sleep(time.Second)
			e.mu.Lock()
			defer e.mu.Unlock()
			return slices.Contains(e.assigned, generation)
		}
		steps := []struct {
			name             string
			host             string
			term, generation uint64
			want             bool
		}{
			{"the first leader", "10.0.0.1", 1, 10, true},
			{"its successor says that it leads", "10.0.0.2", 2, 0, false},
			{"the first one doesn't know yet", "10.0.0.1", 1, 20, false},
			{"the successor", "10.0.0.2", 2, 21, true},
			{"a replay", "10.0.0.1", 1, 10, true}, // it was taken before
			{"the first one again, in turn", "10.0.0.1", 3, 30, true},
		}
		for _, tt := range steps {
			if got := direct(tt.host, tt.term, tt.generation); got != tt.want {
				t.Errorf("%s: generation %d assigned: %t, want %t", tt.name, tt.generation, got, tt.want)
			}
		}
		s.kill["10.0.0.1"]()
		sleep(time.Second)
		if direct("10.0.0.2", 2, 40) {
			t.Error("a lower term is obeyed as soon as the higher one's stream ends")
		}
		sleep(fenceFor)
		if !direct("10.0.0.2", 2, 41) {
			t.Errorf("a lower term is not obeyed %s after the higher one's stream ended", fenceFor)
		}
	})
}
