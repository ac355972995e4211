//go:build !race

package prefix

import (
	"testing"
	"time"
)

func TestLookingUpAllocatesNothing(t *testing.T) {
	x, c := newIndex(1000, time.Hour), NewCache(1, 1000)
	chain := prompt(10, 1, 2, 3, 4)
	var f Found
	if n := testing.AllocsPerRun(100, func() {
		x.Find(chain, epoch, &f)
		x.Use(chain, c, epoch)
	}); n > 0 {
		t.Errorf("Find and Use allocate %v times", n)
	}
}

func BenchmarkFindAndUse(b *testing.B) {
	x, c := newIndex(1<<20, time.Hour), NewCache(1, 1<<20)
	blocks := make([]uint32, MaxLinks)
	var f Found
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		for j := range blocks {
			blocks[j] = uint32(i%5000*1000 + j)
		}
		chain := prompt(100, blocks...)
		x.Find(chain, epoch, &f)
		x.Use(chain, c, epoch)
	}
}
