package pick

import (
	"math"

	"millrace.dev/millrace/extproc/internal/session"
)

// Rewrite says which models serve requests for another name.
type Rewrite struct {
	// Model is the name that clients use.
	Model string
	// To are the models that serve them, at least one.
	To []Target
}

// Target is a model with its share of the requests.
type Target struct {
	// Model is its id.
	Model string
	// Weight is its share beside the other weights, > 0.
	Weight float64
}

// Choose returns the model that serves the conversation of a key, or nil if the
// table has none of them. A model none of whose endpoints is ready is chosen only
// if that is so of all. When weights change, no more conversations move than must:
// each target draws a number from the key, and the smallest by its weight wins.
func (r *Rewrite) Choose(t *Table, key session.Key) *Model {
	var best *Model
	bestReady, least := false, math.Inf(1)
	for i := range r.To {
		m := t.Models[r.To[i].Model]
		if m == nil {
			continue
		}
		const fraction = 1 << 53
		u := (float64(session.Named(key, m.Name)>>11) + 0.5) / fraction
		draw, ready := -math.Log(u)/r.To[i].Weight, m.ready()
		if ready && !bestReady || ready == bestReady && draw < least {
			best, bestReady, least = m, ready, draw
		}
	}
	return best
}

// ready reports whether an endpoint of the model takes requests.
func (m *Model) ready() bool {
	for _, e := range m.Endpoints {
		if e.State == Ready {
			return true
		}
	}
	return false
}
