package admit

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// use has a request of some priority run for some time, and returns how long it waited and why
// it was refused.
func use(g *Gate, p Priority, runs time.Duration) (waited time.Duration, err error) {
	asked := time.Now()
	t, err := g.Acquire(context.Background(), p, 1)
	waited = time.Since(asked)
	if err == nil {
		time.Sleep(runs)
		t.Begun(1)
		t.Release()
	}
	return waited, err
}

// TestSheddableGivesWay has one request of a second run at a time, and as many wait as can be in
// time: another one, and those whom urgent ones push back, are refused at once, and none that runs.
func TestSheddableGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Gate{}
		g.Set(Limits{Slots: 1, Queue: 100, Goal: Goal{First: 3500 * time.Millisecond}})
		for range servedFew { // learns how long they run
			_, _ = use(g, Standard, time.Second)
		}
		type end struct {
			waited time.Duration
			err    error
		}
		ask := func(p Priority) <-chan end {
			c := make(chan end, 1)
			go func() {
				waited, err := use(g, p, time.Second)
				c <- end{waited, err}
			}()
			synctest.Wait()
			return c
		}
		refused := func(c <-chan end) bool {
			select {
			case e := <-c:
				return errors.Is(e.err, ErrLate) && e.waited == 0
			default:
				return false
			}
		}
		running := ask(Sheddable)
		all := []<-chan end{ask(Sheddable), ask(Sheddable), ask(Sheddable)}
		if fourth := ask(Sheddable); !refused(fourth) {
			t.Error("a fourth that waits is not refused at once")
		}
		standard := ask(Standard)
		if refused(all[0]) || refused(all[1]) || !refused(all[2]) {
			t.Error("not the last sheddable one alone gave way to a standard one")
		}
		critical := ask(Critical)
		if refused(all[0]) || !refused(all[1]) {
			t.Error("not the last sheddable one alone gave way to a critical one")
		}
		for name, want := range map[string]struct {
			c      <-chan end
			waited time.Duration
		}{"running": {running, 0}, "critical": {critical, time.Second}, "standard": {standard, 2 * time.Second}, "sheddable": {all[0], 3 * time.Second}} {
			if e := <-want.c; e.err != nil || e.waited != want.waited {
				t.Errorf("%s: waited %s, %v; want %s", name, e.waited, e.err, want.waited)
			}
		}
		if c := g.Counts(); c.Late != 3 || c.Full != 0 || c.Displaced != 0 {
			t.Errorf("%+v, want 3 late", c)
		}
	})
}

// TestUrgentOnesDontStarve overloads the gate threefold with less urgent requests.
func TestUrgentOnesDontStarve(t *testing.T) {
	for _, goal := range []Goal{{}, {First: time.Second, Token: 50 * time.Millisecond}} {
		synctest.Test(t, func(t *testing.T) {
			g := &Gate{}
			g.Set(Limits{Slots: 4, Queue: 1000, Goal: goal})
			r := rand.New(rand.NewPCG(3, 4))
			var wg sync.WaitGroup
			var mu sync.Mutex
			longest := map[Priority]time.Duration{}
			for i := range 3000 {
				p, runs := Standard, time.Duration(100+r.IntN(200))*time.Millisecond
				switch i % 20 {
				case 0:
					p = Critical
				case 1, 2, 3, 4, 5:
					p = Sheddable
				}
				wg.Go(func() {
					waited, err := use(g, p, runs)
					mu.Lock()
					defer mu.Unlock()
					if err != nil && p == Critical {
						t.Errorf("a critical one was refused after %s: %v", waited, err)
					}
					longest[p] = max(longest[p], waited)
				})
				time.Sleep(time.Duration(r.IntN(34)) * time.Millisecond)
			}
			wg.Wait()
			// One slot comes free each 50 ms; each fourth place may be another's.
			if longest[Critical] > time.Second {
				t.Errorf("goal %+v: a critical one waited %s", goal, longest[Critical])
			}
			if load := g.Load(); load.Running != 0 || load.Waiting != 0 || load.Tokens != 0 {
				t.Errorf("%+v after all", load)
			}
		})
	}
}

// TestLyingBackendHasNoEffect: what it says of a whole answer counts only where the request was there for as long.
func TestLyingBackendHasNoEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Gate{}
		g.Set(Limits{Slots: 8, Queue: 100, Goal: Goal{First: time.Second, Token: 50 * time.Millisecond}})
		for range 100 {
			ticket := take(t, g)
			time.Sleep(100 * time.Millisecond)
			ticket.Measured(time.Hour, 10, 100, time.Hour)
			ticket.Measured(time.Millisecond, 10, 1, time.Hour)
			ticket.Measured(-time.Hour, 10, -5, -time.Hour)
			ticket.Release()
		}
		if l := g.Load(); l.Limit != "nothing is measured yet" || l.Slots != 4 {
			t.Errorf("%+v", l)
		}
	})
}

// TestNoGoalMeasuresNothing holds what a token costs without a goal: no memory, and no clock or lock.
func TestNoGoalMeasuresNothing(t *testing.T) {
	g := gate(4, 4)
	ticket := take(t, g)
	defer ticket.Release()
	if n := testing.AllocsPerRun(100, func() { ticket.Generated(1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if ticket.n != 0 || !ticket.last.IsZero() || g.limiter.weight != 0 {
		t.Error("measured without a goal")
	}
}
