package e2e

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// TestEmbeddingsThatComeAtOnce go to the backend together where it can: each client gets the embedding
// of its own text, as if that were alone, and its own account. One that the backend refuses fails alone,
// and a list has what its texts have alone.
func TestEmbeddingsThatComeAtOnce(t *testing.T) {
	m := shared(t)
	const clients = 12
	text := func(i int) string { return fmt.Sprintf("Text %d: ", i) + strings.Repeat("more ", i/2) }
	embed := func(input any) (vectors [][]float64, prompt int, status int) {
		a, err := rig.Post(t.Context(), m.URL(t, rig.EmbeddingPath), map[string]any{"model": model, "input": input})
		var body struct {
			Data []struct {
				Index     int
				Embedding []float64
			}
			Usage struct {
				Prompt int `json:"prompt_tokens"`
				Total  int `json:"total_tokens"`
			}
		}
		if err != nil {
			t.Error(err)
			return nil, 0, 0
		}
		if a.Status != http.StatusOK {
			return nil, 0, a.Status
		}
		if err := json.Unmarshal(a.Body, &body); err != nil || len(body.Data) == 0 || body.Usage.Total != body.Usage.Prompt {
			t.Errorf("%v in %.200s", err, a.Body)
			return nil, 0, a.Status
		}
		for _, d := range body.Data {
			vectors = append(vectors, d.Embedding)
		}
		return vectors, body.Usage.Prompt, a.Status
	}
	vectors, prompts := make([][][]float64, clients), make([]int, clients)
	rig.Each(clients+1, clients+1, func(i int) {
		if i == clients {
			if _, _, status := embed([]int{1 << 30}); status != http.StatusBadRequest {
				t.Errorf("an id that no token has: status %d", status)
			}
			return
		}
		vectors[i], prompts[i], _ = embed(text(i))
	})
	for i := range clients {
		if want := m.tokens(t, text(i)); prompts[i] != want {
			t.Errorf("text %d: prompt_tokens %d, the backend counts %d", i, prompts[i], want)
		}
	}
	some := []int{0, 5, 11}
	list, _, _ := embed([]string{text(some[0]), text(some[1]), text(some[2])})
	for at, i := range some {
		alone, _, _ := embed(text(i))
		if len(alone) != 1 || len(vectors[i]) != 1 || len(list) != len(some) {
			t.Fatalf("text %d: %d embeddings alone, %d at once; %d of a list of %d", i, len(alone), len(vectors[i]), len(list), len(some))
		}
		if c := cosine(vectors[i][0], alone[0]); c < 0.999 {
			t.Errorf("text %d: at once with others its embedding has a cosine of %v with that alone", i, c)
		}
		if c := cosine(list[at], alone[0]); c < 0.999 {
			t.Errorf("text %d: in a list its embedding has a cosine of %v with that alone", i, c)
		}
	}
}

func cosine(a, b []float64) float64 {
	if len(a) != len(b) {
		return 0
	}
	var ab, aa, bb float64
	for i := range a {
		ab, aa, bb = ab+a[i]*b[i], aa+a[i]*a[i], bb+b[i]*b[i]
	}
	return ab / math.Sqrt(aa*bb)
}
