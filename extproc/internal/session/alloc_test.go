//go:build !race

// The race detector makes sync.Pool drop what it is given now and then: what is
// allocated is counted without it.

package session

import (
	"testing"
	"time"
)

func TestGetAllocatesNothing(t *testing.T) {
	s, now := NewStore(1000, time.Hour), time.Now()
	s.Put(1, 1, Place{1, 10}, now)
	if n := testing.AllocsPerRun(100, func() {
		s.Get(1, now)
		s.Put(1, 1, Place{1, 11}, now)
	}); n > 0 {
		t.Errorf("Get and Put allocate %v times", n)
	}
}
