package coalesce

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

type (
	batcher = Batcher[string, int, int]
	batch   = Batch[string, int, int]
)

// backend answers a batch after some time, and remembers which there were.
type backend struct {
	took  time.Duration
	mu    sync.Mutex
	calls [][]int
}

// ask has n answered: by its double. It returns how long that took; 0: ctx has ended.
func ask(ctx context.Context, b *batcher, s *backend, key string, size Size, n int) (took time.Duration, answer int) {
	asked := time.Now()
	batch, m, leads := b.Join(ctx, key, size, n, 1)
	stop := context.AfterFunc(ctx, func() { batch.Leave(m) })
	defer stop()
	if leads {
		lead(batch, s)
	}
	select {
	case <-batch.Done():
		if ctx.Err() != nil {
			return 0, 0
		}
		return time.Since(asked), m.Result
	case <-ctx.Done():
		return 0, 0
	}
}

func lead(b *batch, s *backend) {
	defer func() { b.End(time.Now()) }()
	b.Gather(2)
	members := b.Seal(time.Now())
	var call []int
	for _, m := range members {
		call = append(call, m.Call)
	}
	s.mu.Lock()
	s.calls = append(s.calls, call)
	s.mu.Unlock()
	select {
	case <-time.After(s.took):
	case <-b.Context().Done():
		return
	}
	for _, m := range members {
		m.Result = 2 * m.Call
	}
}

func TestDeadline(t *testing.T) {
	ms := time.Millisecond
	for _, tt := range []struct {
		running, slots int
		usual, want    time.Duration
	}{
		{0, 4, time.Second, 0}, {1, 4, 0, 0}, {1, 0, time.Second, 0}, {-1, 4, time.Second, 0},
		{1, 4, 8 * ms, ms}, {2, 4, 8 * ms, 2 * ms}, {4, 4, 8 * ms, 4 * ms}, {9, 4, 8 * ms, 4 * ms}, {4, 4, time.Second, Longest},
	} {
		if got := Deadline(tt.running, tt.slots, tt.usual); got != tt.want {
			t.Errorf("Deadline(%d, %d, %s) = %s, want %s", tt.running, tt.slots, tt.usual, got, tt.want)
		}
	}
}

func TestAloneNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s := New[string, int, int](), &backend{took: 8 * time.Millisecond}
		for i := range 3 {
			if took, answer := ask(t.Context(), b, s, "k", Size{4, 100}, i); took != s.took || answer != 2*i {
				t.Errorf("%s, %d", took, answer)
			}
		}
	})
}

// TestTogether has calls come while another one runs: those with the same key are one, until it is full.
func TestTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s := New[string, int, int](), &backend{took: 8 * time.Millisecond}
		_, _ = ask(t.Context(), b, s, "k", Size{4, 100}, 0) // shows how long it takes
		s.calls = nil
		var wg sync.WaitGroup
		go1 := func(key string, size Size, n int) {
			wg.Go(func() {
				if took, answer := ask(t.Context(), b, s, key, size, n); answer != 2*n || took > s.took+Longest {
					t.Errorf("%d: %d after %s", n, answer, took)
				}
			})
			synctest.Wait()
		}
		go1("k", Size{4, 100}, 1)
		for n := 2; n < 7; n++ {
			go1("k", Size{4, 100}, n)
		}
		go1("other", Size{4, 100}, 7)
		go1("tokens", Size{4, 2}, 8)
		go1("tokens", Size{4, 2}, 9)
		go1("tokens", Size{4, 2}, 10)
		wg.Wait()
		sizes := map[int]int{}
		for _, c := range s.calls {
			sizes[c[0]] = len(c)
		}
		for first, want := range map[int]int{1: 1, 2: 4, 6: 1, 7: 1, 8: 2, 10: 1} {
			if sizes[first] != want {
				t.Errorf("%v; %d should be with %d", s.calls, first, want)
			}
		}
	})
}

// TestWhoLeavesIsNotSent, leader or not, and a batch that all have left ends at once.
func TestWhoLeavesIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s := New[string, int, int](), &backend{took: time.Second}
		_, _ = ask(t.Context(), b, s, "k", Size{9, 100}, 0)
		s.calls = nil
		busy := func() { _, _ = ask(t.Context(), b, s, "busy", Size{1, 1}, 1) }
		go busy()
		synctest.Wait()
		ctx, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				c := t.Context()
				if i < 2 { // the leader and another
					c = ctx
				}
				if _, answer := ask(c, b, s, "k", Size{9, 100}, 10+i); (answer == 0) != (i < 2) {
					t.Errorf("%d: %d", i, answer)
				}
			})
			synctest.Wait()
		}
		leave()
		wg.Wait()
		if len(s.calls) != 2 || len(s.calls[1]) != 2 {
			t.Errorf("sent %v", s.calls)
		}
		all, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		began := time.Now()
		wg.Go(func() { _, _ = ask(all, b, s, "k", Size{9, 100}, 1) })
		wg.Wait()
		if took := time.Since(began); took != 100*time.Millisecond {
			t.Errorf("left by all, it ended after %s", took)
		}
	})
}

// TestAnyOrder has calls come and leave at random: each is answered rightly, and sent once.
func TestAnyOrder(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			b, s := New[string, int, int](), &backend{took: time.Duration(1+r.IntN(30)) * time.Millisecond}
			var wg sync.WaitGroup
			for n := range 300 {
				at, stays := time.Duration(r.IntN(300))*time.Millisecond, time.Duration(r.IntN(60))*time.Millisecond
				key := string(rune('a' + r.IntN(2)))
				wg.Go(func() {
					time.Sleep(at)
					ctx, cancel := context.WithTimeout(t.Context(), stays)
					defer cancel()
					if _, answer := ask(ctx, b, s, key, Size{4, 100}, n); answer != 0 && answer != 2*n {
						t.Errorf("%d: %d", n, answer)
					}
				})
			}
			wg.Wait()
			sent := map[int]bool{}
			for _, c := range s.calls {
				if len(c) > 4 {
					t.Errorf("%d in one", len(c))
				}
				for _, n := range c {
					if sent[n] {
						t.Errorf("%d was sent twice", n)
					}
					sent[n] = true
				}
			}
			if b.running != 0 || len(b.open) != 0 {
				t.Errorf("%d run, %d are open after all", b.running, len(b.open))
			}
		})
	}
}
