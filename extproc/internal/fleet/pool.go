package fleet

import (
	"cmp"
	"maps"
	"slices"

	"millrace.dev/millrace/extproc/internal/flow"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/policy"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/stamp"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// mostModels bounds the models of one pool.
const mostModels = 4096

// pool is one pool with what lives on between its tables, or all pools together.
type pool struct {
	picker    Picker
	spec      *Pool             // nil: Kubernetes has shown nothing yet
	addresses []string          // of its endpoints, in order
	models    map[string]*model // by name
	table     *pick.Table       // as published; nil: none yet
}

// name is the pool's in tables and texts.
func (o *pool) name() string {
	if o.spec.Name == "" {
		return "pools"
	}
	return o.spec.Namespace + "/" + o.spec.Name
}

// unite returns all pools as one. What two say differently is as the first says.
func unite(pools []Pool) *Pool {
	all := &Pool{Exists: true, Objectives: map[string]int{}}
	for i := range pools {
		for name, priority := range pools[i].Objectives {
			if _, ok := all.Objectives[name]; !ok {
				all.Objectives[name] = priority
			}
		}
		all.Rewrites = append(all.Rewrites, pools[i].Rewrites...)
	}
	return all
}

// tabulate returns the pool's table. An endpoint that does not say what it serves serves
// whatever the pool does, and a model that no endpoint names is anybody's: the engines
// know.
func (o *pool) tabulate(views map[string]*pick.Endpoint, p *Pools) *pick.Table {
	t := &pick.Table{Policy: o.policy(p), Models: map[string]*pick.Model{}}
	served := o.served(p)
	for name := range served {
		t.Models[name] = o.model(name, p)
	}
	t.Any = o.model(o.name(), p)
	delete(t.Models, t.Any.Name)
	for _, address := range o.addresses {
		view := views[address]
		if view == nil {
			continue
		}
		add(t.Any, view)
		own := p.modelsLocked(address)
		for name, m := range t.Models {
			if own == nil || !served[name] || slices.Contains(own, name) {
				add(m, view)
			}
		}
	}
	t.Default = t.Any
	learnContext(t.Any)
	for name, m := range t.Models {
		learnContext(m)
		if len(t.Models) == 1 && served[name] {
			t.Default = m
		}
	}
	maps.DeleteFunc(o.models, func(name string, _ *model) bool { return t.Models[name] == nil && name != t.Any.Name })
	return t
}

func add(m *pick.Model, e *pick.Endpoint) {
	m.Endpoints = append(m.Endpoints, e)
	if e.Blocks != nil {
		m.WithBlocks = append(m.WithBlocks, e)
	}
}

// served returns the models of the pool: true for those that endpoints say they serve,
// false for those that only rewrites name.
func (o *pool) served(p *Pools) map[string]bool {
	all := map[string]bool{}
	for _, address := range o.addresses {
		for _, name := range p.modelsLocked(address) {
			if len(all) < mostModels {
				all[name] = true
			}
		}
	}
	if len(o.addresses) == 0 {
		return all
	}
	for _, w := range append(slices.Clip(o.spec.Rewrites), config.Rewrite{To: o.spec.Otherwise}) {
		for _, t := range w.To {
			if !all[t.Model] && len(all) < mostModels {
				all[t.Model] = false
			}
		}
	}
	return all
}

// model returns a model of the pool without endpoints.
func (o *pool) model(name string, p *Pools) *pick.Model {
	m := o.models[name]
	if m == nil {
		m = &model{resource: &fleetpb.ModelState{Name: name}, learned: new(pick.Learned)}
		o.models[name] = m
	}
	return &pick.Model{Name: name, Seed: session.Seed(name), Learned: m.learned, Awaited: true}
}

// policy returns the rules for the pool's requests: those of the file, and what the pool's
// own objects say.
func (o *pool) policy(p *Pools) *pick.Policy {
	rules := *p.state.policy
	rules.Picker, rules.Conformance, rules.Peers = true, p.options.Conformance, p.options.Peers
	rules.Objectives = make(map[string]string, len(o.spec.Objectives))
	for name, priority := range o.spec.Objectives {
		rules.Objectives[name] = class(priority)
	}
	if len(o.spec.Rewrites) > 0 {
		own := rewrites(policy.Rewrites(o.spec.Rewrites))
		for name, rewrite := range rules.Rewrites {
			own[name] = rewrite // who runs the picker has the last word
		}
		rules.Rewrites = own
	}
	if len(o.spec.Otherwise) > 0 {
		rules.Rewrite = rewrites(policy.Rewrites([]config.Rewrite{{To: o.spec.Otherwise}}))[""]
	}
	return &rules
}

// class is the priority of an objective's number.
func class(priority int) string {
	switch {
	case priority < 0:
		return wire.Sheddable
	case priority > 0:
		return wire.Critical
	default:
		return wire.Standard
	}
}

// settings are what the file of pools says.
type settings struct {
	models map[string]*fleetpb.ModelState // what it says of models, by name
	usual  *fleetpb.ModelState            // the same for models that it does not name; nil: nothing
	keys   [][]byte                       // of cookies, the present one first
}

// load reads the file, if there is one.
func (p *Pools) load() error {
	p.stamps = nil
	f := config.Default()
	f.Models = nil
	f.Policy.Spec.Flow.GatewayTimeout = config.Duration{Duration: flow.EveryGateway}
	if p.options.File != "" {
		p.stamps = stamp.Of(p.options.File)
		var err error
		if f, err = poolsFile(p.options.File); err != nil {
			return err
		}
	}
	cookie := &f.Policy.Spec.Sessions.Cookie
	if cookie.KeyFile == "" {
		cookie.Name = "" // a key of our own would not be that of other replicas
	} else {
		p.stamps = append(p.stamps, stamp.Of(cookie.KeyFile)...)
	}
	key, err := cookieKey(*cookie, p.settings.keys) // which this goroutine alone changes
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := settings{keys: policy.Rotate(p.settings.keys, key), models: map[string]*fleetpb.ModelState{}}
	for i := range f.Models {
		m := &fleetpb.ModelState{Tokenizer: f.Models[i].Spec.TokenizerFile(), TemplateArgs: f.Models[i].Spec.TemplateArgs}
		s.models[f.Models[i].Metadata.Name] = m
		if f.Models[i].Spec.Default {
			s.usual = m
		}
	}
	p.settings = s
	state := policy.State(f.Policy.Spec, s.keys, 1)
	state.HedgeOthersAfter = nil // a gateway that is not ours asks once, unless hedgeAfter says otherwise
	p.state.setPolicy(state)
	return nil
}

// CheckPools returns what is wrong with the file of pools at path.
func CheckPools(path string) error {
	f, err := poolsFile(path)
	if err == nil && f.Policy.Spec.Sessions.Cookie.KeyFile != "" {
		_, err = cookieKey(f.Policy.Spec.Sessions.Cookie, nil)
	}
	return err
}

// poolsFile reads the file of pools. What Models it does not have itself do not count.
func poolsFile(path string) (config.File, error) {
	text, err := regular.Read(path, config.MaxFile)
	if err != nil {
		return config.File{}, err
	}
	f, at, err := config.Read(path, text)
	if err != nil {
		return config.File{}, err
	}
	if len(f.Endpoints) > 0 {
		return config.File{}, config.Fault{File: path, Kind: config.KindEndpoints, Name: f.Endpoints[0].Metadata.Name, Text: "has no effect here: the Pods of pools are the endpoints"}
	}
	f.Models = slices.DeleteFunc(f.Models, func(m config.Model) bool { return !at.Sets(config.KindModel, m.Metadata.Name, "kind") })
	if !at.Sets(config.KindPolicy, f.Policy.Metadata.Name, "spec.flow.gatewayTimeout") {
		f.Policy.Spec.Flow.GatewayTimeout = config.Duration{Duration: flow.EveryGateway}
	}
	return f, nil
}

// tokenizersLocked returns which models want which tokenizer file.
func (p *Pools) tokenizersLocked() map[string][]reader {
	want := map[string][]reader{}
	for _, own := range p.pools {
		for name, m := range own.models {
			stated := p.settings.models[name]
			if stated == nil {
				stated = p.settings.usual
			}
			path := stated.GetTokenizer()
			if m.resource.GetTokenizer() != path {
				m.learned.SetCounter(nil)
			}
			m.resource = &fleetpb.ModelState{Name: name, Tokenizer: path, TemplateArgs: stated.GetTemplateArgs()}
			if path != "" {
				want[path] = append(want[path], reader{name, m.learned})
			}
		}
	}
	return want
}

func compare(a, b string) int { return cmp.Compare(a, b) }
