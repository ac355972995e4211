//go:build !race

// The race detector makes sync.Pool drop what it is given now and then: what is
// allocated is counted without it.

package scrape

import "testing"

func TestScanAllocatesNothing(t *testing.T) {
	b := page(t, "vllm.txt")
	if n := testing.AllocsPerRun(100, func() { vllm.Scan(b) }); n != 0 {
		t.Errorf("%v allocations a page", n)
	}
}
