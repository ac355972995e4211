package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"millrace.dev/millrace/xds/fleetpb"
)

// follow hands each view of the fleet to fn until ctx or the stream ends.
func (m *mesh) follow(ctx context.Context, fn func(*fleetpb.FleetView) error) error {
	s, err := m.read()
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(s.find("xds").Addrs["grpc"], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := fleetpb.NewFleetClient(conn).Watch(ctx, &fleetpb.WatchRequest{})
	if err != nil {
		return err
	}
	for {
		v, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := fn(v); err != nil {
			return err
		}
	}
}

// errEnough ends follow.
var errEnough = errors.New("enough")

// fleet returns the fleet as xds sees it now.
func (m *mesh) fleet(ctx context.Context) (*fleetpb.FleetView, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var view *fleetpb.FleetView
	err := m.follow(ctx, func(v *fleetpb.FleetView) error {
		view = v
		return errEnough
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return view, err
}

// unready says which nodes of a view aren't READY.
func unready(v *fleetpb.FleetView) error {
	var errs []error
	for _, n := range v.GetNodes() {
		if n.GetState() != fleetpb.EndpointState_READY {
			errs = append(errs, fmt.Errorf("%s is %v: %s", n.GetNode(), n.GetState(), n.GetReason()))
		}
	}
	return errors.Join(errs...)
}

// isWhole says what is missing until every part runs and takes requests.
func (m *mesh) isWhole(ctx context.Context) error {
	s, err := m.read()
	if err != nil {
		return err
	}
	if err := s.running(); err != nil {
		return err
	}
	if !s.Ready {
		return errors.New("state.json: ready is false")
	}
	v, err := m.fleet(ctx)
	if err != nil {
		return fmt.Errorf("xds: %w", err)
	}
	if err := unready(v); err != nil {
		return err
	}
	return m.serving(2)
}

// whole waits until every part runs and takes requests.
func (m *mesh) whole(t *testing.T) {
	t.Helper()
	waitFor(t, backLimit, "the mesh is whole", func() error { return m.isWhole(t.Context()) })
}

// sight is what was seen of one node at one moment.
type sight struct {
	at     time.Duration // since the recording began
	node   string
	state  fleetpb.EndpointState_State
	weight uint32
	reason string
}

func (s sight) String() string {
	return strings.TrimSpace(fmt.Sprintf("%5.2fs %s %v weight %d %s", s.at.Seconds(), s.node, s.state, s.weight, s.reason))
}

// story records what the fleet says of itself.
type story struct {
	begin time.Time

	// mu guards the fields below.
	mu     sync.Mutex
	last   map[string]sight // by node
	sights []sight          // changes only
	breaks int              // times that xds could not be asked
	// What look saw: who told `millrace status` of the nodes, which processes it
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
	Processes []process `json:"processes"`
}

// lookEvery is how often look asks: each time a process is started.
const lookEvery = 250 * time.Millisecond

// look asks `millrace status` and Envoy again and again until the test ends.
func (st *story) look(t *testing.T, m *mesh) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for ctx.Err() == nil {
			if err := st.lookOnce(ctx, m); err != nil && ctx.Err() == nil {
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

func (st *story) lookOnce(ctx context.Context, m *mesh) error {
	got, err := command(ctx, nil, "", "status", "-json", "-dir", m.dir)
	if err != nil {
		return err
	}
	var s status
	if err := json.Unmarshal([]byte(got.stdout), &s); err != nil {
		return fmt.Errorf("status -json: exit code %d, %w: %s%s", got.code, err, got.stdout, got.stderr)
	}
	engines, err := m.hosts("engines/")
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
		begin: time.Now(), last: map[string]sight{}, sources: map[string]bool{}, down: map[string]bool{}, fewest: math.MaxInt,
	}
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		once := sync.OnceFunc(func() { close(first) })
		for ctx.Err() == nil {
			_ = m.follow(ctx, func(v *fleetpb.FleetView) error {
				st.note(v)
				once()
				return nil
			})
			st.broke()
			_ = poll(100*time.Millisecond, func() error { return errEnough })
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
		s := sight{time.Since(st.begin), n.GetNode(), n.GetState(), n.GetWeight(), n.GetReason()}
		old := st.last[s.node]
		if old.state != s.state || old.weight != s.weight || old.reason != s.reason {
			st.sights = append(st.sights, s)
		}
		st.last[s.node] = s
	}
}

func (st *story) broke() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.breaks++
}

// saw says whether a node was ever seen like that.
func (st *story) saw(match func(sight) bool) bool {
	_, ok := st.first(match)
	return ok
}

// first returns the first such sight.
func (st *story) first(match func(sight) bool) (sight, bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, s := range st.sights {
		if match(s) {
			return s, true
		}
	}
	return sight{}, false
}

func (st *story) String() string {
	st.mu.Lock()
	defer st.mu.Unlock()
	var b strings.Builder
	for _, s := range st.sights {
		fmt.Fprintln(&b, s)
	}
	fmt.Fprintf(&b, "xds could not be asked %d times; status asked %v and showed %v down\n", st.breaks, st.sources, st.down)
	return b.String()
}
