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

func gate(slots, queue int) *Gate {
	g := &Gate{}
	g.Set(Limits{Slots: slots, Queue: queue})
	return g
}

func take(t *testing.T, g *Gate) *Ticket {
	t.Helper()
	ticket, err := g.Acquire(t.Context(), Standard, 10)
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

func TestFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(1, 3)
		taken := take(t, g)
		var order []int
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				ticket := take(t, g)
				order = append(order, i)
				ticket.Release()
			})
			synctest.Wait()
		}
		if l := g.Load(); l != (Load{Running: 1, Waiting: 3, Slots: 1, Tokens: 40}) {
			t.Errorf("load %+v", l)
		}
		if _, err := g.Acquire(t.Context(), Standard, 1); !errors.Is(err, ErrFull) {
			t.Errorf("a fourth one: %v, want ErrFull", err)
		}
		taken.Release()
		taken.Release() // does nothing
		wg.Wait()
		for i, got := range order {
			if i != got {
				t.Fatalf("order %v", order)
			}
		}
		if l := g.Load(); l != (Load{Slots: 1}) {
			t.Errorf("load %+v after all", l)
		}
	})
}

func TestCancelGivesUpThePlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(1, 2)
		taken := take(t, g)
		why := errors.New("why")
		ctx, cancel := context.WithCancelCause(t.Context())
		got := make(chan error)
		go func() {
			_, err := g.Acquire(ctx, Standard, 5)
			got <- err
		}()
		synctest.Wait()
		cancel(why)
		if err := <-got; !errors.Is(err, why) {
			t.Errorf("error %v, want the cause", err)
		}
		if l := g.Load(); l.Waiting != 0 || l.Tokens != 10 {
			t.Errorf("load %+v", l)
		}
		taken.Release()
		take(t, g).Release()
	})
}

func TestResizeLetsTheQueueIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(0, 5)
		var wg sync.WaitGroup
		wg.Go(func() { take(t, g).Release() })
		synctest.Wait()
		g.Set(Limits{Slots: 1, Queue: 5})
		wg.Wait()
	})
}

func TestProgressNeverGoesBelowZero(t *testing.T) {
	g := gate(1, 0)
	ticket := take(t, g)
	ticket.Progress(4)
	if n := g.Load().Tokens; n != 6 {
		t.Errorf("%d tokens, want 6", n)
	}
	ticket.Progress(100)
	ticket.Progress(-3)
	if n := g.Load().Tokens; n != 0 {
		t.Errorf("%d tokens, want 0", n)
	}
}

// TestManyAtOnce has requests come, wait, give up and end in any order.
func TestManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slots = 3
		g := gate(slots, 50)
		var mu sync.Mutex
		running, most := 0, 0
		var wg sync.WaitGroup
		for i := range 200 {
			r := rand.New(rand.NewPCG(uint64(i), 2))
			wg.Go(func() {
				time.Sleep(time.Duration(r.IntN(500)) * time.Millisecond)
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(r.IntN(200))*time.Millisecond)
				defer cancel()
				ticket, err := g.Acquire(ctx, Priority(r.IntN(int(priorities))), int64(r.IntN(100)))
				if err != nil {
					return
				}
				defer ticket.Release()
				mu.Lock()
				running++
				most = max(most, running)
				mu.Unlock()
				time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
				mu.Lock()
				running--
				mu.Unlock()
			})
		}
		wg.Wait()
		if most != slots {
			t.Errorf("at most %d ran at a time, want %d", most, slots)
		}
		if l := g.Load(); l != (Load{Slots: slots}) {
			t.Errorf("load %+v after all", l)
		}
	})
}

// TestShutGateLetsNobodyIn shuts only where nobody is in or waits, and as many may wait as would
// be let in at once, and then those of the queue.
func TestShutGateLetsNobodyIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(2, 1)
		in := take(t, g)
		g.Shut()
		if _, taken, shut := g.Demand(); shut || taken != 1 {
			t.Errorf("shut %v with one in it, %d taken", shut, taken)
		}
		in.Release()
		g.Shut()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { take(t, g).Release() })
		}
		synctest.Wait()
		if waiting, taken, shut := g.Demand(); waiting != 3 || taken != 1 || !shut {
			t.Errorf("%d wait, %d were let in, shut %v; want 3, 1, true", waiting, taken, shut)
		}
		if _, err := g.Acquire(t.Context(), Standard, 1); !errors.Is(err, ErrFull) {
			t.Errorf("a fourth one: %v, want ErrFull", err)
		}
		g.Set(Limits{Slots: 2, Queue: 1}) // opens nothing
		synctest.Wait()
		if waiting, _, _ := g.Demand(); waiting != 3 {
			t.Errorf("%d wait, want 3", waiting)
		}
		g.Open()
		wg.Wait()
		if l := g.Load(); l != (Load{Slots: 2}) {
			t.Errorf("load %+v after all", l)
		}
	})
}
