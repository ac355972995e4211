package house

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// products are the inference engines that engine runs or asks.
var products = regexp.MustCompile(`(?i)llama[._-]?cpp|llama-server|ggml|vllm`)

// productsIn are the packages that may name them: each its own, the contract, and main
// in the one file that lists them.
var (
	productsIn   = []string{"engine/internal/llamacpp", "engine/internal/vllm", "engine/internal/openai", "engine/enginepb"}
	productsList = "engine/kinds.go"
)

// series is how metrics are named that dashboards know from one of the products.
var series = regexp.MustCompile(`"vllm:[a-z0-9_]+"`)

// TestBackendsAreBehindTheDoor: what lies before engine/internal/backend names no
// product. Tests may: they put one behind.
func TestBackendsAreBehindTheDoor(t *testing.T) {
	for _, s := range sources(t) {
		if !strings.HasPrefix(s.name, "engine/") || s.test() || s.name == productsList || slices.Contains(productsIn, s.dir()) {
			continue
		}
		text := series.ReplaceAllString(read(t, s.name), "")
		if name := products.FindString(text); name != "" {
			t.Errorf("%s: names %s; say it in the words of engine/internal/backend, or in its own package", s.name, name)
		}
	}
}
