package admit

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// asking is a request that comes after so many seconds.
type asking struct {
	at float64
	p  Priority
}

// order is in which order requests that came at so many seconds were let in, one each
// second from second 10 on, by their index, and who was refused.
func order(t *testing.T, l Limits, asked []asking) (in, refused []int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		g := &Gate{}
		g.Set(l)
		first, err := g.Acquire(context.Background(), Standard, 1)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		for i, a := range asked {
			wg.Go(func() {
				time.Sleep(time.Duration(a.at * float64(time.Second)))
				ticket, err := g.Acquire(context.Background(), a.p, 1)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					if !errors.Is(err, ErrFull) && !errors.Is(err, ErrLate) {
						t.Error(err)
					}
					refused = append(refused, i)
					return
				}
				in = append(in, i)
				go func() {
					time.Sleep(time.Second)
					ticket.Release()
				}()
			})
		}
		time.Sleep(10 * time.Second)
		first.Release()
		wg.Wait()
		time.Sleep(2 * time.Second)
		if load := g.Load(); load.Running != 0 || load.Waiting != 0 || load.Tokens != 0 {
			t.Errorf("%+v after all", load)
		}
	})
	return in, refused
}

func TestWhoGoesFirst(t *testing.T) {
	type asked = []asking
	goal := Goal{First: 3 * time.Second}
	tests := []struct {
		name        string
		limits      Limits
		asked       asked
		in, refused []int
	}{
		{"without a goal the more urgent, then the older", Limits{Slots: 1, Queue: 9, Goal: Goal{}},
			asked{{1, Sheddable}, {2, Standard}, {3, Standard}, {4, Critical}}, []int{3, 1, 2, 0}, nil},
		{"a full queue: the newest of the least urgent goes", Limits{Slots: 1, Queue: 2, Goal: Goal{}},
			asked{{1, Sheddable}, {2, Sheddable}, {3, Standard}, {4, Critical}, {5, Standard}}, []int{3, 2}, []int{1, 0, 4}},
		{"late ones go last", Limits{Slots: 1, Queue: 9, Goal: goal},
			asked{{1, Standard}, {2, Standard}, {8, Standard}, {8.5, Standard}, {9, Standard}}, []int{2, 3, 4, 0, 1}, nil},
		{"each fourth is the oldest", Limits{Slots: 1, Queue: 9, Goal: Goal{First: 5 * time.Second}},
			asked{{1, Standard}, {2, Standard}, {8, Standard}, {8.5, Standard}, {9, Standard}, {9.5, Standard}}, []int{2, 3, 4, 0, 5, 1}, nil},
		{"late critical ones go before standard ones", Limits{Slots: 1, Queue: 9, Goal: goal},
			asked{{1, Critical}, {8, Standard}, {9, Critical}}, []int{2, 0, 1}, nil},
		{"late sheddable ones are refused", Limits{Slots: 1, Queue: 9, Goal: goal},
			asked{{1, Sheddable}, {8.5, Sheddable}, {9, Standard}}, []int{2, 1}, []int{0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in, refused := order(t, tt.limits, tt.asked)
			if !slices.Equal(in, tt.in) || !slices.Equal(refused, tt.refused) {
				t.Errorf("let in %v, refused %v; want %v, %v", in, refused, tt.in, tt.refused)
			}
		})
	}
}
