package llamacpp

import (
	"time"

	"millrace.dev/millrace/engine/internal/backend"
)

// timings is llama.cpp's own account, at the end of what it generated.
type timings struct {
	Cached      uint64  `json:"cache_n"`
	Prompt      uint64  `json:"prompt_n"` // without the cached ones
	PromptMS    float64 `json:"prompt_ms"`
	Predicted   uint64  `json:"predicted_n"`
	PredictedMS float64 `json:"predicted_ms"`
}

var timingsKey = []byte(`"timings"`)

// parseUsage reads the account at the end of an answer, that of the API and llama.cpp's
// own, which has times.
func parseUsage(b []byte) (backend.Usage, bool) {
	v, ok := backend.ParseUsage(b)
	var t timings
	if !backend.LastObject(b, timingsKey, &t) {
		return v, ok
	}
	if !ok {
		v = backend.Usage{Prompt: t.Cached + t.Prompt, Cached: t.Cached, Completion: t.Predicted}
	}
	v.Prefilled, v.Decoded = t.Prompt, t.Predicted
	v.Prefill, v.Decode = milliseconds(t.PromptMS), milliseconds(t.PredictedMS)
	return v, true
}

func milliseconds(ms float64) time.Duration {
	if !(ms > 0) || ms > 1e12 {
		return 0
	}
	return time.Duration(ms * float64(time.Millisecond))
}
