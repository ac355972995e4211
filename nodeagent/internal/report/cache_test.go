package report

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/xds/fleetpb"
)

// TestCacheIsSentInIncrements also where reports in between were thrown away.
func TestCacheIsSentInIncrements(t *testing.T) {
	a := ready(t)
	grow := func(id uint64, from uint32, key uint64) {
		s := engineIs(enginepb.State_READY, 1, 1)
		s.Status.Cache = &enginepb.CacheReport{Epoch: 1, Oldest: 1, Segments: []*enginepb.CacheSegment{
			{Id: id, From: from, Keys: []uint64{key}, Tokens: []uint32{10}},
		}}
		a.Step(start, s)
	}
	report := func() outgoing {
		r, err := a.Report(start, telemetry())
		if err != nil {
			t.Fatal(err)
		}
		return outgoing{r, a.Cache()}
	}
	said := func(r *fleetpb.NodeReport) (got string) {
		for _, s := range r.GetEngine().GetCache().GetSegments() {
			got += fmt.Sprint(s.GetId(), "+", s.GetFrom(), s.GetKeys(), " ")
		}
		return got
	}
	var sent outgoing
	grow(1, 0, 7)
	if got := said(report().since(&sent)); got != "1+0 [7] " {
		t.Errorf("at first: %s", got)
	}
	grow(1, 1, 8)
	report() // thrown away
	grow(2, 0, 9)
	if got := said(report().since(&sent)); got != "1+1 [8] 2+0 [9] " {
		t.Errorf("then: %s", got)
	}
	r := report().since(&sent)
	if got := said(r); got != "" {
		t.Errorf("nothing new: %s", got)
	}
	if n := proto.Size(r); n > 100 {
		t.Errorf("an unchanged report has %d bytes; must be 100 at most", n)
	}
	if got := said(report().since(new(outgoing))); got != "1+0 [7 8] 2+0 [9] " {
		t.Errorf("on a new stream: %s", got)
	}
}

func TestCacheThatBreaksTheContract(t *testing.T) {
	a := ready(t)
	s := engineIs(enginepb.State_READY, 1, 1)
	s.Status.Cache = &enginepb.CacheReport{Segments: []*enginepb.CacheSegment{{Id: 1, Keys: []uint64{1}}}}
	a.Step(start, s)
	if got, want := said(t, a, start), "invalid: cache: segments[0]: 1 keys and 0 tokens; must be as many"; got != want {
		t.Errorf("said %q, want %q", got, want)
	}
}

// TestNewsOfTheCacheDoesNotWaitForTheHeartbeat, but is not sent more often than is
// worth it.
func TestNewsOfTheCacheDoesNotWaitForTheHeartbeat(t *testing.T) {
	a := ready(t)
	news := func(key uint64, at time.Time) Effects {
		s := engineIs(enginepb.State_READY, 1, 1)
		s.Status.Cache = &enginepb.CacheReport{Epoch: 1, Oldest: 1, Segments: []*enginepb.CacheSegment{
			{Id: 1, From: uint32(key), Keys: []uint64{key}, Tokens: []uint32{10}},
		}}
		return a.Step(at, s)
	}
	if fx := news(0, start.Add(cacheEvery/2)); fx.Report {
		t.Error("a report so soon after the last one")
	}
	wake := a.Wake(start.Add(cacheEvery / 2))
	if want := start.Add(cacheEvery); !wake.Equal(want) {
		t.Fatalf("Wake() is %s after the start, want %s", wake.Sub(start), cacheEvery)
	}
	if fx := a.Step(wake, Tick{}); !fx.Report || fx.Read {
		t.Errorf("at that time: %+v, want a report without a reading", fx)
	}
	if fx := a.Step(wake.Add(cacheEvery), engineIs(enginepb.State_READY, 1, 1)); fx.Report {
		t.Error("a report without news")
	}
	if fx := news(1, wake.Add(cacheEvery)); !fx.Report {
		t.Error("no report, though the last one was a while ago")
	}
}
