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
	"millrace.dev/millrace/internal/blocks"
	"millrace.dev/millrace/xds/fleetpb"
)

// reports is what engines report of their caches, by address and id of the segment.
type reports map[string]map[uint64]*segment

// segment is one that xds has.
type segment struct {
	epoch uint64
	// state is what was not applied yet; nil: all was.
	state *fleetpb.CacheState
	// applied is how many entries were. blocks is whether they are of a log of blocks.
	applied int
	blocks  bool
}

// of reports whether the segment is of the endpoint's cache as it is now. A log of
// blocks of which nobody knows the epoch always is: it forgets by itself what is gone.
func (g *segment) of(e *endpoint) bool { return g.epoch == 0 || g.epoch == e.resource.GetEpoch() }

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
		s.reports.set(m)
		changed[m.GetAddress()] = true
	}
	for address := range changed {
		s.applyCache(address, now)
	}
	for _, name := range r.GetRemovedResources() {
		delete(versions, name)
		s.dropSegment(name)
	}
	return errors.Join(errs...)
}

func (r reports) set(m *fleetpb.CacheState) {
	at := r[m.GetAddress()]
	if at == nil {
		at = map[uint64]*segment{}
		r[m.GetAddress()] = at
	}
	id := m.GetSegment().GetId()
	if old := at[id]; old == nil || old.epoch != m.GetEpoch() {
		at[id] = &segment{epoch: m.GetEpoch()}
	}
	at[id].state = m
}

// applyCache applies what is new of the present epoch's cache of an endpoint.
func (s *state) applyCache(address string, now time.Time) {
	e, at := s.endpoints[address], s.reports[address]
	if e == nil {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(at)) {
		g := at[id]
		if g.state == nil || !g.of(e) {
			continue
		}
		m := g.state.GetSegment()
		if size := g.state.GetBlockTokens(); size > 0 {
			s.follow(e).Put(m, int(size), g.state.GetComplete())
			g.blocks = true
		} else if g.applied < len(m.GetKeys()) {
			s.applySegment(e, id, m.GetKeys()[g.applied:], m.GetTokens()[g.applied:], now)
		}
		g.applied, g.state = len(m.GetKeys()), nil
	}
	if e.log != nil {
		e.log.Read()
	}
}

// follow returns the reader of an endpoint's log of blocks.
func (s *state) follow(e *endpoint) *blocks.Reader {
	if e.log == nil {
		e.blocks = new(blocks.Set)
		e.log = blocks.NewReader(e.blocks)
		s.stale = true
	}
	return e.log
}

// applySegment records what an engine reports in one segment of its log of prompts: its
// number is the generation in which the prefixes were last used.
func (s *state) applySegment(e *endpoint, id uint64, keys []uint64, tokens []uint32, now time.Time) {
	links := make([]prefix.Link, len(keys))
	for i, k := range keys {
		links[i] = prefix.Link{Key: session.Key(k), Tokens: tokens[i]}
	}
	s.policy.Prefixes.Report(e.kv, uint32(id), links, now)
}

// dropSegment takes in that xds has a segment no more.
func (s *state) dropSegment(name string) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return
	}
	address := name[:i]
	id, err := strconv.ParseUint(name[i+1:], 10, 64)
	g := s.reports[address][id]
	if err != nil || g == nil {
		return
	}
	delete(s.reports[address], id)
	if len(s.reports[address]) == 0 {
		delete(s.reports, address)
	}
	e := s.endpoints[address]
	switch {
	case e == nil || !g.of(e):
	case g.blocks:
		e.log.Drop(id)
	case g.applied > 0:
		e.kv.Dropped(uint32(id))
	}
}
