package e2e

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/xds/fleetpb"
)

// observation is the state of one node at one moment.
type observation struct {
	at     time.Duration // since the recording began
	node   string
	state  fleetpb.EndpointState_State
	weight uint32
	reason string
}

func (o observation) String() string {
	return strings.TrimSpace(fmt.Sprintf("%5.2fs %s %v weight %d %s", o.at.Seconds(), o.node, o.state, o.weight, o.reason))
}

// story records what the fleet says of itself.
type story struct {
	begin time.Time

	// mu guards the fields below.
	mu           sync.Mutex
	last         map[string]observation // by node
	observations []observation          // changes only
	breaks       int                    // times that xds could not be asked
	// What poll found: where `millrace status` had the nodes from, which processes it
	// showed down, and how few engines Envoy had.
	sources map[string]bool
	down    map[string]bool
	fewest  int
}

// status is what `millrace status -json` prints, as far as it is needed.
type status struct {
	Source string `json:"source"`
	Nodes  []struct {
		Node   string  `json:"node"`
		State  string  `json:"state"`
		Reason string  `json:"reason"`
		Weight *uint32 `json:"weight"`
	} `json:"nodes"`
	Processes []rig.MeshProcess `json:"processes"`
}

// pollEvery is how often poll asks: each time a process is started.
const pollEvery = 250 * time.Millisecond

// poll asks `millrace status` and Envoy again and again until the test ends.
func (st *story) poll(t *testing.T, m *mesh) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		for ctx.Err() == nil {
			if err := st.pollOnce(ctx, m); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
			<-tick.C
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func (st *story) pollOnce(ctx context.Context, m *mesh) error {
	var s status
	if err := m.Status(ctx, &s); err != nil {
		return err
	}
	engines, err := m.Hosts("engines/")
	if err != nil {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.sources[s.Source] = true
	st.fewest = min(st.fewest, len(engines))
	for _, p := range s.Processes {
		if p.PID == 0 {
			st.down[p.Name] = true
		}
	}
	return nil
}

// record follows the fleet until the test ends.
func (m *mesh) record(t *testing.T) *story {
	t.Helper()
	st := &story{
		begin: time.Now(), last: map[string]observation{}, sources: map[string]bool{}, down: map[string]bool{}, fewest: math.MaxInt,
	}
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		once := sync.OnceFunc(func() { close(first) })
		for ctx.Err() == nil {
			_ = m.Watch(ctx, func(v *fleetpb.FleetView) error {
				st.note(v)
				once()
				return nil
			})
			st.broke()
			select { // xds is away: not all the time
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
		once()
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if t.Failed() {
			t.Logf("--- the fleet meanwhile\n%s", st)
		}
	})
	<-first
	return st
}

func (st *story) note(v *fleetpb.FleetView) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, n := range v.GetNodes() {
		s := observation{time.Since(st.begin), n.GetNode(), n.GetState(), n.GetWeight(), n.GetReason()}
		old := st.last[s.node]
		if old.state != s.state || old.weight != s.weight || old.reason != s.reason {
			st.observations = append(st.observations, s)
		}
		st.last[s.node] = s
	}
}

func (st *story) broke() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.breaks++
}

// had says whether a node was ever like that.
func (st *story) had(match func(observation) bool) bool {
	_, ok := st.first(match)
	return ok
}

// first returns the first observation that matches.
func (st *story) first(match func(observation) bool) (observation, bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, s := range st.observations {
		if match(s) {
			return s, true
		}
	}
	return observation{}, false
}

func (st *story) String() string {
	st.mu.Lock()
	defer st.mu.Unlock()
	var b strings.Builder
	for _, s := range st.observations {
		fmt.Fprintln(&b, s)
	}
	fmt.Fprintf(&b, "xds could not be asked %d times; status asked %v and showed %v down\n", st.breaks, st.sources, st.down)
	return b.String()
}
