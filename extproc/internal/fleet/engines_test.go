package fleet

import (
	"fmt"
	"slices"
	"testing"

	"millrace.dev/millrace/extproc/internal/openai"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/xds/fleetpb"
)

// tailoring is a counter that keeps which engines it is for.
type tailoring struct{ engines []pick.Engine }

func (tailoring) Count(*openai.Request) (int, string)    { return 1, pick.Certain }
func (tailoring) For(engines []pick.Engine) pick.Counter { return tailoring{engines} }

// TestEnginesOfAModel has a model's tokenizer be one for its engines, and other prefixes for
// other arguments of its template.
func TestEnginesOfAModel(t *testing.T) {
	endpoint := func(e pick.Engine) *pick.Endpoint { return &pick.Endpoint{Address: "10.0.0.1:1", Engine: e} }
	model := func(endpoints ...*pick.Endpoint) *pick.Model {
		return &pick.Model{Name: "m", Seed: 7, Endpoints: endpoints, Learned: new(pick.Learned)}
	}
	none := &fleetpb.ModelState{Name: "m"}
	m := model(endpoint(pick.Engine{Kind: "vllm", Version: "0.32.0"}), endpoint(pick.Engine{Kind: "vllm", Version: "0.32.0"}))
	if !setEngines(m, none) || setEngines(m, none) {
		t.Error("the same engines are news twice, or never")
	}
	if c := tailored(tailoring{}, m.Engines()).(tailoring); len(c.engines) != 1 || c.engines[0].Kind != "vllm" {
		t.Errorf("the tokenizer is for %v", c.engines)
	}
	if m.Seed != 7 {
		t.Error("a version alone makes other prefixes")
	}
	m.Endpoints = append(m.Endpoints, endpoint(pick.Engine{Kind: "sglang"}))
	if !setEngines(m, none) || len(m.Engines()) != 2 {
		t.Errorf("engines %v", m.Engines())
	}

	seeds := map[any]string{}
	for name, m := range map[string]*pick.Model{
		"none": model(endpoint(pick.Engine{})), "the endpoint's": model(endpoint(pick.Engine{Args: [2]string{"", `{"a":1}`}})),
		"others": model(endpoint(pick.Engine{Args: [2]string{"", `{"a":2}`}})),
	} {
		setEngines(m, none)
		if other, ok := seeds[m.Seed]; ok {
			t.Errorf("%s and %s have the same prefixes", name, other)
		}
		seeds[m.Seed] = name
	}
	with := func(kind, version, args string) *pick.Endpoint {
		return endpoint(pick.Engine{Kind: kind, Version: version, Args: [2]string{"", args}})
	}
	for name, endpoints := range map[string][]*pick.Endpoint{
		"the endpoint's":        {with("vllm", "1", `{"a":1}`), with("vllm", "2", `{"a":1}`), endpoint(pick.Engine{Kind: "tgi"})},
		"a third's between two": {with("llamacpp", "", `{"a":1}`), with("sglang", "", `{"a":3}`), with("vllm", "", `{"a":1}`)},
		"two of each":           {with("a", "", `{"a":2}`), with("b", "", `{"a":3}`), with("c", "", `{"a":2}`), with("d", "", `{"a":3}`)},
	} {
		m := model(endpoints...)
		setEngines(m, none)
		if other, ok := seeds[m.Seed]; ok && other != name {
			t.Errorf("%s and %s have the same prefixes", name, other)
		} else if !ok && name == "the endpoint's" {
			t.Error("other versions with the same arguments make other prefixes")
		}
		seeds[m.Seed] = name
	}

	of := model(endpoint(pick.Engine{}))
	setEngines(of, &fleetpb.ModelState{Name: "m", TemplateArgs: `{"a":1}`})
	if seeds[of.Seed] != "the endpoint's" {
		t.Error("the same arguments of the model and of its one endpoint make different prefixes")
	}

	ours := model(&pick.Endpoint{Address: "10.0.0.1:1", Replica: "m-0"})
	setEngines(ours, &fleetpb.ModelState{Name: "m", Engine: "vllm"})
	if e := ours.Engines(); len(e) != 1 || e[0].Kind != "vllm" {
		t.Errorf("our own replica's engine: %v", e)
	}
}

// TestManyEnginesOfAModel has those beyond what is distinguished be one that nobody knows.
func TestManyEnginesOfAModel(t *testing.T) {
	m := &pick.Model{Name: "m", Learned: new(pick.Learned)}
	for i := range 3 * mostEngines {
		m.Endpoints = append(m.Endpoints, &pick.Endpoint{Engine: pick.Engine{Kind: "vllm", Version: fmt.Sprint("0.30.", i)}})
	}
	setEngines(m, &fleetpb.ModelState{Name: "m"})
	if e := m.Engines(); len(e) != mostEngines+1 || !slices.Contains(e, pick.Engine{}) {
		t.Errorf("%d engines: %v", len(e), e)
	}
}

// TestAsManyEnginesAsAreKnown has a further endpoint of one of them be nothing new.
func TestAsManyEnginesAsAreKnown(t *testing.T) {
	m := &pick.Model{Name: "m", Learned: new(pick.Learned)}
	for i := range mostEngines + 1 {
		m.Endpoints = append(m.Endpoints, &pick.Endpoint{Engine: pick.Engine{Kind: "vllm", Version: fmt.Sprint("0.30.", i%mostEngines)}})
	}
	setEngines(m, &fleetpb.ModelState{Name: "m"})
	if e := m.Engines(); len(e) != mostEngines || slices.Contains(e, pick.Engine{}) {
		t.Errorf("%d engines: %v", len(e), e)
	}
}
