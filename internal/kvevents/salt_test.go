package kvevents

import (
	"testing"

	"millrace.dev/millrace/internal/blocks"
)

// TestSaltedBlocksAreFound looks up a prompt whose blocks vLLM has reported for a request
// with cache_salt "s": they are found with that salt alone.
func TestSaltedBlocksAreFound(t *testing.T) {
	var b Batch
	if err := b.Decode(payload(t, "salt")); err != nil {
		t.Fatal(err)
	}
	set := new(blocks.Set)
	names := blocks.NewNames(set)
	names.SetKnown(blocks.Whole)
	e := &b.Events[0]
	if !names.Store(&e.Stored) {
		t.Fatal("not taken in")
	}
	tokens := append(append([]uint32{}, e.Tokens...), 0)
	for name, tt := range map[string]struct {
		adapter string
		extra   uint64
		want    int
	}{
		"the salt": {"", blocks.Extra(0, []byte("s")), len(e.Hashes)}, "another": {"", blocks.Extra(0, []byte("t")), 0}, "none": {"", 0, 0},
		"an adapter of its name": {"s", 0, 0}, "the salt, and an adapter": {"a", blocks.Extra(0, []byte("s")), 0},
	} {
		if got := set.Count(blocks.Append(nil, blocks.Root(tt.adapter), tt.extra, tokens, e.Size)); got != tt.want {
			t.Errorf("%s: %d blocks found, want %d", name, got, tt.want)
		}
	}
}

// TestASaltMayBeNamedAsTheAdapter has one of two equal keys be the adapter's name, and the
// other the salt: vLLM writes that name first, or none.
func TestASaltMayBeNamedAsTheAdapter(t *testing.T) {
	salted := blocks.Extra(0, []byte("a"))
	for name, tt := range map[string]struct {
		keys list
		want uint64
	}{
		"adapter": {list{"a"}, 0}, "adapter and salt": {list{"a", "a"}, salted}, "adapter and another salt": {list{"a", "b"}, blocks.Extra(0, []byte("b"))},
		"twice the salt": {list{"a", "a", "a"}, blocks.Extra(salted, []byte("a"))},
	} {
		h, rest, err := extraOf(packed(t, tt.keys), "a")
		if h != tt.want || len(rest) > 0 || err != nil {
			t.Errorf("%s: %x, %v; want %x", name, h, err, tt.want)
		}
	}
}
