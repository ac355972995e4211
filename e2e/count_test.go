package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// countPrompts is how many prompts are counted, and countClients by how many
// clients at once.
const (
	countPrompts = 120
	countClients = 4
)

// TestPromptTokensOfExtprocEqualTheEngines compares extproc's count (in Envoy's
// access log) with the engine's usage on 120 prompts of all sorts.
func TestPromptTokensOfExtprocEqualTheEngines(t *testing.T) {
	m := shared(t)
	log := m.AccessLog()
	reqs := prompts(countPrompts)
	engine := make([]int, len(reqs)) // prompt tokens by prompt
	rig.Each(len(reqs), countClients, func(i int) { engine[i] = m.promptTokens(t, i, reqs[i]) })
	extproc := loggedTokens(t, log, len(reqs))
	wrong, sum := 0, 0
	for i, want := range engine {
		sum += want
		if got := extproc[countSession(i)]; got != want {
			wrong++
			t.Errorf("prompt %d: extproc counts %d, the engine %d: %.400v", i, got, want, reqs[i]["messages"])
		}
	}
	t.Logf("%d of %d prompts counted exactly, %d tokens in all", len(reqs)-wrong, len(reqs), sum)
}

func countSession(i int) string { return fmt.Sprintf("count-%03d", i) }

// promptTokens sends one prompt and returns the engine's count of it.
func (m *mesh) promptTokens(t *testing.T, i int, req map[string]any) int {
	c, _, err := rig.Complete(t.Context(), m.URL(t, chatPath), req, "x-session-id", countSession(i))
	if err != nil {
		t.Errorf("prompt %d: %v", i, err)
		return -1
	}
	return c.Usage.Prompt
}

// loggedTokens waits for n lines and returns extproc's counts by session.
func loggedTokens(t *testing.T, log *rig.AccessLog, n int) map[string]int {
	t.Helper()
	counts := map[string]int{}
	rig.Wait(t, rig.BackLimit, "access log", func() error {
		lines, err := log.Lines()
		if err != nil {
			return err
		}
		for _, l := range lines {
			if strings.HasPrefix(l.Session, "count-") {
				counts[l.Session] = number(l.PromptTokens)
			}
		}
		if len(counts) < n {
			return fmt.Errorf("%d sessions, want %d: %w", len(counts), n, errors.ErrUnsupported)
		}
		return nil
	})
	return counts
}

// number reads a JSON number or a string that holds one; -1 if it is neither.
func number(v any) int {
	n := -1
	switch v := v.(type) {
	case float64:
		n = int(v)
	case string:
		if _, err := fmt.Sscan(v, &n); err != nil {
			return -1
		}
	}
	return n
}

// prompts returns n chat requests of all sorts; the same ones every time.
func prompts(n int) []map[string]any {
	r := rand.New(rand.NewPCG(1, 2))
	kinds := []func(*rand.Rand) []any{
		words, scripts, emoji, code, empty, numbers, spaces, special, turns, tools, parts, long,
	}
	var all []map[string]any
	for i := range n {
		all = append(all, map[string]any{
			"model": model, "max_tokens": 1, "temperature": 0,
			"messages": kinds[i%len(kinds)](r),
		})
	}
	return all
}

func say(role, content string) map[string]any {
	return map[string]any{"role": role, "content": content}
}

func user(content string) []any { return []any{say("user", content)} }

// some joins n random picks of list.
func some(r *rand.Rand, n int, sep string, list ...string) string {
	var picks []string
	for range n {
		picks = append(picks, list[r.IntN(len(list))])
	}
	return strings.Join(picks, sep)
}

func words(r *rand.Rand) []any {
	return user(some(r, 1+r.IntN(12), " ", "The", "quick", "don't", "we'll", "internationalisation", "fox,", "(jumps)", "over", "I'm", "it's", "THEY'RE", "x", "42nd", "e-mail", "naïve"))
}

func scripts(r *rand.Rand) []any {
	return user(some(r, 1+r.IntN(6), " ", "Straße", "здравствуйте", "漢字かな", "안녕하세요", "שלום", "مرحبا", "नमस्ते", "ไทย", "Ελληνικά", "ấy", "e\u0301", "\u200bzero", "ﬁ", "Ⅷ", "½", "²", "٣٤", "\u2028"))
}

func emoji(r *rand.Rand) []any {
	return user(some(r, 1+r.IntN(5), "", "🙂", "👩‍👩‍👧‍👦", "🇫🇷", "👍🏽", "☃️", "🏳️‍🌈", " ", "❤", "1️⃣", "𝒳", "🀄"))
}

func code(r *rand.Rand) []any {
	return user(some(r, 1+r.IntN(4), "\n", "func main() {\n\tfmt.Println(\"hi\")\n}", "if (a[i]==0x1F && !b) { return; }", "SELECT * FROM t WHERE id>=10;", "def f(x):\n    return x**2  # square", "<div class='a'>&nbsp;</div>", "a\r\nb\r\n", "{\"k\":[1,2.5e-3,null]}", "//////////", "s/\\w+/\\\\n/g"))
}

func empty(r *rand.Rand) []any {
	return [][]any{user(""), {say("system", ""), say("user", "")}, {say("system", "")}, user("\x00")}[r.IntN(4)]
}

func numbers(r *rand.Rand) []any {
	return user(some(r, 1+r.IntN(5), " ", "1234567890", "3.14159", "1,000,000", "-7", "0x00ff", "2026-11-23T10:00:00Z", "１２３", "v1.2.3", "50%", "$99.99"))
}

func spaces(r *rand.Rand) []any {
	return user(some(r, 2+r.IntN(6), "", " ", "  ", "\n", "\n\n\n", "\t", "a", " b", "\u00a0", "\u3000", "   c   ", "\r", "."))
}

// special holds texts that look like the template's own marks.
func special(r *rand.Rand) []any {
	return user(some(r, 1+r.IntN(4), "", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>system\n", "<|", "|>", "<repo_name>", "text", "<file_sep>", "<|im_end|"))
}

func turns(r *rand.Rand) []any {
	all := []any{say("system", "You answer in one word.")}
	for i := range 1 + r.IntN(3) {
		all = append(all, say("user", fmt.Sprintf("Question %d?", i)), say("assistant", "Yes."))
	}
	return append(all, say("user", "And now?"))
}

// tools is a conversation in which a function was called.
func tools(r *rand.Rand) []any {
	call := map[string]any{"id": "call_1", "type": "function", "function": map[string]any{
		"name": "weather", "arguments": fmt.Sprintf(`{"city":"Paris","day":%d}`, r.IntN(31)),
	}}
	asked := map[string]any{"role": "assistant", "content": []any{"", nil, "Let me see."}[r.IntN(3)], "tool_calls": []any{call}}
	result := map[string]any{"role": "tool", "tool_call_id": "call_1", "content": fmt.Sprintf(`{"celsius":%d}`, r.IntN(40))}
	return []any{say("user", "How warm is it?"), asked, result}
}

// parts is a message whose content is a list of texts.
func parts(r *rand.Rand) []any {
	text := func(s string) any { return map[string]any{"type": "text", "text": s} }
	return []any{map[string]any{"role": "user", "content": []any{text("one "), text(some(r, 3, " ", "two", "drei", "四"))}}}
}

// long is long enough to matter and short enough for a CPU.
func long(r *rand.Rand) []any {
	return user(some(r, 60+r.IntN(40), " ", "the", "model", "serves", "requests", "for", "tokens", "and", "caches", "blocks", "1999", "naïveté", "函数"))
}
