package translate

import (
	"strconv"

	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/fleet"
)

// Caches returns how what is known of the engines' caches has changed: resources by
// name, and the names of those that are no more. before may be nil. There may be
// very many, of which few change: an endpoint whose cache is the same is not compared.
func Caches(before, now *fleet.Snapshot) (changed map[string]proto.Message, removed []string) {
	changed = make(map[string]proto.Message)
	had := make(map[string]*enginepb.Cache) // by address
	if before != nil {
		for _, e := range before.Endpoints {
			had[e.Address] = e.Cache
		}
	}
	seen := make(map[string]bool, len(now.Endpoints)) // by address
	for _, e := range now.Endpoints {
		if seen[e.Address] {
			continue // a second claim to an address, which the fleet has refused
		}
		seen[e.Address] = true
		if old := had[e.Address]; old != e.Cache {
			removed = append(removed, cacheChanges(e.Address, old, e.Cache, changed)...)
		}
	}
	for address, old := range had {
		if !seen[address] {
			removed = append(removed, cacheChanges(address, old, nil, nil)...)
		}
	}
	return changed, removed
}

// cacheChanges adds to changed what one endpoint has now and had not, and returns the
// names of what it has no more.
func cacheChanges(address string, old, now *enginepb.Cache, changed map[string]proto.Message) (removed []string) {
	left := make(map[uint64]*enginepb.CacheSegment) // by id
	same := old != nil && now != nil && old.Epoch == now.Epoch && old.BlockTokens == now.BlockTokens
	if old != nil {
		for _, s := range old.Segments {
			left[s.GetId()] = s
		}
	}
	if now != nil {
		for _, s := range now.Segments {
			if had := left[s.GetId()]; !same || had == nil || len(had.GetKeys()) != len(s.GetKeys()) {
				changed[segmentName(address, s.GetId())] = &fleetpb.CacheState{
					Address: address, Epoch: now.Epoch, Segment: s, BlockTokens: now.BlockTokens, Complete: now.Complete,
				}
			}
			delete(left, s.GetId())
		}
	}
	for id := range left {
		removed = append(removed, segmentName(address, id))
	}
	return removed
}

func segmentName(address string, id uint64) string {
	return address + "/" + strconv.FormatUint(id, 10)
}
