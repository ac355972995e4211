package llamacpp

import (
	"bytes"
	"encoding/json"
	"time"
)

// Usage is what the backend says that one request cost.
type Usage struct {
	// Prompt counts all prompt tokens, Cached those of them that were found in
	// the KV cache, Completion the generated ones.
	Prompt, Cached, Completion uint64
	// Prefill is the time for the prompt tokens that were not cached, Decode the
	// time for the generated ones; 0: not said.
	Prefill, Decode time.Duration

	// What the times were taken for: of several choices, only the last one.
	prefilled, decoded uint64
}

// minTokens is how many tokens a speed must be measured on: with fewer it says
// more of overhead.
const minTokens = 8

// Speed returns the rates of one sequence, as far as they can be told from it.
func (u Usage) Speed() Speed {
	var s Speed
	if u.Prefill > 0 && u.prefilled >= minTokens {
		s.Prefill = float64(u.prefilled) / u.Prefill.Seconds()
	}
	if u.Decode > 0 && u.decoded >= minTokens {
		s.Decode = float64(u.decoded) / u.Decode.Seconds()
	}
	return s
}

// timings is llama.cpp's own account, at the end of what it generated.
type timings struct {
	Cached      uint64  `json:"cache_n"`
	Prompt      uint64  `json:"prompt_n"` // without the cached ones
	PromptMS    float64 `json:"prompt_ms"`
	Predicted   uint64  `json:"predicted_n"`
	PredictedMS float64 `json:"predicted_ms"`
}

// usage is OpenAI's account, of chat completions and of responses, or Anthropic's,
// whose input leaves out what was cached.
type usage struct {
	Prompt     uint64  `json:"prompt_tokens"`
	Completion uint64  `json:"completion_tokens"`
	Input      uint64  `json:"input_tokens"`
	Output     uint64  `json:"output_tokens"`
	CacheRead  uint64  `json:"cache_read_input_tokens"`
	Details    details `json:"prompt_tokens_details"`
	InDetails  details `json:"input_tokens_details"`
}

type details struct {
	Cached uint64 `json:"cached_tokens"`
}

// UsageTail is how much of the end of a stream ParseUsage wants to see, in bytes.
const UsageTail = 4 << 10

var (
	timingsKey = []byte(`"timings":{`)
	usageKey   = []byte(`"usage":{`)
)

// ParseUsage reads the account at the end of an answer, unary or a stream's last
// bytes. A quote inside generated text is escaped in JSON, so that text can't be
// taken for one of the keys.
func ParseUsage(b []byte) (Usage, bool) {
	var v Usage
	var t timings
	timed := lastObject(b, timingsKey, &t)
	if timed {
		v = Usage{
			Prompt: t.Cached + t.Prompt, Cached: t.Cached, Completion: t.Predicted, prefilled: t.Prompt, decoded: t.Predicted,
			Prefill: milliseconds(t.PromptMS), Decode: milliseconds(t.PredictedMS),
		}
	}
	var u usage
	if !lastObject(b, usageKey, &u) {
		return v, timed
	}
	v.Prompt, v.Completion = max(u.Prompt, u.Input+u.CacheRead), max(u.Completion, u.Output)
	v.Cached = max(u.Details.Cached, u.InDetails.Cached, u.CacheRead)
	return v, true
}

// Begun fills in what only the beginning of a stream says: Anthropic's tells of the
// prompt there, and at the end of the answer alone.
func (v *Usage) Begun(first []byte) {
	i := bytes.Index(first, usageKey)
	if v.Prompt > 0 || i < 0 {
		return
	}
	var u usage
	if json.NewDecoder(bytes.NewReader(first[i+len(usageKey)-1:])).Decode(&u) == nil {
		v.Prompt, v.Cached = max(u.Prompt, u.Input+u.CacheRead), u.CacheRead
	}
}

// lastObject decodes the object behind the last occurrence of key, which ends
// with the object's brace.
func lastObject(b, key []byte, into any) bool {
	i := bytes.LastIndex(b, key)
	if i < 0 {
		return false
	}
	return json.NewDecoder(bytes.NewReader(b[i+len(key)-1:])).Decode(into) == nil
}

func milliseconds(ms float64) time.Duration {
	if !(ms > 0) || ms > 1e12 {
		return 0
	}
	return time.Duration(ms * float64(time.Millisecond))
}
