//go:build !race

package blocks

import "testing"

func TestLookingUpAllocatesNothing(t *testing.T) {
	var b Set
	NewNames(&b).Store(stored(1, 1, 2))
	tokens := []uint32{1, 2, 3, 4, 5}
	memory := Append(nil, Root(""), 0, tokens, 2)
	if n := testing.AllocsPerRun(100, func() {
		memory = Append(memory[:0], Root(""), 0, tokens, 2)
		b.Count(memory)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
