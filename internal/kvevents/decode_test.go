package kvevents

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/tinylib/msgp/msgp"

	"millrace.dev/millrace/internal/blocks"
)

// payload reads what a real vLLM 0.32 has published.
func payload(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name + ".msgpack")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestDecodeVLLM reads payloads of a real vLLM.
func TestDecodeVLLM(t *testing.T) {
	tests := []struct {
		name                     string
		stored, removed, cleared int // events
		blocks                   int // stored
		adapter                  string
		salted                   bool
	}{
		{name: "stored", stored: 1, blocks: 6},
		{name: "adapter", stored: 1, blocks: 6, adapter: "poet"},
		{name: "salt", stored: 1, blocks: 6, salted: true},
		{name: "cleared", stored: 1, cleared: 1, blocks: 6},
		{name: "removed", stored: 1, removed: 27, blocks: 64},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b Batch
			if err := b.Decode(payload(t, tt.name)); err != nil {
				t.Fatal(err)
			}
			n := map[Kind]int{}
			for _, e := range b.Events {
				n[e.Kind]++
				if e.Kind == Stored {
					checkStored(t, &e, tt.blocks, tt.adapter, tt.salted)
				}
				if e.Kind == Removed && len(e.Hashes) != 1 {
					t.Errorf("%d hashes removed at once", len(e.Hashes))
				}
			}
			if n[Stored] != tt.stored || n[Removed] != tt.removed || n[Cleared] != tt.cleared || n[Other] != 0 {
				t.Errorf("events by kind %v, want %d stored, %d removed, %d cleared", n, tt.stored, tt.removed, tt.cleared)
			}
		})
	}
}

func checkStored(t *testing.T, e *Event, blocks int, adapter string, salted bool) {
	t.Helper()
	if len(e.Hashes) != blocks || e.Size != 32 || !e.Root || e.Adapter != adapter || len(e.Tokens) != 32*len(e.Hashes) {
		t.Errorf("%d blocks of %d for %q, first of all %v; want %d for %q", len(e.Hashes), e.Size, e.Adapter, e.Root, blocks, adapter)
	}
	for i, x := range e.Extra {
		if (x != 0) != (salted && i == 0) {
			t.Errorf("block %d depends on %x", i, x)
		}
	}
}

// packed writes values as MessagePack.
func packed(t testing.TB, v any) []byte {
	t.Helper()
	b, err := msgp.AppendIntf(nil, v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type (
	list = []any
	dict = map[string]any
)

func TestDecodeForms(t *testing.T) {
	long := append(make([]byte, 24), 0, 0, 0, 0, 0, 0, 1, 2)
	tests := []struct {
		name string
		in   any
		want []Event
	}{
		{
			"arrays, without what came later, and bytes as names",
			list{1.5, list{
				list{"BlockStored", list{long}, 7, list{1, 2}, 2, nil},
				list{"BlockRemoved", list{9}},
				list{"AllBlocksCleared"},
			}},
			[]Event{
				{Kind: Stored, Stored: blocks.Stored{Hashes: []uint64{258}, Parent: 7, Tokens: []uint32{1, 2}, Size: 2}},
				{Kind: Removed, Stored: blocks.Stored{Hashes: []uint64{9}}},
				{Kind: Cleared},
			},
		},
		{
			"the rank, and a hash below zero",
			list{1, list{dict{"type": "BlockRemoved", "block_hashes": list{int64(-1)}, "medium": "GPU"}}, 3},
			[]Event{{Kind: Removed, Stored: blocks.Stored{Rank: 3, Hashes: []uint64{1<<64 - 1}}}},
		},
		{
			"other caches, other events, fields to come",
			list{1, list{
				dict{"type": "BlockRemoved", "block_hashes": list{1}, "medium": "CPU"},
				dict{"type": "BlockRemoved", "block_hashes": list{1}, "group_idx": 1},
				dict{"type": "BlockRemoved", "block_hashes": list{1}, "locality": "REMOTE"},
				dict{"type": "Later", "what": list{dict{"a": 1}}},
				list{"Later", 1, 2},
				dict{"block_hashes": "other", "token_ids": dict{"a": 1}, "type": "Later", "group_idx": -1},
				list{"Later", "block_hashes"},
				list{"BlockRemoved", list{1}, "GPU", 0, "REMOTE", "disk"},
			}, nil, "more"},
			[]Event{
				{Stored: blocks.Stored{Hashes: []uint64{1}}}, {Kind: Removed, Group: 1, Stored: blocks.Stored{Hashes: []uint64{1}}},
				{Stored: blocks.Stored{Hashes: []uint64{1}}}, {}, {}, {}, {}, {Stored: blocks.Stored{Hashes: []uint64{1}}},
			},
		},
		{
			"an adapter without a name",
			list{1, list{dict{"type": "BlockStored", "block_hashes": list{5}, "parent_block_hash": nil, "token_ids": list{1}, "block_size": 1, "lora_id": 4}}},
			[]Event{{Kind: Stored, Stored: blocks.Stored{Hashes: []uint64{5}, Root: true, Tokens: []uint32{1}, Size: 1, Adapter: "#4"}}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b Batch
			if err := b.Decode(packed(t, tt.in)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, b.Events, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	tests := []struct {
		name, want string
		in         any
	}{
		{"no batch", "not a batch", "text"},
		{"too short", "not a batch", list{1}},
		{"no events", "events", list{1, 2}},
		{"an event of neither form", "event 0", list{1, list{5}}},
		{"an empty event", "not a batch", list{1, list{list{}}}},
		{"a removal of what we can't read", "block_hashes", list{1, list{dict{"type": "BlockRemoved", "block_hashes": list{"x"}}}}},
		{"a rank that is none", "rank", list{1, list{}, "r"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b Batch
			if err := b.Decode(packed(t, tt.in)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
	var b Batch
	if err := b.Decode(append(payload(t, "stored"), 0xc0)); err == nil {
		t.Error("took a batch with something behind it")
	}
}

// TestDecodePassesOver has events of which nobody knows where they belong: those beside them
// count.
func TestDecodePassesOver(t *testing.T) {
	stored := func(change dict) dict {
		e := dict{"type": "BlockStored", "block_hashes": list{5}, "token_ids": list{1, 2}, "block_size": 2}
		for k, v := range change {
			e[k] = v
		}
		return e
	}
	mamba := dict{"block_hashes": list{5}, "token_ids": list{1, 2, 3, 4}, "block_size": 2, "group_idx": 0, "kv_cache_spec_kind": "mamba"}
	tests := []struct {
		name  string
		event any
		want  string // why; empty: it counts
	}{
		{"a group of states", stored(mamba), `kind "mamba"`},
		{"the same without its kind", stored(dict{"token_ids": list{1, 2, 3, 4}, "group_idx": 0}), "1 blocks of 2 tokens, and 4 tokens"},
		{"a window", stored(dict{"group_idx": 1, "kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 128}), `kind "sliding_window"`},
		{"a window of latent attention", stored(dict{"kv_cache_spec_kind": "sliding_window_mla"}), `kind "sliding_window_mla"`},
		{"chunks", stored(dict{"kv_cache_spec_kind": "chunked_local_attention"}), `kind "chunked_local_attention"`},
		{"what an encoder attends to", stored(dict{"kv_cache_spec_kind": "cross_attention"}), `kind "cross_attention"`},
		{"a kind to come", stored(dict{"kv_cache_spec_kind": "rwkv9"}), `kind "rwkv9"`},
		{"a later group of a release that does not say kinds", stored(dict{"group_idx": 2}), "another group than the first"},
		{"full attention", stored(dict{"group_idx": 3, "kv_cache_spec_kind": "full_attention"}), ""},
		{"latent attention", stored(dict{"group_idx": 1, "kv_cache_spec_kind": "mla_attention"}), ""},
		{"with sinks", stored(dict{"kv_cache_spec_kind": "sink_full_attention", "kv_cache_spec_sliding_window": nil, "ownership": "x", "session_id": "y"}), ""},
		{"a kind in an array", list{"BlockStored", list{5}, nil, list{1, 2}, 2, nil, "GPU", nil, nil, 0, "mamba"}, `kind "mamba"`},
		{"full attention in an array, fields to come", list{"BlockStored", list{5}, nil, list{1, 2}, 2, nil, "GPU", nil, nil, 3, "full_attention", nil, "LOCAL", nil, "s", 7, dict{}}, ""},
		{"fewer tokens than blocks take", stored(dict{"token_ids": list{1}}), "1 blocks of 2 tokens, and 1 tokens"},
		{"no size", stored(dict{"block_size": 0}), "1 blocks of 0 tokens"},
		{"a size below zero", stored(dict{"block_size": -2}), "block_size: -2"},
		{"a token that is none", stored(dict{"token_ids": list{1, "b"}}), "token_ids"},
		{"a token that is too large", stored(dict{"token_ids": list{1, uint64(1 << 40)}}), "token_ids"},
		{"a name that is none", stored(dict{"block_hashes": list{"x"}}), "block_hashes"},
		{"extra keys of fewer blocks", stored(dict{"extra_keys": list{}}), "extra_keys: not one"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b Batch
			if err := b.Decode(packed(t, list{1, list{stored(nil), tt.event, list{"BlockRemoved", list{7}}}})); err != nil {
				t.Fatal(err)
			}
			if len(b.Events) != 3 || b.Events[0].Kind != Stored || b.Events[2].Kind != Removed {
				t.Fatalf("events %+v", b.Events)
			}
			e := b.Events[1]
			if tt.want == "" && e.Kind != Stored || tt.want != "" && (e.Kind != Passed || !strings.Contains(e.Why.Error(), tt.want)) {
				t.Errorf("kind %d, %v; want %q", e.Kind, e.Why, tt.want)
			}
		})
	}
}

// FuzzDecode decodes what it gets twice, with memory that was used before: it must
// come to the same, and never take more memory than the bytes have reason for.
func FuzzDecode(f *testing.F) {
	for _, name := range []string{"stored", "adapter", "salt", "cleared", "removed"} {
		f.Add(payload(f, name))
	}
	f.Add(packed(f, list{1, list{list{"BlockStored", list{1}, nil, list{1}, 1, nil, "GPU", "a", list{list{"a", 1}}}}, 2}))
	f.Add([]byte{0x92, 1, 0xdd, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		var fresh, used Batch
		_ = used.Decode(payload(t, "removed"))
		err, again := fresh.Decode(in), used.Decode(in)
		if (err == nil) != (again == nil) {
			t.Fatalf("%v, then %v", err, again)
		}
		if len(fresh.tokens)+len(fresh.hashes)+len(fresh.Events) > 3*len(in)+8 {
			t.Errorf("%d tokens and %d hashes of %d bytes", len(fresh.tokens), len(fresh.hashes), len(in))
		}
		if err == nil {
			if diff := cmp.Diff(fresh.Events, used.Events, cmpopts.EquateEmpty(), sameWords); diff != "" {
				t.Errorf("events with used memory differ:\n%s", diff)
			}
		}
		b := blocks.NewNames(new(blocks.Set))
		for i := range fresh.Events {
			if e := &fresh.Events[i]; err == nil && e.Kind == Stored {
				b.Store(&e.Stored)
			}
		}
	})
}

// BenchmarkBatch is what a message costs that stores 64 blocks of 32 tokens and
// evicts 27.
func BenchmarkBatch(b *testing.B) {
	in := payload(b, "removed")
	var batch Batch
	names := blocks.NewNames(new(blocks.Set))
	b.ReportAllocs()
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		if err := batch.Decode(in); err != nil {
			b.Fatal(err)
		}
		for i := range batch.Events {
			if e := &batch.Events[i]; e.Kind == Stored {
				names.Store(&e.Stored)
			}
		}
	}
}

// sameWords compares errors by what they say.
var sameWords = cmp.Comparer(func(a, b error) bool { return fmt.Sprint(a) == fmt.Sprint(b) })
