package supervise

import (
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
)

// kept is a ready replica whose backend is kept so long without requests.
func kept(t *testing.T, alive time.Duration) *sim {
	t.Helper()
	a := assignment(1, 0, 1)
	a.Backend.KeepAlive = durationpb.New(alive)
	return ready(t, a)
}

// idle lets the time pass in steps as the loop does.
func (s *sim) idle(d time.Duration) *sim {
	for end := s.w.Now.Add(d); s.w.Now.Before(end); {
		s.after(slowTick)
	}
	return s
}

// TestIdleBackendIsEndedAndWoken ends a backend that nobody asks for, and has it back for who does.
func TestIdleBackendIsEndedAndWoken(t *testing.T) {
	s := kept(t, time.Minute)
	s.idle(59*time.Second).want(enginepb.State_READY, "")
	if s.m.Dormant() || s.w.Shut || s.kills[backend.Head] != 0 {
		t.Fatal("ended early")
	}
	s.idle(2*time.Second).want(enginepb.State_READY, "")
	if !s.m.Dormant() || !s.w.Shut || s.kills[backend.Head] != 1 || s.m.Wake(s.w.Now) == 0 {
		t.Fatalf("not ended: dormant %v, shut %v, %d kills", s.m.Dormant(), s.w.Shut, s.kills[backend.Head])
	}
	s.idle(time.Hour).want(enginepb.State_READY, "")
	if s.starts[backend.Head] != 1 {
		t.Fatal("started again for nobody")
	}
	s.w.Waiting = 2
	s.mute = true
	s.after(fastTick).want(enginepb.State_READY, "")
	s.serve(backend.Head).after(3*time.Second).want(enginepb.State_READY, "")
	if !s.m.Dormant() || !s.w.Shut || s.starts[backend.Head] != 2 {
		t.Fatalf("let in before the first token: dormant %v, shut %v, %d starts", s.m.Dormant(), s.w.Shut, s.starts[backend.Head])
	}
	s.w.Served = s.w.Now
	s.after(time.Millisecond).want(enginepb.State_READY, "")
	if s.m.Dormant() || s.w.Shut || s.m.Wake(s.w.Now) != 0 {
		t.Fatalf("still dormant: shut %v", s.w.Shut)
	}
	s.w.Waiting, s.w.Taken = 0, s.w.Taken+2
	s.idle(59 * time.Second)
	s.w.Taken++ // a short one, between two steps
	s.idle(59*time.Second).want(enginepb.State_READY, "")
	if s.m.Dormant() {
		t.Fatal("ended though it was asked for")
	}
	s.idle(2 * time.Second)
	if wake := s.m.Wake(s.w.Now); !s.m.Dormant() || wake < 3*time.Second || wake > 4*time.Second {
		t.Errorf("wake = %s, want about what it took the last time", wake)
	}
}

// TestForEverIsTheDefault keeps what has no time.
func TestForEverIsTheDefault(t *testing.T) {
	s := ready(t, assignment(1, 0, 1))
	s.idle(2*time.Hour).want(enginepb.State_READY, "")
	if s.kills[backend.Head] != 0 {
		t.Error("ended")
	}
}

// TestRunningRequestsKeepIt, however long they take.
func TestRunningRequestsKeepIt(t *testing.T) {
	s := kept(t, time.Second)
	s.w.Running = 1
	s.w.Parts[backend.Head].Opaque = true
	for range 20 {
		s.w.Served = s.w.Now
		s.idle(time.Second).want(enginepb.State_READY, "")
	}
	if s.kills[backend.Head] != 0 {
		t.Error("ended")
	}
}

// TestFailedWakeIsShownAndTriedAgain has a backend that does not come up for who waits.
func TestFailedWakeIsShownAndTriedAgain(t *testing.T) {
	s := kept(t, time.Second)
	s.idle(2 * time.Second)
	s.w.Waiting = 1
	s.after(fastTick).want(enginepb.State_READY, "")
	s.die(backend.Head, "died: out of memory")
	s.w.Now = s.w.Now.Add(time.Millisecond)
	commands := s.m.Step(s.w)
	s.want(enginepb.State_BROKEN, "out of memory")
	for _, c := range commands {
		if c.Do == Open {
			t.Fatal("let in before it is known that the backend is broken")
		}
	}
	s.w.Waiting = 0 // they have the reason
	s.after(fastTick)
	if s.w.Shut || s.m.Dormant() {
		t.Error("the door stays shut")
	}
	s.idle(failedFor/2).want(enginepb.State_BROKEN, "out of memory") // for who asks meanwhile
	s.idle(time.Hour).want(enginepb.State_READY, "")
	if !s.m.Dormant() || !s.w.Shut || s.starts[backend.Head] != 2 {
		t.Errorf("nobody asks: dormant %v, shut %v, %d starts", s.m.Dormant(), s.w.Shut, s.starts[backend.Head])
	}
	s.w.Waiting = 1
	s.after(fastTick).serve(backend.Head).after(time.Second).want(enginepb.State_READY, "")
	if s.m.Dormant() || s.starts[backend.Head] != 3 {
		t.Errorf("somebody asks: dormant %v, %d starts", s.m.Dormant(), s.starts[backend.Head])
	}
}

// TestAnotherModelIsNotDormant loads what is assigned while the one before rests or wakes.
func TestAnotherModelIsNotDormant(t *testing.T) {
	for name, waking := range map[string]bool{"rests": false, "wakes": true} {
		t.Run(name, func(t *testing.T) {
			s := kept(t, time.Second)
			s.idle(2 * time.Second)
			if waking {
				s.w.Waiting = 1
				s.after(fastTick)
			}
			a := assignment(2, 0, 1)
			a.Backend.Weights = "other"
			s.assign(a)
			s.after(fastTick)
			s.idle(time.Second).want(enginepb.State_STARTING, "backend is starting")
			s.serve(backend.Head).idle(time.Second).want(enginepb.State_READY, "")
			if s.m.Dormant() || s.w.Shut {
				t.Error("the other one is dormant")
			}
		})
	}
}

// TestKeptForEverAgain wakes what is not to rest any more, and a newer generation of the same wakes
// nothing.
func TestKeptForEverAgain(t *testing.T) {
	s := kept(t, time.Second)
	s.idle(2 * time.Second)
	a := assignment(2, 0, 1)
	a.Backend.KeepAlive = durationpb.New(time.Second)
	s.assign(a)
	s.idle(time.Second).want(enginepb.State_READY, "")
	if s.starts[backend.Head] != 1 {
		t.Error("a newer generation has woken it")
	}
	s.assign(assignment(3, 0, 1))
	s.idle(time.Second)
	s.serve(backend.Head).idle(time.Second).want(enginepb.State_READY, "")
	if s.m.Dormant() || s.w.Shut || s.starts[backend.Head] != 2 {
		t.Errorf("dormant %v, shut %v, %d starts", s.m.Dormant(), s.w.Shut, s.starts[backend.Head])
	}
}

// TestReleasedWhileDormant ends in IDLE, with the door open.
func TestReleasedWhileDormant(t *testing.T) {
	s := kept(t, time.Second)
	s.idle(2 * time.Second)
	s.assign(&enginepb.Assignment{Generation: 2})
	s.idle(time.Second).want(enginepb.State_IDLE, idle)
	if s.w.Shut || s.m.Dormant() {
		t.Error("the door stays shut")
	}
}

// TestRestOfRandomWorlds has requests come and go and backends die at any moment. No backend is
// ended by the machine while a request is in it or can get there, and who waits is let in or gets
// the reason.
func TestRestOfRandomWorlds(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := kept(t, time.Duration(1+r.IntN(3))*time.Second)
		waited := 0
		for range 400 {
			if s.m.state == enginepb.State_READY && r.IntN(12) == 0 {
				s.w.Waiting++
			}
			if !s.w.Shut {
				s.w.Running, s.w.Taken, s.w.Waiting = s.w.Running+s.w.Waiting, s.w.Taken+uint64(s.w.Waiting), 0
			}
			if s.w.Running > 0 && r.IntN(3) > 0 {
				s.w.Served = s.w.Now
				s.w.Running -= r.IntN(s.w.Running + 1)
			}
			if r.IntN(3) > 0 {
				s.w.Parts[backend.Head].Serving = s.w.Parts[backend.Head].Up
			}
			if s.w.Parts[backend.Head].Up && r.IntN(80) == 0 {
				s.die(backend.Head, "died")
				s.w.Running = 0
			}
			kills := s.kills[backend.Head]
			s.after(slowTick)
			if s.kills[backend.Head] > kills && s.m.Dormant() && (s.w.Running > 0 || !s.w.Shut) {
				t.Fatalf("seed %d: ended with %d requests in it, shut %v", seed, s.w.Running, s.w.Shut)
			}
			if s.m.Dormant() && !s.w.Shut {
				t.Fatalf("seed %d: dormant with an open door", seed)
			}
			if s.m.state != enginepb.State_READY {
				s.w.Waiting = 0 // they get the reason
			}
			if waited++; s.w.Waiting == 0 {
				waited = 0
			}
			if waited > 100 {
				t.Fatalf("seed %d: somebody has waited for %s in state %v", seed, 100*slowTick, s.m.state)
			}
		}
	}
}
