//go:build !race

// The race detector makes sync.Pool drop what it is given now and then: what is
// allocated is counted without it.

package token

import "testing"

func TestCountingChatsAllocatesNothing(t *testing.T) {
	m := smol(t)
	c := talk(t, 8<<10)
	m.CountChat(c)
	if n := testing.AllocsPerRun(100, func() { m.CountChat(c) }); n != 0 {
		t.Errorf("%v allocations for a conversation", n)
	}
	ids, _ := m.AppendChat(nil, c)
	if n := testing.AllocsPerRun(100, func() { ids, _ = m.AppendChat(ids[:0], c) }); n != 0 {
		t.Errorf("%v allocations for the ids of a conversation", n)
	}
	text := prose(newRand(), 4096)
	if n := testing.AllocsPerRun(100, func() { m.Count(text) }); n != 0 {
		t.Errorf("%v allocations for a text", n)
	}
}
