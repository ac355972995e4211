package supervise

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
)

// sim is a world that does what the machine says.
type sim struct {
	t *testing.T
	m *Machine
	w World
	// starts and kills count the commands; probes answer by themselves.
	starts, kills [backend.Roles]int
	mute          bool // whether probes are left unanswered
}

func newSim(t *testing.T, a *enginepb.Assignment) *sim {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := &sim{t: t, m: NewMachine(now, 0, 0), w: World{Now: now}}
	if a != nil {
		s.assign(a)
	}
	return s
}

func (s *sim) assign(a *enginepb.Assignment) {
	s.t.Helper()
	if err := s.m.Assign(a); err != nil {
		s.t.Fatal(err)
	}
}

// after lets time pass and steps until nothing more is commanded.
func (s *sim) after(d time.Duration) *sim {
	s.w.Now = s.w.Now.Add(d)
	for range 10 {
		commands := s.m.Step(s.w)
		for _, c := range commands {
			s.obey(c)
		}
		if len(commands) == 0 {
			return s
		}
		s.w.Now = s.w.Now.Add(time.Millisecond)
	}
	return s
}

func (s *sim) obey(c Command) {
	p := &s.w.Parts[c.Role]
	switch c.Do {
	case Start:
		s.starts[c.Role]++
		*p = Part{Run: p.Run + 1, Up: true}
	case Kill:
		s.kills[c.Role]++
		s.die(c.Role, "died: killed")
	case Shut:
		s.w.Shut = s.w.Running == 0 && s.w.Waiting == 0
	case Open:
		s.w.Shut = false
	case Probe:
		if !s.mute {
			s.w.Probed, s.w.Served = c.Probe, s.w.Now.Add(time.Millisecond)
		}
	}
}

func (s *sim) die(r backend.Role, exit string) {
	s.w.Parts[r] = Part{Run: s.w.Parts[r].Run, Exit: exit}
}

func (s *sim) serve(roles ...backend.Role) *sim {
	for _, r := range roles {
		s.w.Parts[r].Serving = true
	}
	return s
}

func (s *sim) want(state enginepb.State, reason string) {
	s.t.Helper()
	if s.m.state != state || !strings.Contains(s.m.reason, reason) || state == enginepb.State_READY && s.m.reason != "" {
		s.t.Fatalf("%v %q, want %v %q", s.m.state, s.m.reason, state, reason)
	}
}

// assignment returns stage `stage` of a replica of so many stages.
func assignment(generation uint64, stage, stages int) *enginepb.Assignment {
	a := &enginepb.Assignment{
		Generation: generation, Model: "m", Replica: "m-0", Stage: uint32(stage),
		Backend: &enginepb.Backend{Kind: enginepb.Backend_LLAMACPP, Weights: "w", ContextTokens: 128, Slots: 2, Threads: 1, MaxBodyBytes: 1 << 20},
	}
	for i := range stages {
		a.Stages = append(a.Stages, &enginepb.Stage{Node: fmt.Sprintf("node-%d", i), ShardAddress: fmt.Sprintf("127.0.0.1:%d", i+1), EngineAddress: "127.0.0.1:1", Share: 1})
	}
	return a
}

func TestWholeReplicaBecomesReadyByAToken(t *testing.T) {
	s := newSim(t, nil)
	s.after(0).want(enginepb.State_IDLE, idle)
	s.assign(assignment(1, 0, 1))
	s.after(0).want(enginepb.State_STARTING, "backend is starting")
	s.mute = true
	s.serve(backend.Head).after(time.Second).want(enginepb.State_WARMING, "first token")
	s.w.Served = s.w.Now
	s.after(time.Millisecond).want(enginepb.State_READY, "")
	if s.starts[backend.Shard] != 0 {
		t.Error("a whole replica has no shard")
	}
}

func ready(t *testing.T, a *enginepb.Assignment) *sim {
	t.Helper()
	s := newSim(t, a)
	for i := range len(a.GetStages()) - 1 {
		s.w.Peers = append(s.w.Peers, Peer{Epoch: uint64(10 + i)})
	}
	s.after(0)
	s.serve(backend.Shard).after(time.Millisecond)
	s.serve(backend.Head).after(time.Millisecond).after(time.Millisecond)
	s.want(enginepb.State_READY, "")
	return s
}

func TestHeadWaitsForItsShards(t *testing.T) {
	s := newSim(t, assignment(1, 0, 2))
	s.w.Peers = []Peer{{Why: "has not reported yet"}}
	s.after(0).want(enginepb.State_STARTING, "shard is starting")
	s.serve(backend.Shard).after(0).want(enginepb.State_STARTING, "waits for node-1: has not reported yet")
	if s.starts[backend.Head] != 0 {
		t.Fatal("the head was started before its shards")
	}
	s.w.Peers[0] = Peer{Epoch: 5}
	s.after(0).want(enginepb.State_STARTING, "backend is starting")
	s.serve(backend.Head).after(0).after(time.Millisecond).want(enginepb.State_READY, "")
}

func TestFollowerIsReadyWithItsShard(t *testing.T) {
	s := newSim(t, assignment(1, 1, 2))
	s.after(0)
	s.serve(backend.Shard).after(0).want(enginepb.State_READY, "")
	if s.starts[backend.Head] != 0 {
		t.Error("a follower has no backend")
	}
	s.die(backend.Shard, "died: killed")
	s.after(time.Millisecond).want(enginepb.State_BROKEN, "shard died: killed")
	s.after(time.Second).want(enginepb.State_STARTING, "")
}

func TestDeadBackendIsStartedAgainWithBackOff(t *testing.T) {
	s := ready(t, assignment(1, 0, 1))
	s.die(backend.Head, "died: killed")
	s.after(time.Millisecond).want(enginepb.State_BROKEN, "backend died: killed")
	s.after(50*time.Millisecond).want(enginepb.State_BROKEN, "backend died: killed")
	s.after(100*time.Millisecond).want(enginepb.State_STARTING, "backend is starting")
	for range 10 {
		s.die(backend.Head, "does not start: no such file")
		s.after(time.Millisecond).want(enginepb.State_BROKEN, "no such file")
		s.after(5*time.Second).want(enginepb.State_STARTING, "")
	}
	s.die(backend.Head, "x")
	s.after(time.Millisecond)
	if s.after(4 * time.Second); s.m.state != enginepb.State_BROKEN {
		t.Error("a backend that never starts is tried more often than every 5 s")
	}
}

func TestShardsAreOneFailureUnit(t *testing.T) {
	tests := []struct {
		name string
		fail func(*sim)
		back func(*sim)
	}{
		{
			name: "own shard dies",
			fail: func(s *sim) { s.die(backend.Shard, "died: killed") },
			back: func(s *sim) { s.after(time.Second); s.serve(backend.Shard) },
		},
		{
			name: "the peer's shard dies and is started again",
			fail: func(s *sim) { s.w.Peers[0].Why = "shard died: killed" },
			back: func(s *sim) { s.w.Peers[0] = Peer{Epoch: 11} },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := ready(t, assignment(1, 0, 2))
			tt.fail(s)
			s.after(time.Millisecond).want(enginepb.State_BROKEN, "shard died: killed")
			tt.back(s)
			s.after(time.Millisecond).want(enginepb.State_STARTING, "")
			s.after(time.Millisecond)
			if s.kills[backend.Head] != 1 || s.starts[backend.Head] != 2 {
				t.Fatalf("%d kills, %d starts of the backend; want 1, 2", s.kills[backend.Head], s.starts[backend.Head])
			}
			s.serve(backend.Head).after(time.Millisecond).after(time.Millisecond).want(enginepb.State_READY, "")
		})
	}
}

func TestHungPeerNeedsNoRestart(t *testing.T) {
	s := ready(t, assignment(1, 0, 2))
	s.w.Peers[0].Why = "shard stopped"
	s.after(time.Millisecond).want(enginepb.State_BROKEN, "waits for node-1: shard stopped")
	s.mute = true
	s.w.Peers[0].Why = ""
	s.after(time.Second).want(enginepb.State_WARMING, "")
	s.w.Served = s.w.Now
	s.after(time.Millisecond).want(enginepb.State_READY, "")
	if s.starts[backend.Head] != 1 {
		t.Error("the backend was started again")
	}
}

func TestHungBackendComesBackOrIsKilled(t *testing.T) {
	s := ready(t, assignment(1, 0, 1))
	s.w.Parts[backend.Head].Hung = true
	s.after(time.Millisecond).want(enginepb.State_BROKEN, "backend stopped")
	s.w.Parts[backend.Head].Hung = false
	s.after(time.Second).after(time.Millisecond).want(enginepb.State_READY, "")
	s.w.Parts[backend.Head].Hung = true
	s.after(time.Millisecond)
	if s.after(killHung - time.Second); s.kills[backend.Head] != 0 {
		t.Fatal("killed too early")
	}
	s.after(time.Second).after(time.Second).want(enginepb.State_STARTING, "")
	if s.kills[backend.Head] != 1 {
		t.Errorf("killed %d times", s.kills[backend.Head])
	}
}

func TestStalledBackendIsProbed(t *testing.T) {
	s := ready(t, assignment(1, 0, 1))
	s.after(time.Minute)
	s.w.Running, s.w.Parts[backend.Head].Idle = 1, time.Minute
	s.after(time.Second).want(enginepb.State_READY, "") // it has only just begun
	s.mute = true
	s.after(stallAfter).want(enginepb.State_BROKEN, "no progress")
	s.w.Probed, s.w.ProbeErr = s.m.probe, "timeout"
	s.after(time.Millisecond).want(enginepb.State_BROKEN, "timeout")
	s.w.Probed = s.m.probe
	s.after(time.Millisecond)
	if s.kills[backend.Head] != 1 {
		t.Errorf("killed %d times, want 1", s.kills[backend.Head])
	}
}

// TestOpaqueBackendMayTakeLong: that it does not use the CPU shows nothing. While it
// answers probes, it serves; when it does not, it is restarted.
func TestOpaqueBackendMayTakeLong(t *testing.T) {
	s := ready(t, assignment(1, 0, 1))
	s.after(time.Minute)
	s.w.Running, s.w.Parts[backend.Head].Idle, s.w.Parts[backend.Head].Opaque = 1, time.Hour, true
	for range 10 {
		s.after(time.Millisecond)
		s.after(stallOpaque+time.Second).want(enginepb.State_READY, "")
	}
	if s.m.probe < 5 {
		t.Errorf("%d probes", s.m.probe)
	}
	s.mute = true
	s.after(stallOpaque+time.Second).want(enginepb.State_READY, "")
	s.w.Probed, s.w.ProbeErr = s.m.probe, "timeout"
	s.after(time.Millisecond).want(enginepb.State_BROKEN, "timeout")
	for range probeFails {
		s.w.Probed = s.m.probe
		s.after(time.Millisecond)
	}
	if s.kills[backend.Head] != 1 {
		t.Errorf("killed %d times, want 1", s.kills[backend.Head])
	}
}

// TestExternalServerIsAwaited for the reason that it has.
func TestExternalServerIsAwaited(t *testing.T) {
	s := newSim(t, assignment(1, 0, 1))
	s.after(0)
	s.w.Parts[backend.Head].Missing = "connection refused"
	s.after(time.Hour).want(enginepb.State_STARTING, "backend is awaited: connection refused")
	s.serve(backend.Head).after(time.Second).after(time.Millisecond).want(enginepb.State_READY, "")
}

func TestLongPrefillIsNoStall(t *testing.T) {
	busy := map[string]func(*sim){
		"backend": func(s *sim) { s.w.Parts[backend.Head].Idle = 0 },
		"shard":   func(s *sim) { s.w.Parts[backend.Shard].Idle = 0 },
		"peer":    func(s *sim) { s.w.Peers[0].Idle = 0 },
	}
	for who, work := range busy {
		t.Run("in the "+who, func(t *testing.T) {
			s := ready(t, assignment(1, 0, 2))
			s.w.Running = 1
			s.w.Parts[backend.Head].Idle, s.w.Parts[backend.Shard].Idle, s.w.Peers[0].Idle = time.Minute, time.Minute, time.Minute
			work(s)
			s.after(time.Second)
			s.after(time.Minute).want(enginepb.State_READY, "")
		})
	}
}

func TestBackendThatLoadsForEverIsKilled(t *testing.T) {
	s := newSim(t, assignment(1, 0, 1))
	s.after(0)
	s.after(time.Hour).want(enginepb.State_STARTING, "") // it uses the CPU
	s.w.Parts[backend.Head].Idle = killLoading
	s.after(0).want(enginepb.State_BROKEN, "while starting")
	if s.kills[backend.Head] != 1 {
		t.Errorf("killed %d times, want 1", s.kills[backend.Head])
	}
}

func TestNewAssignmentDrains(t *testing.T) {
	s := ready(t, assignment(1, 0, 1))
	s.w.Running = 3
	b := assignment(2, 0, 1)
	b.Backend.Weights = "other"
	s.assign(b)
	s.after(time.Second).want(enginepb.State_DRAINING, "new assignment")
	s.w.Running, s.w.Settling = 0, true // the backend has what they left
	s.after(time.Second).want(enginepb.State_DRAINING, "new assignment")
	s.w.Settling = false
	s.after(time.Second).want(enginepb.State_STARTING, "")
	if s.starts[backend.Head] != 2 || s.kills[backend.Head] != 1 {
		t.Errorf("%d starts, %d kills; want 2, 1", s.starts[backend.Head], s.kills[backend.Head])
	}
}

// other is an assignment for which the backend of assignment must be started anew.
func other(generation uint64) *enginepb.Assignment {
	a := assignment(generation, 0, 1)
	a.Backend.Weights = "other"
	return a
}

func TestDrainLastsAsLongAsTheAssignmentInForceSays(t *testing.T) {
	for _, next := range []*enginepb.Assignment{other(2), {Generation: 2}} {
		a := assignment(1, 0, 1)
		a.Backend.Drain = durationpb.New(time.Minute)
		s := ready(t, a)
		s.w.Running = 3
		s.assign(next)
		for range 59 {
			s.after(time.Second - time.Millisecond)
			s.w.Served = s.w.Now // the requests continue
		}
		s.after(0).want(enginepb.State_DRAINING, "new assignment")
		s.after(4 * time.Second)
		if s.kills[backend.Head] != 1 {
			t.Errorf("%d kills after the patience; want 1", s.kills[backend.Head])
		}
	}
}

func TestWedgedBackendEndsItsDrain(t *testing.T) {
	tests := []struct {
		name    string
		stages  int
		wedge   func(*sim)
		patient time.Duration
	}{
		{"hung", 1, func(s *sim) { s.w.Parts[backend.Head].Hung = true }, killHung},
		{"no token, nothing computes", 1, func(s *sim) { s.w.Parts[backend.Head].Idle = stallIdle }, stallAfter},
		{"its shard was restarted", 2, func(s *sim) { s.w.Parts[backend.Shard].Run++ }, 0},
		{"its shard died", 2, func(s *sim) { s.die(backend.Shard, "died") }, 0},
		{"a peer's shard was restarted", 2, func(s *sim) { s.w.Peers[0].Epoch++ }, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := assignment(1, 0, tt.stages)
			a.Backend.Drain = durationpb.New(time.Hour)
			s := ready(t, a)
			s.w.Running = 1
			s.assign(&enginepb.Assignment{Generation: 2})
			s.after(time.Second).want(enginepb.State_DRAINING, "")
			tt.wedge(s)
			s.after(time.Millisecond)
			s.after(tt.patient)
			s.after(time.Millisecond).want(enginepb.State_IDLE, idle)
			if s.kills[backend.Head] != 1 {
				t.Errorf("%d kills, want 1", s.kills[backend.Head])
			}
		})
	}
}

func TestReleaseEndsAllAndKeepsItsGeneration(t *testing.T) {
	s := ready(t, assignment(5, 0, 2))
	s.assign(&enginepb.Assignment{Generation: 6})
	s.after(time.Millisecond).want(enginepb.State_IDLE, idle)
	if s.w.Parts[backend.Head].Up || s.w.Parts[backend.Shard].Up {
		t.Error("processes are left")
	}
	if s.m.Assign(assignment(5, 0, 2)) == nil {
		t.Error("an assignment older than the release is taken")
	}
	s.w.Peers = nil
	s.assign(assignment(7, 0, 1))
	s.after(0).want(enginepb.State_STARTING, "backend is starting")
}

func TestReleaseTakenBackChangesNothing(t *testing.T) {
	s := ready(t, assignment(1, 0, 1))
	s.w.Running = 1
	for g := uint64(2); g < 8; g += 2 {
		s.assign(&enginepb.Assignment{Generation: g})
		s.after(time.Second).want(enginepb.State_DRAINING, "")
		s.assign(assignment(g+1, 0, 1))
		s.after(time.Second).want(enginepb.State_READY, "")
	}
	if s.starts[backend.Head] != 1 || s.kills[backend.Head] != 0 {
		t.Errorf("%d starts, %d kills; want 1, 0", s.starts[backend.Head], s.kills[backend.Head])
	}
}

func TestEndDuringADrainHasItsOwnPatience(t *testing.T) {
	a := assignment(1, 0, 1)
	a.Backend.Drain = durationpb.New(time.Hour)
	s := ready(t, a)
	s.w.Running = 1
	s.assign(other(2))
	for range 10 {
		s.after(time.Minute)
		s.w.Served = s.w.Now
	}
	s.m.Quit()
	s.after(time.Second).want(enginepb.State_DRAINING, "the engine ends")
	s.after(drainFor)
	s.after(time.Millisecond)
	if !s.m.Idle() {
		t.Error("the engine does not end")
	}
}

func TestNewGenerationAloneChangesNothing(t *testing.T) {
	s := ready(t, assignment(1, 0, 2))
	s.w.Running = 3
	b := assignment(2, 0, 2)
	b.Backend.Queue = 99
	s.assign(b)
	s.after(time.Second).want(enginepb.State_READY, "")
	if s.m.have.GetGeneration() != 2 || s.starts[backend.Head] != 1 {
		t.Error("not adopted, or restarted")
	}
}

func TestShardOutlivesANewLayout(t *testing.T) {
	s := ready(t, assignment(1, 0, 2))
	s.assign(assignment(2, 0, 3))
	s.w.Peers = append(s.w.Peers, Peer{Epoch: 20})
	s.after(time.Millisecond)
	if s.starts[backend.Shard] != 1 || s.starts[backend.Head] != 2 {
		t.Errorf("%d, %d starts; want 1, 2", s.starts[backend.Shard], s.starts[backend.Head])
	}
	s.assign(assignment(3, 0, 1))
	s.w.Peers = nil
	s.after(time.Millisecond)
	if s.w.Parts[backend.Shard].Up {
		t.Error("a whole replica keeps a shard")
	}
}

func TestAssignRefuses(t *testing.T) {
	s := ready(t, assignment(5, 0, 1))
	other := assignment(5, 0, 1)
	other.Model = "other"
	for _, a := range []*enginepb.Assignment{assignment(4, 0, 1), other} {
		if s.m.Assign(a) == nil {
			t.Errorf("accepted %v", a)
		}
	}
	if err := s.m.Assign(proto.CloneOf(s.m.have)); err != nil {
		t.Errorf("the assignment in force: %v", err)
	}
}

// TestNoVersionIsTheLast: whatever is in force, a later control epoch and another control
// plane are taken, and what the same one made before is not.
func TestNoVersionIsTheLast(t *testing.T) {
	for _, had := range []enginepb.Version{{}, {Epoch: 5, Generation: 9}, {Epoch: 5, Generation: math.MaxUint64}, {Epoch: math.MaxUint64, Generation: math.MaxUint64}} {
		for _, tt := range []struct {
			name string
			v    enginepb.Version
			want bool
		}{
			{"the next control epoch", enginepb.Version{Epoch: had.Epoch + 1, Generation: 1}, true},
			{"another control plane, of an earlier clock", enginepb.Version{Epoch: had.Epoch - 1<<40, Generation: 1}, true},
			{"another control plane, of a later clock", enginepb.Version{Epoch: had.Epoch + 1<<40, Generation: 1}, true},
			{"what is older", enginepb.Version{Epoch: had.Epoch - 1, Generation: math.MaxUint64}, false},
		} {
			m := NewMachine(time.Unix(1000, 0), 0, 0)
			if had.Generation > 0 {
				if err := m.Assign(&enginepb.Assignment{ControlEpoch: had.Epoch, Generation: had.Generation}); err != nil {
					t.Fatal(err)
				}
			}
			err := m.Assign(&enginepb.Assignment{ControlEpoch: tt.v.Epoch, Generation: tt.v.Generation})
			if want := tt.want || had.Generation == 0; (err == nil) != want {
				t.Errorf("%v in force, %s %v: %v", had, tt.name, tt.v, err)
			}
		}
	}
}

func TestQuitDrainsAndEnds(t *testing.T) {
	s := ready(t, assignment(1, 0, 2))
	s.w.Running = 1
	s.m.Quit()
	s.after(time.Second).want(enginepb.State_DRAINING, "the engine ends")
	if s.m.Idle() || s.kills[backend.Head] != 0 {
		t.Fatal("ended with a request running")
	}
	s.after(drainFor)
	s.after(time.Millisecond)
	if !s.m.Idle() || s.w.Parts[backend.Head].Up || s.w.Parts[backend.Shard].Up {
		t.Error("still running after the drain")
	}
}

// TestRandomWorlds holds what must be true whatever happens.
func TestRandomWorlds(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := newSim(t, assignment(1, 0, 1+r.IntN(3)))
		for range s.m.next.GetStages()[1:] {
			s.w.Peers = append(s.w.Peers, Peer{Why: "new"})
		}
		for range 200 {
			disturb(r, s)
			s.after(time.Duration(r.IntN(3000)) * time.Millisecond)
			holds(t, s)
		}
		s.calm()
		s.want(enginepb.State_READY, "")
	}
}

func disturb(r *rand.Rand, s *sim) {
	p := &s.w.Parts[r.IntN(int(backend.Roles))]
	switch r.IntN(8) {
	case 0:
		p.Up, p.Serving, p.Hung = false, false, false
	case 1:
		p.Hung = p.Up && !p.Hung
	case 2, 3:
		p.Serving = p.Up
	case 4:
		s.w.Running = r.IntN(3)
	case 5:
		s.mute = !s.mute
	default:
		for i := range s.w.Peers {
			s.w.Peers[i] = Peer{Why: []string{"", "", "shard stopped"}[r.IntN(3)], Epoch: uint64(r.IntN(3))}
		}
	}
}

// holds checks one moment: READY only of a whole working group.
func holds(t *testing.T, s *sim) {
	t.Helper()
	if (s.m.reason == "") != (s.m.state == enginepb.State_READY) {
		t.Fatalf("%v with reason %q", s.m.state, s.m.reason)
	}
	if s.m.state != enginepb.State_READY {
		return
	}
	if b := s.w.Parts[backend.Head]; !b.Up || !b.Serving || b.Hung {
		t.Fatalf("READY with the backend %+v", b)
	}
	for _, p := range s.w.Peers {
		if p.Why != "" {
			t.Fatalf("READY with a peer %q", p.Why)
		}
	}
}

// calm heals the world and gives it time.
func (s *sim) calm() {
	s.mute, s.w.Running = false, 0
	for i := range s.w.Peers {
		s.w.Peers[i].Why = ""
	}
	for range 10 {
		s.w.Probed, s.w.ProbeErr = s.m.probe, "deadline exceeded" // of one that was left unanswered
		for i := range s.w.Parts {
			s.w.Parts[i].Hung = false
			s.w.Parts[i].Serving = s.w.Parts[i].Up
		}
		s.after(6 * time.Second)
	}
}

// TestLeavingTakesRequestsForAWhile: who sends requests gets to know that no more are to
// come before they are refused.
func TestLeavingTakesRequestsForAWhile(t *testing.T) {
	const leave, grace = time.Second, 20 * time.Second
	leaving := func(a *enginepb.Assignment) *sim {
		s := ready(t, a)
		s.m.leave, s.m.grace = leave, grace
		return s
	}
	t.Run("at the end", func(t *testing.T) {
		s := leaving(assignment(1, 0, 1))
		s.m.Quit()
		s.after(time.Millisecond).want(enginepb.State_DRAINING, "the engine ends")
		if !s.m.leaving(s.w.Now) {
			t.Error("requests are refused at once")
		}
		s.w.Running = 1
		s.after(leave).want(enginepb.State_DRAINING, "the engine ends")
		if s.m.leaving(s.w.Now) || s.kills[backend.Head] != 0 {
			t.Errorf("after %s: taken %t, %d kills", leave, s.m.leaving(s.w.Now), s.kills[backend.Head])
		}
		s.after(grace - time.Second)
		if s.kills[backend.Head] != 0 {
			t.Error("a request is cut off within its grace")
		}
		s.after(time.Second)
		if !s.m.Idle() {
			t.Error("still running after the grace")
		}
	})
	t.Run("before another assignment", func(t *testing.T) {
		s := leaving(assignment(1, 0, 1))
		other := assignment(2, 0, 1)
		other.Backend.Weights = "v"
		s.assign(other)
		s.after(time.Millisecond).want(enginepb.State_DRAINING, "a new assignment waits")
		if !s.m.leaving(s.w.Now) {
			t.Error("requests are refused at once")
		}
		if s.after(leave); s.kills[backend.Head] != 1 || s.starts[backend.Head] != 2 {
			t.Errorf("%d kills, %d starts", s.kills[backend.Head], s.starts[backend.Head])
		}
	})
	t.Run("a shard whose head may be busy", func(t *testing.T) {
		s := newSim(t, assignment(1, 1, 2))
		s.m.leave, s.m.grace = leave, grace
		s.w.Peers = []Peer{{Epoch: 1}}
		s.after(0)
		s.serve(backend.Shard).after(time.Millisecond).want(enginepb.State_READY, "")
		s.m.Quit()
		s.after(time.Millisecond).after(5*time.Second).want(enginepb.State_DRAINING, "the engine ends")
		if s.kills[backend.Shard] != 0 {
			t.Error("a shard is ended that works")
		}
		s.w.Parts[backend.Shard].Idle = stallIdle
		if s.after(time.Millisecond); s.kills[backend.Shard] != 1 {
			t.Error("a shard is not ended that does nothing")
		}
	})
}
