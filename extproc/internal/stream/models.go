package stream

import (
	"encoding/json"
	"maps"
	"slices"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/apis"
)

// modelsAsked answers a request for the models there are: an engine knows only its own,
// and may be down. nil: that is not what it asks, or engines know names that we don't.
func modelsAsked(t *pick.Table, head *RequestHead) ([]byte, *openai.Error) {
	if t == nil || t.Any != nil || head.Method != "GET" && head.Method != "HEAD" {
		return nil, nil
	}
	list, one := apis.Listed(head.Path)
	if !list {
		return nil, nil
	}
	var answer any
	switch names := namesIn(t); {
	case one == "":
		var all []apis.Model
		for _, id := range names {
			all = append(all, apis.NewModel(id, 0))
		}
		answer = apis.NewModels(all...)
	case slices.Contains(names, one):
		answer = apis.NewModel(one, 0)
	default:
		return nil, openai.ModelNotFound(one)
	}
	b, err := json.Marshal(answer)
	if err != nil { // strings always marshal
		panic(err)
	}
	return b, nil
}

// namesIn are the names that a client may ask for: of models, and of rewrites to them.
func namesIn(t *pick.Table) []string {
	names := slices.Collect(maps.Keys(t.Models))
	for name := range t.Policy.Rewrites {
		if t.Models[name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
