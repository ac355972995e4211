package enginepb

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestAfter(t *testing.T) {
	tests := []struct {
		name    string
		v, o    Version
		is, was bool // whether v is after o, and o after v
	}{
		{"the same", Version{5, 5}, Version{5, 5}, false, false},
		{"a later one", Version{5, 6}, Version{5, 5}, true, false},
		{"the next epoch of it", Version{6, 1}, Version{5, math.MaxUint64}, true, false},
		{"the last epoch of it", Version{5 + 1023, 1}, Version{5, 1}, true, false},
		{"another control plane, later", Version{5 + 1024, 1}, Version{5, 1}, false, false},
		{"another control plane, before", Version{5, 9}, Version{1 << 40, 1}, false, false},
		{"the epoch after the last number", Version{0, 1}, Version{math.MaxUint64, math.MaxUint64}, true, false},
		{"none at all", Version{}, Version{math.MaxUint64, 1}, false, false},
		{"one that has none, as of an older release", Version{0, 9}, Version{0, 8}, true, false},
	}
	for _, tt := range tests {
		if is, was := tt.v.After(tt.o), tt.o.After(tt.v); is != tt.is || was != tt.was {
			t.Errorf("%s: %v after %v: %t, and back: %t; want %t, %t", tt.name, tt.v, tt.o, is, was, tt.is, tt.was)
		}
	}
	if EpochAt(2)-EpochAt(1) < family {
		t.Error("control planes that begin a microsecond apart are taken for one")
	}
}

// TestEveryVersionHasASuccessor: whatever an engine has, the next epoch comes after it, and
// no two versions come after each other.
func TestEveryVersionHasASuccessor(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	number := func() uint64 {
		return [...]uint64{0, 1, math.MaxUint64, math.MaxUint64 - 1, 1 << 63, r.Uint64()}[r.IntN(6)]
	}
	for range 100_000 {
		v, o := Version{number(), number()}, Version{number() + r.Uint64N(2048), number()}
		if next := (Version{v.Epoch + 1, 1}); !next.After(v) || v.After(next) {
			t.Fatalf("%v is not after %v", next, v)
		}
		if v == (Version{}) && v.After(o) || v.After(o) && o.After(v) {
			t.Fatalf("%v and %v are after each other", v, o)
		}
	}
}
