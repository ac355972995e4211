// Package fleet keeps what is known of endpoints, models and policy, and publishes
// it as a table for decisions.
//
// Client is the edge to xds: one delta ADS stream. Without xds Local replaces it: a file
// lists the endpoints, and a Prober observes their state. state is the rest, without I/O.
// Its one rule: the last report stays in force until the next one, however long its
// sender does not answer.
package fleet

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/endpoints"
	"millrace.dev/millrace/internal/policy"
	"millrace.dev/millrace/internal/reach"
	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// types in the order in which they are asked for: models and policy are small
// and endpoints refer to them. Decisions need all but the last, which an older xds
// does not have.
var types = []string{wire.PolicyType, wire.ModelType, wire.EndpointType, wire.CacheType}

// policyName is the one policy that there is.
const policyName = "default"

// prefixesPer is how many beginnings of prompts are remembered for each session.
const prefixesPer = 8

// leastHealth bounds how slow an endpoint is taken to be by its health.
const leastHealth = 0.05

// state is all that xds has said, and what lives on between tables.
type state struct {
	endpoints map[string]*endpoint // by address
	models    map[string]*model    // by id
	policy    *pick.Policy
	ours      bool // whether the engines are Millrace's own
	// versions of the resources held, by type and name: to resume with.
	versions map[string]map[string]string
	// answered is which types xds has answered at least once.
	answered map[string]bool
	reports  reports             // of engines, about their caches
	tailors  bool                // whether a model's engines have changed: its tokenizer is to be set anew
	stale    bool                // whether table has changed by reports about caches
	done     []work              // that was reported since Client has last passed it on
	accounts []*enginepb.Account // that were reported and Client has not given to anybody yet
	caches   uint32              // the last number given to an engine's cache
	keys     *reach.Keys
	clock    clock // of xds
	away     bool  // whether it does not answer
	resumes  bool  // whether a stream has begun, and xds has not yet answered for endpoints: pages are of before
	prefixes struct {
		most int
		idle time.Duration
	}
}

// endpoint is one replica with what lives on between tables.
type endpoint struct {
	resource *fleetpb.EndpointState
	live     *pick.Live
	kv       *prefix.Cache
	// blocks is what its engine publishes of its cache; nil: nothing.
	blocks *blocks.Set
	// log keeps blocks true to what xds hands down; nil: nothing of the kind has come.
	log *blocks.Reader
	// base is the first model that it serves, adapters which others are loaded; nil:
	// there are no others.
	base     string
	adapters *pick.Adapters
	// work is what its engine had done when it last reported; nil: it reports that with its
	// answers, or has not yet.
	work *scrape.Sample
	// asked is when its last page was asked for, by the clock of xds; paged is whether there was one
	// at all.
	asked time.Time
	paged bool
	// key is what requests must have there; nil: nothing.
	key *reach.Key
	// shown is the endpoint as the last table has it, basis what that was made of.
	shown *pick.Endpoint
	basis basis
}

// basis is what an endpoint in a table is made of.
type basis struct {
	resource *fleetpb.EndpointState
	kv       *prefix.Cache
	blocks   *blocks.Set
	base     string
	adapters *pick.Adapters
	key      *reach.Key
}

// model is one model with what lives on between tables.
type model struct {
	resource *fleetpb.ModelState
	learned  *pick.Learned
}

// newState returns what is known before anybody has said anything; ours is
// whether the engines are Millrace's own.
func newState(ours bool) *state {
	s := &state{
		ours:      ours,
		endpoints: map[string]*endpoint{},
		models:    map[string]*model{},
		versions:  map[string]map[string]string{},
		answered:  map[string]bool{},
		reports:   reports{},
		keys:      reach.NewKeys(slog.New(slog.DiscardHandler)),
	}
	for _, t := range types {
		s.versions[t] = map[string]string{}
	}
	s.setPolicy(&fleetpb.PolicyState{})
	return s
}

// message is what our resources have in common.
type message interface {
	proto.Message
	ValidateAll() error
}

// apply takes in one response. Resources that break the rules are left as they
// were, and the error names them; the others are taken.
func (s *state) apply(r *discovery.DeltaDiscoveryResponse, now time.Time) error {
	versions := s.versions[r.GetTypeUrl()]
	if versions == nil {
		return fmt.Errorf("type %q was not asked for", r.GetTypeUrl())
	}
	if r.GetTypeUrl() == wire.CacheType {
		return s.setCaches(r, versions, now)
	}
	var errs []error
	for _, res := range r.GetResources() {
		if err := s.set(r.GetTypeUrl(), res, now); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", res.GetName(), err))
			continue
		}
		versions[res.GetName()] = res.GetVersion()
	}
	for _, name := range r.GetRemovedResources() {
		s.remove(r.GetTypeUrl(), name)
		delete(versions, name)
	}
	s.answered[r.GetTypeUrl()] = true
	s.resumes = s.resumes && r.GetTypeUrl() != wire.EndpointType
	return errors.Join(errs...)
}

func (s *state) set(typ string, r *discovery.Resource, now time.Time) error {
	switch typ {
	case wire.EndpointType:
		m := new(fleetpb.EndpointState)
		if err := unpack(r, m, m.GetAddress); err != nil {
			return err
		}
		s.setEndpoint(m, now)
	case wire.ModelType:
		m := new(fleetpb.ModelState)
		if err := unpack(r, m, m.GetName); err != nil {
			return err
		}
		s.setModel(m)
	case wire.PolicyType:
		m := new(fleetpb.PolicyState)
		if err := unpack(r, m, func() string { return policyName }); err != nil {
			return err
		}
		s.setPolicy(m)
	}
	return nil
}

// unpack reads a resource and checks its rules, and that it has the name that
// its content says.
func unpack(r *discovery.Resource, m message, name func() string) error {
	if r.GetResource() == nil {
		return errors.New("no resource inside")
	}
	if err := r.GetResource().UnmarshalTo(m); err != nil {
		return err
	}
	if err := trust.Message(m); err != nil {
		return err
	}
	if name() != r.GetName() {
		return fmt.Errorf("the resource inside is of %q", name())
	}
	return nil
}

func (s *state) setEndpoint(m *fleetpb.EndpointState, now time.Time) {
	e := s.endpoints[m.GetAddress()]
	switch {
	case e == nil:
		e = &endpoint{live: new(pick.Live), kv: s.newCache(m)}
		s.endpoints[m.GetAddress()] = e
	case e.restarted(m):
		e.kv = s.newCache(m)
		e.live.Restarted()
		if e.log != nil {
			e.log.Forget()
		}
		if e.adapters != nil {
			e.adapters.Forget()
		}
	case e.resource.GetState() != m.GetState():
		e.live.Reinstate()
	}
	if m.GetEpoch() == 0 {
		m.Epoch = e.resource.GetEpoch() // who probes it has just begun to
	}
	s.accounts, m.Accounts = append(s.accounts, m.GetAccounts()...), nil // not kept: Client has them
	e.resource = m
	e.key = s.keyOf(m)
	s.setAdapters(e)
	s.setWork(e)
	s.applyCache(m.GetAddress(), now)
	e.kv.Resize(capacity(m))
	if l := m.GetLoad(); l != nil {
		e.live.ReportFromFleet(pick.Report{
			Requests: int64(l.GetRunning()) + int64(l.GetWaiting()),
			Waiting:  int64(l.GetWaiting()),
			KV:       share(l.GetKvUsedTokens(), l.GetKvTotalTokens()),
			Wake:     l.GetWake().AsDuration().Seconds() * 1000,
		}, now)
	}
	s.setPage(e, now)
}

// restarted reports whether m says that the endpoint's engine has begun anew, or is
// another one. The next answer of an engine whose work is less than before says so, too:
// that of an xds that was away meanwhile.
func (e *endpoint) restarted(m *fleetpb.EndpointState) bool {
	if m.GetEpoch() != 0 && e.resource.GetEpoch() != m.GetEpoch() || e.resource.GetModel() != m.GetModel() {
		e.work = nil
		return true
	}
	if w, ok := endpoints.Sample(m); ok && e.work != nil {
		if _, less := w.Since(e.work); less {
			e.work = nil
			return true
		}
	}
	return false
}

// keyOf returns what requests must have at an endpoint; nil: nothing.
func (s *state) keyOf(m *fleetpb.EndpointState) *reach.Key {
	k := m.GetKey()
	if k == nil {
		return nil
	}
	return s.keys.Of(config.APIKey{File: k.GetFile(), Env: k.GetEnv(), Header: k.GetHeader(), Requests: true})
}

// setAdapters takes in which LoRA adapters an engine shows.
func (s *state) setAdapters(e *endpoint) {
	a := e.resource.GetAdapters()
	if a == nil {
		e.adapters = nil
		return
	}
	if e.base != e.models()[0] || e.adapters == nil {
		e.base, e.adapters = e.models()[0], new(pick.Adapters)
	}
	if a.GetKnown() {
		e.adapters.Report(int(a.GetMost()), a.GetRunning(), a.GetWaiting())
	}
}

// models are all that the endpoint serves.
func (e *endpoint) models() []string {
	if all := e.resource.GetModels(); len(all) > 0 {
		return all
	}
	return []string{e.resource.GetModel()}
}

func share(used, total uint64) float64 {
	if total == 0 {
		return 0
	}
	return min(1, float64(used)/float64(total))
}

// newCache returns the empty cache of an engine that was started.
func (s *state) newCache(m *fleetpb.EndpointState) *prefix.Cache {
	s.caches++
	return prefix.NewCache(s.caches, capacity(m))
}

// capacity is how many tokens an endpoint's cache holds; 0: not known.
func capacity(m *fleetpb.EndpointState) int64 {
	return int64(min(m.GetLoad().GetKvTotalTokens(), 1<<40))
}

func (s *state) setModel(m *fleetpb.ModelState) {
	old := s.models[m.GetName()]
	if old == nil {
		old = &model{learned: new(pick.Learned)}
		s.models[m.GetName()] = old
	} else if old.resource.GetTokenizer() != m.GetTokenizer() {
		old.learned.SetCounter(nil)
	}
	old.resource = m
}

func (s *state) remove(typ, name string) {
	switch typ {
	case wire.EndpointType:
		if e := s.endpoints[name]; e != nil && e.log != nil {
			e.log.Forget()
		}
		delete(s.endpoints, name)
	case wire.ModelType:
		delete(s.models, name)
	case wire.PolicyType:
		if name == policyName {
			s.setPolicy(&fleetpb.PolicyState{})
		}
	}
}

// setPolicy takes a policy in; what it leaves unset is by default.
func (s *state) setPolicy(m *fleetpb.PolicyState) {
	m = policy.Complete(m)
	idle, most := m.GetSessionIdle().AsDuration(), int(m.GetMaxSessions())
	p := &pick.Policy{
		SessionHeader:  strings.ToLower(m.GetSessionHeader()),
		Cookies:        session.NewCookies(m.GetSessionCookie(), m.GetCookieKeys(), idle),
		Candidates:     int(m.GetCandidates()),
		Critical:       int(m.GetCandidatesCritical()),
		Sheddable:      int(m.GetCandidatesSheddable()),
		PriorityHeader: strings.ToLower(m.GetPriorityHeader()),
		Priority:       m.GetDefaultPriority(),
		Ours:           s.ours,
		MaxBody:        int64(min(m.GetMaxBodyBytes(), 1<<40)),
		MaxInFlight:    int64(min(m.GetMaxBytesInFlight(), 1<<40)),
		Rewrites:       rewrites(m.GetRewrites()),
		Flow:           flowRules(m.GetFlow()),
		HedgeAfter:     m.GetHedgeAfter().AsDuration(),
		HedgeOthers:    m.GetHedgeOthersAfter().AsDuration(),
		Explain:        m.GetExplain(),
	}
	switch {
	case s.policy == nil:
		p.Prefixes = prefix.New(prefixesPer*most, idle)
	case s.prefixes.most == most && s.prefixes.idle == idle:
		p.Prefixes = s.policy.Prefixes
	default:
		p.Prefixes = s.policy.Prefixes.Resized(prefixesPer*most, idle, time.Now())
	}
	s.prefixes.most, s.prefixes.idle = most, idle
	s.policy = p
}

// charges reports whether tenants have budgets of tokens.
func (s *state) charges() bool { return s.policy.Flow != nil && s.policy.Flow.Budget.Tokens > 0 }

// table returns the fleet as it is now, or nil before xds has said all once.
func (s *state) table() *pick.Table {
	for _, t := range types[:len(types)-1] {
		if !s.answered[t] {
			return nil
		}
	}
	t := &pick.Table{Policy: s.policy, Models: make(map[string]*pick.Model, len(s.models))}
	for name, m := range s.models {
		t.Models[name] = &pick.Model{
			Name: name, Seed: session.Seed(name), Learned: m.learned, Context: int(min(m.resource.GetContextTokens(), math.MaxInt32)),
			Rests: m.resource.GetRests(), Awaited: m.resource.GetAsleep() != "", Asleep: m.resource.GetAsleep(),
		}
		if s.away && t.Models[name].Awaited {
			t.Models[name].Unwoken = true
			t.Models[name].Asleep += "; xds, which gives places, does not answer"
		}
		if m.resource.GetDefault() {
			t.Default = t.Models[name]
		}
	}
	for _, address := range slices.Sorted(maps.Keys(s.endpoints)) {
		e := s.endpoints[address]
		view := e.view()
		for _, name := range e.models() {
			m := t.Models[name]
			if m == nil {
				continue
			}
			add(m, view)
		}
	}
	for _, m := range t.Models {
		m.Key = common(m.Endpoints)
		learnContext(m)
		s.tailors = setEngines(m, s.models[m.Name].resource) || s.tailors
	}
	return t
}

// common returns the key that all endpoints have; nil: there is none. Envoy may try any of
// them: what is meant for one is not for another.
func common(endpoints []*pick.Endpoint) *reach.Key {
	if len(endpoints) == 0 {
		return nil
	}
	key := endpoints[0].Key
	for _, e := range endpoints {
		if e.Key != key {
			return nil
		}
	}
	return key
}

// learnContext has a model of which nobody has said how long its context is have that of
// its engines: the longest, if all of them say.
func learnContext(m *pick.Model) {
	longest, all := 0, true
	for _, e := range m.Endpoints {
		all = all && e.Context > 0
		longest = max(longest, e.Context)
		if e.Context > 0 && (m.Least == 0 || e.Context < m.Least) {
			m.Least = e.Context
		}
	}
	if m.Context == 0 && all {
		m.Context = longest
	}
}

// cachedTokens returns how many tokens engines say they have cached, all together.
func (s *state) cachedTokens() (sum uint64) {
	for _, e := range s.endpoints {
		sum += e.resource.GetLoad().GetCachedTokens()
	}
	return sum
}

// view returns the endpoint as tables have it: a new one only if something has changed.
func (e *endpoint) view() *pick.Endpoint {
	if now := (basis{e.resource, e.kv, e.blocks, e.base, e.adapters, e.key}); e.basis != now {
		e.basis, e.shown = now, e.show()
	}
	return e.shown
}

func (e *endpoint) show() *pick.Endpoint {
	m := e.resource
	return &pick.Endpoint{
		Address: m.GetAddress(),
		Replica: m.GetReplica(),
		Nodes:   nodes(m),
		Zone:    m.GetZone(),
		State:   states[m.GetState()],
		Reason:  m.GetReason(),
		Weight:  m.GetWeight(),
		Slots:   int(m.GetLoad().GetSlots()),
		Health:  min(1, max(leastHealth, m.GetHealth())),
		Prior:   pick.Speed{Prefill: perToken(m.GetSpeed().GetPrefill()), Decode: perToken(m.GetSpeed().GetDecode())},
		Context: int(m.GetContextTokens()),
		KV:      e.kv,
		Blocks:  e.blocks,
		Base:    e.base, Adapters: e.adapters,
		Key:    e.key,
		Engine: pick.Engine{Kind: m.GetEngine(), Version: m.GetEngineVersion(), Args: [2]string{"", m.GetTemplateArgs()}},
		Live:   e.live,
	}
}

var states = map[fleetpb.EndpointState_State]pick.State{
	fleetpb.EndpointState_READY:     pick.Ready,
	fleetpb.EndpointState_SUSPECT:   pick.Suspect,
	fleetpb.EndpointState_NOT_READY: pick.NotReady,
}

// nodes are those that hold a part; at least the head's.
func nodes(m *fleetpb.EndpointState) []string {
	if len(m.GetNodes()) > 0 {
		return m.GetNodes()
	}
	return []string{m.GetNode()}
}

// leastRate and mostRate bound how slow and how fast an engine is taken to be by its own
// word, in tokens per second.
const leastRate, mostRate = 1e-2, 1e7

// perToken turns tokens per second into milliseconds per token; 0: unknown.
func perToken(rate float64) float64 {
	if !(rate > 0) {
		return 0
	}
	return 1000 / trust.Clamp(rate, leastRate, mostRate)
}
