package backend

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

	// Prefilled and Decoded are how many tokens the times were taken for: of several
	// choices, only those of the last one.
	Prefilled, Decoded uint64
}

// minTokens is how many tokens a speed must be measured on: with fewer it says
// more of overhead.
const minTokens = 8

// Speed returns the rates of one sequence, as far as it shows them.
func (u Usage) Speed() Speed {
	var s Speed
	if u.Prefill > 0 && u.Prefilled >= minTokens {
		s.Prefill = float64(u.Prefilled) / u.Prefill.Seconds()
	}
	if u.Decode > 0 && u.Decoded >= minTokens {
		s.Decode = float64(u.Decoded) / u.Decode.Seconds()
	}
	return s
}

// usage is OpenAI's account, of chat completions and of responses, or Anthropic's,
// whose input leaves out what was cached, or is from now on.
type usage struct {
	Prompt     uint64  `json:"prompt_tokens"`
	Completion uint64  `json:"completion_tokens"`
	Input      uint64  `json:"input_tokens"`
	Output     uint64  `json:"output_tokens"`
	CacheRead  uint64  `json:"cache_read_input_tokens"`
	CacheMade  uint64  `json:"cache_creation_input_tokens"`
	Details    details `json:"prompt_tokens_details"`
	InDetails  details `json:"input_tokens_details"`
}

func (u *usage) prompt() uint64 { return max(u.Prompt, u.Input+u.CacheRead+u.CacheMade) }

type details struct {
	Cached uint64 `json:"cached_tokens"`
}

// UsageTail is how much of the end of a stream ParseUsage wants to see, in bytes.
const UsageTail = 4 << 10

var usageKey = []byte(`"usage"`)

// ParseUsage reads the account at the end of an answer in the form of one of the
// APIs; it has no times. A quote inside generated text is escaped in JSON, so that
// text can't be taken for the key.
func ParseUsage(b []byte) (Usage, bool) {
	var u usage
	if !LastObject(b, usageKey, &u) {
		return Usage{}, false
	}
	return Usage{
		Prompt: u.prompt(), Completion: max(u.Completion, u.Output),
		Cached: max(u.Details.Cached, u.InDetails.Cached, u.CacheRead),
	}, true
}

// Time sets the times where the account has none: first is from the request to the
// first token, rest from there to the last one.
func (v *Usage) Time(first, rest time.Duration) {
	if v.Prefill > 0 || v.Decode > 0 || v.Completion == 0 {
		return
	}
	v.Prefill, v.Prefilled = max(0, first), v.Prompt-min(v.Prompt, v.Cached)
	v.Decode, v.Decoded = max(0, rest), v.Completion-1
}

// Begun fills in what only the beginning of a stream says: Anthropic's counts the
// prompt there, and at the end of the answer alone.
func (v *Usage) Begun(first []byte) {
	i := bytes.Index(first, usageKey)
	if v.Prompt > 0 || i < 0 {
		return
	}
	var u usage
	if object, ok := objectAfter(first[i+len(usageKey):]); ok && json.NewDecoder(bytes.NewReader(object)).Decode(&u) == nil {
		v.Prompt, v.Cached = u.prompt(), u.CacheRead
	}
}

// LastObject decodes the last object that is the value of a key, which is given with
// its quotes: a key with another value is passed over.
func LastObject(b, key []byte, into any) bool {
	for {
		i := bytes.LastIndex(b, key)
		if i < 0 {
			return false
		}
		if object, ok := objectAfter(b[i+len(key):]); ok {
			return json.NewDecoder(bytes.NewReader(object)).Decode(into) == nil
		}
		b = b[:i]
	}
}

// objectAfter returns what begins with the object behind a key.
func objectAfter(b []byte) ([]byte, bool) {
	b = bytes.TrimLeft(b, " ")
	if len(b) == 0 || b[0] != ':' {
		return nil, false
	}
	b = bytes.TrimLeft(b[1:], " ")
	return b, len(b) > 0 && b[0] == '{'
}
