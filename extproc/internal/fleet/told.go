package fleet

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"millrace.dev/millrace/extproc/internal/prefix"
	"millrace.dev/millrace/extproc/internal/session"
	"millrace.dev/millrace/xds/fleetpb"
)

// Caches learns what engines say that they have cached. It is called by one
// goroutine, for each cache in the order in which its engine's log was written.
type Caches interface {
	// Segment says what was last used in a segment of the log of a cache, which
	// pick.Endpoint.KV names: as many tokens as keys, 0 for a key that is not cached
	// any more. More of the same segment may follow. The slices must not be changed.
	Segment(cache uint32, id uint64, keys []uint64, tokens []uint32)
	// Dropped says that nothing is cached any more that was last used in the segment.
	Dropped(cache uint32, id uint64)
}

// told is what engines have said of their caches, by address and id of the segment.
type told map[string]map[uint64]*segment

// segment is one that xds has.
type segment struct {
	epoch uint64
	// state is what was not handed on yet; nil: all was.
	state *fleetpb.CacheState
	// handed is how many entries were.
	handed int
}

// setCaches takes in a response about caches. Those of an epoch that the endpoint is
// not in are kept until it is.
func (s *state) setCaches(r *discovery.DeltaDiscoveryResponse, versions map[string]string, now time.Time) error {
	var errs []error
	changed := map[string]bool{}
	for _, res := range r.GetResources() {
		m := new(fleetpb.CacheState)
		name := func() string { return m.GetAddress() + "/" + strconv.FormatUint(m.GetSegment().GetId(), 10) }
		err := unpack(res, m, name)
		if err == nil && len(m.GetSegment().GetKeys()) != len(m.GetSegment().GetTokens()) {
			err = errors.New("segment: keys and tokens; must be as many")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", res.GetName(), err))
			continue
		}
		versions[res.GetName()] = res.GetVersion()
		s.told.set(m)
		changed[m.GetAddress()] = true
	}
	for address := range changed {
		s.hand(address, now)
	}
	for _, name := range r.GetRemovedResources() {
		delete(versions, name)
		s.dropSegment(name)
	}
	return errors.Join(errs...)
}

func (t told) set(m *fleetpb.CacheState) {
	at := t[m.GetAddress()]
	if at == nil {
		at = map[uint64]*segment{}
		t[m.GetAddress()] = at
	}
	id := m.GetSegment().GetId()
	if old := at[id]; old == nil || old.epoch != m.GetEpoch() {
		at[id] = &segment{epoch: m.GetEpoch()}
	}
	at[id].state = m
}

// hand hands on what is new of the present epoch's cache of an endpoint.
func (s *state) hand(address string, now time.Time) {
	e, at := s.endpoints[address], s.told[address]
	if e == nil {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(at)) {
		g := at[id]
		if g.state == nil || g.epoch != e.said.GetEpoch() {
			continue
		}
		keys, tokens := g.state.GetSegment().GetKeys(), g.state.GetSegment().GetTokens()
		if g.handed < len(keys) {
			s.segment(e, id, keys[g.handed:], tokens[g.handed:], now)
		}
		g.handed, g.state = len(keys), nil
	}
}

// segment records what an engine says in one segment of its log: its number is the
// generation in which the beginnings were last used.
func (s *state) segment(e *endpoint, id uint64, keys []uint64, tokens []uint32, now time.Time) {
	links := make([]prefix.Link, len(keys))
	for i, k := range keys {
		links[i] = prefix.Link{Key: session.Key(k), Tokens: tokens[i]}
	}
	s.policy.Prefixes.Report(e.kv, uint32(id), links, now)
	if s.into != nil {
		s.into.Segment(e.kv.ID(), id, keys, tokens)
	}
}

// dropSegment takes in that xds has a segment no more.
func (s *state) dropSegment(name string) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return
	}
	address := name[:i]
	id, err := strconv.ParseUint(name[i+1:], 10, 64)
	g := s.told[address][id]
	if err != nil || g == nil {
		return
	}
	delete(s.told[address], id)
	if len(s.told[address]) == 0 {
		delete(s.told, address)
	}
	e := s.endpoints[address]
	if e == nil || g.epoch != e.said.GetEpoch() || g.handed == 0 {
		return
	}
	e.kv.Dropped(uint32(id))
	if s.into != nil {
		s.into.Dropped(e.kv.ID(), id)
	}
}
