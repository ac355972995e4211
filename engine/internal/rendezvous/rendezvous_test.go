package rendezvous

import (
	"fmt"
	"slices"
	"testing"
)

func TestOrderIsTheSameWhoeverElseIsKnown(t *testing.T) {
	first := map[string]int{}
	for i := range 300 {
		key := fmt.Sprint("key-", i)
		by := func(a, b string) int { return Compare(a, b, key) }
		all := slices.SortedFunc(slices.Values([]string{"a", "b", "c"}), by)
		first[all[0]]++
		some := slices.SortedFunc(slices.Values([]string{"c", "b"}), by)
		if want := slices.DeleteFunc(slices.Clone(all), func(n string) bool { return n == "a" }); !slices.Equal(some, want) {
			t.Errorf("%s: %v without a, %v with it", key, some, all)
		}
	}
	for _, n := range []string{"a", "b", "c"} {
		if first[n] < 60 {
			t.Errorf("%s is the first for %d of 300 keys", n, first[n])
		}
	}
}
