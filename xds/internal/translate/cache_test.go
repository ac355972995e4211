package translate

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/fleet"
)

// all is every resource of a snapshot, made without any memory.
func all(s *fleet.Snapshot) map[string]proto.Message {
	out := map[string]proto.Message{}
	for _, e := range s.Endpoints {
		if e.Cache == nil {
			continue
		}
		for _, g := range e.Cache.Segments {
			out[fmt.Sprintf("%s/%d", e.Address, g.GetId())] = &fleetpb.CacheState{Address: e.Address, Epoch: e.Cache.Epoch, Segment: g}
		}
	}
	return out
}

// TestCaches follows random logs, restarts and departures: who takes in all changes
// has what he would have got at once.
func TestCaches(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	caches := make([]*enginepb.Cache, 5)
	have := map[string]proto.Message{}
	var before *fleet.Snapshot
	for step := range 2000 {
		i := r.IntN(len(caches))
		switch c := caches[i]; {
		case c == nil || r.IntN(50) == 0: // a start, of the backend or of the engine
			caches[i] = &enginepb.Cache{Epoch: uint64(step + 1)}
		default:
			id := c.Oldest + r.Uint64N(4)
			n := 0
			if last := len(c.Segments) - 1; last >= 0 {
				id = max(id, c.Segments[last].GetId())
				if c.Segments[last].GetId() == id {
					n = len(c.Segments[last].GetKeys())
				}
			}
			caches[i] = c.Add(&enginepb.CacheReport{Epoch: c.Epoch, Oldest: max(id, 3) - 2, Segments: []*enginepb.CacheSegment{
				{Id: max(id, 1), From: uint32(n), Keys: []uint64{r.Uint64()}, Tokens: []uint32{1}},
			}})
		}
		if r.IntN(3) > 0 {
			continue
		}
		now := &fleet.Snapshot{}
		for i, c := range caches {
			if r.IntN(10) > 0 {
				now.Endpoints = append(now.Endpoints, fleet.Endpoint{Address: fmt.Sprintf("10.0.0.%d:80", i), Cache: c})
			}
		}
		changed, removed := Caches(before, now)
		for name, m := range changed {
			if proto.Equal(have[name], m) {
				t.Fatalf("%s is sent again", name)
			}
			have[name] = m
		}
		for _, name := range removed {
			if have[name] == nil {
				t.Fatalf("%s is removed, and was not there", name)
			}
			delete(have, name)
		}
		if diff := cmp.Diff(all(now), have, protocmp.Transform()); diff != "" {
			t.Fatalf("step %d (-want +got):\n%s", step, diff)
		}
		before = now
	}
}
