package token

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// identified is a line of testdata/ids.jsonl.
type identified struct {
	Name   string
	Body   json.RawMessage
	Tokens []uint32 // what a real vLLM made of it
}

func identifiedSamples(t testing.TB) (all []identified) {
	t.Helper()
	text, err := os.ReadFile("testdata/ids.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		var s identified
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	if len(all) < 100 {
		t.Fatalf("%d samples", len(all))
	}
	return all
}

// idsOf returns the tokens of a sample's body, and their count.
func idsOf(t testing.TB, m *Model, raw []byte) (ids []uint32, n int, exact bool) {
	t.Helper()
	var body struct{ Prompt *string }
	if err := json.Unmarshal(raw, &body); err != nil {
		t.Fatal(err)
	}
	if body.Prompt != nil {
		return m.AppendPrompt(nil, []byte(*body.Prompt)), m.CountPrompt([]byte(*body.Prompt)), true
	}
	c := chatOf(t, raw)
	ids, exact = m.AppendChat(nil, c)
	n, _ = m.CountChat(c)
	return ids, n, exact
}

// TestIDsEqualVLLMs takes every sample twice: the second time its tokens are
// remembered.
func TestIDsEqualVLLMs(t *testing.T) {
	m, err := Load(asHF(t, t.TempDir(), false))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, s := range identifiedSamples(t) {
			got, n, exact := idsOf(t, m, s.Body)
			if exact && (!slices.Equal(got, s.Tokens) || n != len(got)) {
				t.Errorf("%s: tokens %v, %d by count; want %v", s.Name, got, n, s.Tokens)
			}
		}
	}
}

// TestIDsAreAsManyAsCounts goes through what llama.cpp's server counted, with its own
// kind of file.
func TestIDsAreAsManyAsCounts(t *testing.T) {
	m := smol(t)
	chats := 0
	for _, s := range samples(t) {
		if s.Path != "/v1/chat/completions" {
			continue
		}
		c := chatOf(t, s.Body)
		ids, exact := m.AppendChat([]uint32{7}, c)
		if n, certain := m.CountChat(c); exact != certain || exact && len(ids) != n+1 {
			t.Errorf("%s: %d ids, exact %v; count %d, %v", s.Name, len(ids)-1, exact, n, certain)
		}
		chats++
	}
	if chats == 0 {
		t.Error("no chats among the samples")
	}
}

// TestIDsWithTokensAroundThem has a model that begins and ends each prompt with one.
func TestIDsWithTokensAroundThem(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "tokenizer.json", smallHF(func(f map[string]any) {
		f["post_processor"] = map[string]any{
			"type": "TemplateProcessing",
			"single": []any{
				map[string]any{"SpecialToken": map[string]any{"id": "<s>"}}, map[string]any{"Sequence": map[string]any{}},
				map[string]any{"SpecialToken": map[string]any{"id": "</s>"}},
			},
			"special_tokens": map[string]any{
				"<s>": map[string]any{"ids": []int{901}}, "</s>": map[string]any{"ids": []int{902}},
			},
		}
	}))
	m, err := Load(folder + "/tokenizer.json")
	if err != nil {
		t.Fatal(err)
	}
	ids := m.AppendPrompt(nil, []byte("x"))
	if len(ids) != m.CountPrompt([]byte("x")) || ids[0] != 901 || ids[len(ids)-1] != 902 {
		t.Errorf("ids %v", ids)
	}
}

// TestIDsWithSeveralTokensAroundThem has a model that begins each prompt with two, as
// ChatGLM's do, and ends it with two and one of two ids.
func TestIDsWithSeveralTokensAroundThem(t *testing.T) {
	special := func(id string) any { return map[string]any{"SpecialToken": map[string]any{"id": id}} }
	ids := func(ids ...int) any { return map[string]any{"ids": ids} }
	folder := t.TempDir()
	write(t, folder, "tokenizer.json", smallHF(func(f map[string]any) {
		f["post_processor"] = map[string]any{
			"type":           "TemplateProcessing",
			"single":         []any{special("[gMASK]"), special("<sop>"), map[string]any{"Sequence": map[string]any{}}, special("</s>"), special("<x>")},
			"special_tokens": map[string]any{"[gMASK]": ids(901), "<sop>": ids(902), "</s>": ids(903), "<x>": ids(904, 905)},
		}
	}))
	m, err := Load(folder + "/tokenizer.json")
	if err != nil {
		t.Fatal(err)
	}
	got := m.AppendPrompt(nil, []byte("x"))
	if diff := cmp.Diff([]uint32{901, 902, 'x', 903, 904, 905}, got); diff != "" {
		t.Errorf("ids (-want +got):\n%s", diff)
	}
	if n := m.CountPrompt([]byte("x")); n != len(got) {
		t.Errorf("%d tokens are counted, there are %d ids", n, len(got))
	}
}

// TestIDMemoIsBounded remembers more than fits.
func TestIDMemoIsBounded(t *testing.T) {
	var d idMemo
	ids := make([]uint32, mostIDs/16)
	for i := range 40 {
		d.put(&d.slots[i], &idText{hash: uint64(i), ids: ids})
		if n := d.sum.Load(); n > mostIDs {
			t.Fatalf("%d ids after %d texts", n, i+1)
		}
	}
	if d.slots[39].Load() == nil {
		t.Error("the last text is not remembered")
	}
	d.put(&d.slots[50], &idText{ids: make([]uint32, mostIDs)})
	if d.slots[50].Load() != nil {
		t.Error("took one that leaves no room for others")
	}
}

// BenchmarkIDs is what the tokens of a conversation cost: cold, and with another
// turn at its end each time.
func BenchmarkIDs(b *testing.B) {
	m := smol(b)
	for _, size := range []int{2 << 10, 64 << 10} {
		c := talk(b, size)
		b.Run(fmt.Sprintf("cold/%d", size), func(b *testing.B) {
			var ids []uint32
			for b.Loop() {
				clear(m.ids.slots[:])
				m.ids.sum.Store(0)
				ids, _ = m.AppendChat(ids[:0], c)
			}
		})
		b.Run(fmt.Sprintf("turn/%d", size), func(b *testing.B) {
			var ids []uint32
			last := c.Messages[len(c.Messages)-1]
			for i := 0; b.Loop(); i++ {
				c.Messages[len(c.Messages)-1].Content = fmt.Appendf(nil, "%d %s", i, "And what follows from that, in a few words, please?")
				ids, _ = m.AppendChat(ids[:0], c)
			}
			c.Messages[len(c.Messages)-1] = last
		})
	}
}
