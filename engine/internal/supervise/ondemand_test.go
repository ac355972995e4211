package supervise

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
)

// demanded is an assignment whose backend is loaded by the first request.
func demanded(generation uint64, weights string) *enginepb.Assignment {
	a := assignment(generation, 0, 1)
	a.Backend.OnDemand, a.Backend.Weights = true, weights
	return a
}

// TestOnDemandIsLoadedByTheFirstRequest, and by nobody before; it is READY all the while.
func TestOnDemandIsLoadedByTheFirstRequest(t *testing.T) {
	a := demanded(1, "/a.gguf")
	a.Backend.KeepAlive = durationpb.New(time.Minute)
	s := newSim(t, a)
	s.after(time.Millisecond).idle(time.Hour).want(enginepb.State_READY, "")
	if !s.m.Dormant() || !s.w.Shut || s.starts[backend.Head] != 0 {
		t.Fatalf("unasked: dormant %v, shut %v, %d starts", s.m.Dormant(), s.w.Shut, s.starts[backend.Head])
	}
	if wake := s.m.Wake(s.w.Now); wake != unmeasured {
		t.Errorf("never loaded: wake = %s, want %s", wake, unmeasured)
	}
	s.w.Waiting = 1
	s.after(fastTick).want(enginepb.State_READY, "")
	if wake := s.m.Wake(s.w.Now); wake < unmeasured/2 || wake > unmeasured {
		t.Errorf("being loaded: wake = %s, want nearly %s", wake, unmeasured)
	}
	s.serve(backend.Head).after(time.Second).want(enginepb.State_READY, "")
	if s.m.Dormant() || s.w.Shut || s.starts[backend.Head] != 1 {
		t.Fatalf("asked: dormant %v, shut %v, %d starts", s.m.Dormant(), s.w.Shut, s.starts[backend.Head])
	}
	s.w.Waiting, s.w.Taken = 0, 1
	s.idle(2*time.Minute).want(enginepb.State_READY, "")
	if wake := s.m.Wake(s.w.Now); !s.m.Dormant() || s.kills[backend.Head] != 1 || wake >= unmeasured {
		t.Fatalf("kept for longer than its time, or its loading was not measured: wake = %s", wake)
	}
}

// TestOnDemandWithoutATimeStays loaded once it is.
func TestOnDemandWithoutATimeStays(t *testing.T) {
	s := newSim(t, demanded(1, "/a.gguf"))
	s.after(time.Millisecond).idle(time.Minute)
	if !s.m.Dormant() {
		t.Fatal("loaded for nobody")
	}
	s.w.Waiting = 1
	s.after(fastTick).serve(backend.Head).after(time.Second)
	s.w.Waiting, s.w.Taken = 0, 1
	s.idle(time.Hour).want(enginepb.State_READY, "")
	if s.m.Dormant() || s.kills[backend.Head] != 0 {
		t.Error("unloaded")
	}
}

// TestOnDemandAfterAnother ends what was loaded, and lets nobody into what is not there.
func TestOnDemandAfterAnother(t *testing.T) {
	s := ready(t, assignment(1, 0, 1))
	s.assign(demanded(2, "/b.gguf"))
	s.w.Waiting = 1 // of the one before
	s.after(time.Second)
	if s.m.state == enginepb.State_READY {
		t.Fatal("READY with its door open")
	}
	s.w.Waiting = 0
	s.after(time.Second).want(enginepb.State_READY, "")
	if !s.m.Dormant() || !s.w.Shut || s.starts[backend.Head] != 1 || s.kills[backend.Head] != 1 {
		t.Fatalf("dormant %v, shut %v, %d starts", s.m.Dormant(), s.w.Shut, s.starts[backend.Head])
	}
	// What is assigned after a release is loaded by its first request, too.
	s.assign(&enginepb.Assignment{Generation: 3})
	s.after(time.Second).want(enginepb.State_IDLE, "")
	s.assign(demanded(4, "/b.gguf"))
	s.after(time.Second).want(enginepb.State_READY, "")
	if !s.m.Dormant() || s.starts[backend.Head] != 1 {
		t.Error("loaded for nobody after the release")
	}
}

// TestOnDemandIsKeptByAnEdit of what was loaded from the start.
func TestOnDemandIsKeptByAnEdit(t *testing.T) {
	a := assignment(1, 0, 1)
	a.Backend.Weights = "/a.gguf"
	s := ready(t, a)
	s.assign(demanded(2, "/a.gguf"))
	s.after(time.Second).want(enginepb.State_READY, "")
	if s.m.Dormant() || s.kills[backend.Head] != 0 {
		t.Error("what was loaded was ended")
	}
}
