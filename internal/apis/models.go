package apis

// Model is an entry of the API's list of models.
type Model struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"` // Unix seconds; 0: nobody knows
	OwnedBy string `json:"owned_by"`
}

// NewModel returns the entry of a model, created at a time in Unix seconds; 0: nobody knows
// when.
func NewModel(id string, created int64) Model {
	return Model{ID: id, Object: "model", Created: created, OwnedBy: "millrace"}
}

// Models is the API's list of models.
type Models struct {
	Data   []Model `json:"data"`
	Object string  `json:"object"`
}

// NewModels returns the list of some models. An empty one is said as [], not as null.
func NewModels(all ...Model) Models { return Models{Object: "list", Data: append([]Model{}, all...)} }
