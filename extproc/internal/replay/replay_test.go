package replay

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// talk returns the lines of a trace of conversations that grow by a block a turn.
func talk(conversations, turns int) string {
	var b strings.Builder
	for turn := range turns {
		for c := range conversations {
			ids := []string{"0", "1"} // in common
			for i := range turn + 1 {
				ids = append(ids, fmt.Sprint(1000*(c+1)+i))
			}
			fmt.Fprintf(&b, `{"timestamp":%d,"input_length":%d,"output_length":8,"hash_ids":[%s]}`+"\n",
				(turn*conversations+c)*100, 16*len(ids), strings.Join(ids, ","))
		}
	}
	return b.String()
}

func read(t *testing.T, text string) *Trace {
	t.Helper()
	tr, err := Read("made", 16, strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func small(n int) Fleet {
	f := Fleet{Name: "small"}
	for range n {
		f.Engines = append(f.Engines, Engine{Slots: 4, Prefill: 2, Decode: 10, Crowd: 0.3, Chunk: 64, Cache: 4096})
	}
	return f
}

func TestTurnsOfAConversationAreFound(t *testing.T) {
	tr := read(t, talk(5, 4))
	for i, r := range tr.Requests {
		if want := i - 5; i >= 5 && (r.Parent != want || r.Session != i%5) || i < 5 && r.Parent != -1 {
			t.Errorf("request %d: session %d, after %d", i, r.Session, r.Parent)
		}
	}
	if n := len(tr.Requests[0].After); n != 0 {
		t.Errorf("half a block is said to be %d blocks", n)
	}
	twice := tr.Copies(3)
	if len(twice.Requests) != 3*len(tr.Requests) {
		t.Fatalf("three copies of %d requests are %d", len(tr.Requests), len(twice.Requests))
	}
	shared, all := map[uint64]bool{}, map[uint64]bool{}
	for i, r := range twice.Requests {
		if r.Parent >= i || r.Parent >= 0 && twice.Requests[r.Parent].Session != r.Session {
			t.Errorf("request %d comes after %d, of another conversation", i, r.Parent)
		}
		shared[r.Blocks[1]] = true
		all[r.Blocks[2]] = true
	}
	if len(shared) != 1 || len(all) != 15 {
		t.Errorf("%d blocks in common and %d own ones; want 1 and 15", len(shared), len(all))
	}
}

// TestEveryRequestIsAnsweredOnce runs all policies and holds them to what must be
// true of any.
func TestEveryRequestIsAnsweredOnce(t *testing.T) {
	tr, f := read(t, talk(40, 8)), small(4)
	_, oracle := Oracle(tr, f.Engines, tr.times(1, nil))
	for _, name := range Policies {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			done, busy := Run(tr, &f, newPolicy(name, tr, f, Pickers{N: 2}, r), 1, r)
			at := map[int][]Done{}
			for i, d := range done {
				if d.ID != i || d.Came > d.Began || d.Began >= d.First || d.First > d.End {
					t.Fatalf("request %d: %+v", i, d)
				}
				if p := tr.Requests[i].Parent; p >= 0 && done[p].End > d.Came {
					t.Errorf("turn %d came before the answer to %d", i, p)
				}
				at[d.Engine] = append(at[d.Engine], d)
			}
			cached := 0
			for e, ds := range at {
				if n := most(ds); n > f.Engines[e].Slots {
					t.Errorf("%d requests at a time on %d slots", n, f.Engines[e].Slots)
				}
				for _, d := range ds {
					cached += d.Cached
				}
			}
			if cached > oracle {
				t.Errorf("%d tokens were cached, %d at most can be", cached, oracle)
			}
			if len(busy) != 4 {
				t.Errorf("%d engines", len(busy))
			}
		})
	}
}

// most is how many were worked on at a time.
func most(ds []Done) (n int) {
	for _, a := range ds {
		k := 0
		for _, b := range ds {
			if b.Began <= a.Began && a.Began < b.End {
				k++
			}
		}
		n = max(n, k)
	}
	return n
}

func TestRunsAreRepeatable(t *testing.T) {
	tr, f := read(t, talk(20, 5)), small(3)
	for _, name := range Policies {
		a, b := Measure(tr, f, name, 0.8, Pickers{N: 1}, 2), Measure(tr, f, name, 0.8, Pickers{N: 1}, 2)
		if d := cmp.Diff(a, b); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestOursKeepsConversationsTogether(t *testing.T) {
	tr, f := read(t, talk(40, 10)), small(4)
	ours, turns := Measure(tr, f, Ours, 0.5, Pickers{N: 1}, 1), Measure(tr, f, "round robin", 0.5, Pickers{N: 1}, 1)
	if ours.Oracle < 0.95 || ours.P99 > turns.P99 {
		t.Errorf("cached %.2f of what is possible, p99 %.0f ms against %.0f by turns", ours.Oracle, ours.P99, turns.P99)
	}
}

// TestCacheAgainstNaive compares with a list in the order of use.
func TestCacheAgainstNaive(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	c := newCache(50)
	var order []uint64
	for range 3000 {
		keys := make([]uint64, 1+r.IntN(8))
		base := uint64(r.IntN(30)) * 100
		for i := range keys {
			keys[i] = base + uint64(i)
		}
		n := 0
		for n < len(keys) && contains(order, keys[n]) {
			n++
		}
		if got := c.match(keys); got != n {
			t.Fatalf("match() = %d, want %d", got, n)
		}
		c.visit(keys)
		for i := len(keys) - 1; i >= 0; i-- { // the end goes first
			order = append([]uint64{keys[i]}, without(order, keys[i])...)
		}
		order = order[:min(len(order), 50)]
	}
	blocks := []uint64{1, 2, 3}
	if !c.hold(blocks) || c.hold(many(100)) {
		t.Error("no room for three, or for a hundred")
	}
	c.visit(many(47))
	if c.match(blocks) != 3 {
		t.Error("blocks in use were evicted")
	}
}

func many(n int) (keys []uint64) {
	for i := range n {
		keys = append(keys, uint64(1e6+i))
	}
	return keys
}

func contains(s []uint64, k uint64) bool {
	for _, x := range s {
		if x == k {
			return true
		}
	}
	return false
}

func without(s []uint64, k uint64) (out []uint64) {
	for _, x := range s {
		if x != k {
			out = append(out, x)
		}
	}
	return out
}

func TestBadTraces(t *testing.T) {
	tests := []struct{ text, want string }{
		{"", "made: no requests"},
		{"{", "made:1: unexpected end of JSON input"},
		{`{"input_length":-1}`, "made:1: input_length, output_length, timestamp: must be 0 to 16777216; the last to 1e+15"},
		{`{"input_length":16,"timestamp":1e300}`, "made:1: input_length, output_length, timestamp: must be 0 to 16777216; the last to 1e+15"},
		{`{"input_length":16,"hash_ids":[1,2,3]}`, "made:1: hash_ids: 3 blocks of 16 tokens for a prompt of 16"},
	}
	for _, tt := range tests {
		if _, err := Read("made", 16, strings.NewReader(tt.text)); err == nil || err.Error() != tt.want {
			t.Errorf("Read(%q): %v; want %s", tt.text, err, tt.want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(talk(2, 2))
	f.Add(`{"timestamp":1,"session_id":"a","input_length":9,"output_length":0,"hash_ids":[0]}`)
	f.Fuzz(func(t *testing.T, text string) {
		tr, err := Read("made", 16, strings.NewReader(text))
		if err != nil {
			return
		}
		for i, r := range tr.Requests {
			if r.Parent >= i {
				t.Errorf("request %d comes after %d", i, r.Parent)
			}
		}
	})
}

func TestVerdictComparesWithTheBest(t *testing.T) {
	got := verdict([]Row{{Policy: "a", P99: 10, Cached: 0.5}, {Policy: "b", P99: 20, Cached: 0.9}, {Policy: Ours, P99: 8, Cached: 0.8, Bound: 6}})
	if want := "ours: p99 0.80 × that of a (none could be below 0.60 ×); cached -10.0 points against b"; got != want {
		t.Errorf("verdict() = %q, want %q", got, want)
	}
}
