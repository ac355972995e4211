package probe

import (
	"encoding/json"
	"slices"
	"time"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/secret"
	"millrace.dev/millrace/internal/trust"
)

// contextAgain is how often an engine is asked how long its context is: one that has begun
// anew may have another, and not all show that they have.
const contextAgain = time.Minute

// What a context may be, in tokens.
const leastContext, mostContext = 128, 1 << 24

// contextPage is where an endpoint says how long the context of one sequence is: vLLM and
// SGLang in their lists of models, llama-server with its properties. Empty: nowhere that we
// know.
func contextPage(e *config.Endpoint) secret.URL {
	switch e.Type {
	case "llamacpp":
		return e.URL("/props")
	case config.TypeVLLM, config.TypeOpenAI, "sglang":
		return e.URL("/v1/models")
	}
	return ""
}

// contextOf reads such a page: the context of an endpoint that serves models, in tokens. Of
// several it is the shortest. 0: it does not say, or nothing that can be.
func contextOf(page []byte, models []string) int {
	var p struct {
		Data []struct {
			ID  string      `json:"id"`
			Max json.Number `json:"max_model_len"`
		} `json:"data"`
		Settings struct {
			Context json.Number `json:"n_ctx"`
		} `json:"default_generation_settings"`
	}
	if json.Unmarshal(page, &p) != nil {
		return 0
	}
	if n := tokensOf(p.Settings.Context); n > 0 {
		return n
	}
	context := 0
	for _, m := range p.Data {
		if n := tokensOf(m.Max); n > 0 && slices.Contains(models, m.ID) && (context == 0 || n < context) {
			context = n
		}
	}
	return context
}

func tokensOf(text json.Number) int {
	n, err := trust.Number(text.String(), leastContext, mostContext)
	if err != nil || n != float64(int(n)) {
		return 0
	}
	return int(n)
}
