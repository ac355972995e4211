//go:build !race

// The race detector makes sync.Pool drop what it is given now and then: what is
// allocated is counted without it.

package pick

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestPickAllocatesNothing(t *testing.T) {
	m := model()
	for i := range 64 {
		m.Endpoints = append(m.Endpoints, endpoint(i, slow(1+float64(i)/10)))
	}
	p, c := New(prometheus.NewRegistry()), new(Choice)
	q := &Query{Model: m, Prompt: 100, Output: 50, Most: 4, Now: epoch}
	if n := testing.AllocsPerRun(100, func() { _ = p.Pick(q, c) }); n > 0 {
		t.Errorf("Pick allocates %v times", n)
	}
}
