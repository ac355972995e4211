package fleet

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/endpoints"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/probe"
	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/weight"
)

// Observed is what was observed of an endpoint that somebody else runs.
type Observed struct{ *probe.Observation }

func (Observed) event() {}

// Foreign is an endpoint that somebody else runs, and what was observed of it last; nil:
// nothing yet.
type Foreign struct {
	inventory.Entry
	Last *probe.Observation

	resource *fleetpb.EndpointState
}

func newForeign(e inventory.Entry, last *probe.Observation) *Foreign {
	return &Foreign{Entry: e, Last: last, resource: endpoints.State(e, last)}
}

// Resource returns the endpoint as it is published, but for what is concluded of it.
func (x *Foreign) Resource() *fleetpb.EndpointState { return proto.CloneOf(x.resource) }

// unseen is how far an endpoint is believed to be well that was not probed yet: it ran
// before xds did, mostly.
const unseen = 0.5

// foreignOf returns the endpoints that a state names. What was observed of those that had
// names, too, stays, if it is true of their entries still.
func foreignOf(s *desired.State, had []*Foreign) []*Foreign {
	before := make(map[string]*Foreign, len(had))
	for _, x := range had {
		before[x.Address] = x
	}
	entries := inventory.OfObjects(s.Endpoints)
	all := make([]*Foreign, len(entries))
	for i, e := range entries {
		var last *probe.Observation
		if old := before[e.Address]; old != nil && endpoints.Same(old.Entry, e) {
			last = old.Last
		}
		all[i] = newForeign(e, last)
	}
	return all
}

// observed takes in what was observed of an endpoint. The Foreign before may be in a
// snapshot.
func (f *Fleet) observed(o *probe.Observation) {
	i, ok := f.foreignAt[o.Address]
	if !ok {
		return // it is not desired any more
	}
	f.foreign[i] = newForeign(f.foreign[i].Entry, o)
}

// setForeign sets which endpoints exist that somebody else runs.
func (f *Fleet) setForeign(s *desired.State) {
	f.foreign = foreignOf(s, f.foreign)
	f.foreignAt = make(map[string]int, len(f.foreign))
	for i, x := range f.foreign {
		f.foreignAt[x.Address] = i
	}
}

// allSilent reports whether nobody of several who are probed answers: it is us, then, or
// the way to all of them.
func allSilent(all []*Foreign) bool {
	probed := 0
	for _, x := range all {
		if x.Last == nil {
			continue
		}
		if probed++; !errors.Is(x.Last.Err, scrape.ErrSilent) {
			return false
		}
	}
	return probed > 1
}

// judgeForeign concludes the state of each endpoint that somebody else runs, once for each
// of its models. owners have the node of each address that an engine of ours has claimed.
func (f *Fleet) judgeForeign(now time.Time, owners map[string]string, s *Snapshot) {
	excused := allSilent(f.foreign)
	for _, x := range f.foreign {
		m := x.resource
		e := Endpoint{
			Address: x.Address, Nodes: []string{x.Node}, Zone: x.Zone, Foreign: x, Health: 1,
			State: m.GetState(), Reason: m.GetReason(), Membership: Healthy,
			Load: m.GetLoad(), Speed: m.GetSpeed(), Epoch: m.GetEpoch(),
			worth: weight.Replica{Capacity: m.GetSpeed().GetDecode(), Health: 1, Freshness: 1},
		}
		switch node, taken := owners[x.Address]; {
		case taken:
			e.State, e.Reason = notReady, fmt.Sprintf("its address is that of the engine of %s", node)
		case x.Last == nil:
			e.State, e.Reason, e.worth.Freshness = suspect, "was not probed yet", unseen
		case e.State == notReady && excused:
			e.State = suspect
		}
		if e.State == notReady {
			e.Membership = Absent
		}
		if x.Last != nil {
			e.Cache = x.Last.Cache
		}
		for i, model := range x.Models {
			e.Model, e.Replica, e.First = model, x.Address+" "+model, i == 0
			if old := f.endpoints[e.Replica]; e.State == suspect && x.Last != nil {
				since := now
				if old != nil && old.State == suspect {
					since = old.Since
				}
				e.worth.Freshness = weight.Freshness(now.Sub(since))
			}
			s.Endpoints = append(s.Endpoints, e)
		}
	}
}

// foreignSeen reports whether all endpoints that somebody else runs have been probed.
func (f *Fleet) foreignSeen() bool {
	return !slices.ContainsFunc(f.foreign, func(x *Foreign) bool { return x.Last == nil })
}

// judgeServed states whether anybody serves a model that has no replicas.
func judgeServed(o Object, all []Endpoint) ObjectCondition {
	c := ObjectCondition{Type: readyType, Status: true, Reason: "Served", Observed: o.Generation}
	n := 0
	for _, e := range all {
		if e.Model == o.Name && e.Membership == Healthy {
			n++
		}
	}
	if n == 0 {
		c.Status, c.Reason, c.Message = false, "NoEndpoints", "no endpoint of it takes requests, and no replicas are desired"
	}
	return c
}

// judgeEndpoints states whether the endpoints of an object take requests.
func judgeEndpoints(o Object, all []Endpoint) ObjectCondition {
	source := o.Kind + "/" + o.Name
	n := 0
	var down []string
	for _, e := range all {
		if e.Foreign == nil || !e.First || e.Foreign.Source != source {
			continue
		}
		if n++; e.Membership != Healthy {
			down = append(down, fmt.Sprintf("%s (%s)", e.Address, e.Reason))
		}
	}
	c := ObjectCondition{Type: readyType, Status: true, Reason: "AllEndpointsReady", Observed: o.Generation}
	if len(down) > 0 {
		c.Status, c.Reason = false, "EndpointsNotReady"
		c.Message = fmt.Sprintf("%d of %d endpoints take requests; not %s", n-len(down), n, firstOf(down))
	}
	return c
}

// shown is how many endpoints a sentence names.
const shown = 3

// firstOf names the first few.
func firstOf(names []string) string {
	if len(names) > shown {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
	}
	return strings.Join(names, ", ")
}

// foreignConditions returns what is wrong with endpoints that somebody else runs.
func foreignConditions(endpoints []Endpoint) []obs.Condition {
	var all []obs.Condition
	var down, mute, deaf, wrong, files []string
	for _, e := range endpoints {
		if x := e.Foreign; x != nil && e.First && x.Last != nil {
			note := func(to *[]string, err error) {
				if err != nil {
					*to = append(*to, fmt.Sprintf("%s (%v)", e.Address, err))
				}
			}
			note(&wrong, x.Last.ModelsErr)
			note(&files, x.Last.FilesErr)
		}
		switch x := e.Foreign; {
		case x == nil || !e.First:
		case e.State == notReady:
			down = append(down, fmt.Sprintf("%s (%s)", e.Address, e.Reason))
		case x.Last != nil && x.Last.MetricsErr != nil:
			mute = append(mute, fmt.Sprintf("%s (%v)", x.Metrics, x.Last.MetricsErr))
		case x.Last != nil && x.Last.EventsErr != nil:
			deaf = append(deaf, fmt.Sprintf("%s (%v)", e.Address, x.Last.EventsErr))
		}
	}
	add := func(names []string, code, text, next string) {
		if len(names) > 0 {
			all = append(all, obs.Condition{Code: code, Text: fmt.Sprintf(text, len(names), firstOf(names)), Next: next})
		}
	}
	add(down, wire.EndpointsDown, "%d endpoints take no requests: %s", "start them, or take them out of the configuration")
	add(mute, wire.NoMetrics, "%d endpoints return no usable metrics: %s; their load is not known",
		"start engines with metrics (llama-server: --metrics, SGLang: --enable-metrics), correct the URL, or set type: openai")
	add(wrong, wire.OtherModels, "%d endpoints do not list the models that the configuration says they serve: %s; requests go there all the same",
		"correct their models, or the name under which the engine serves (vLLM: --served-model-name, llama-server: --alias)")
	add(files, wire.EndpointFiles, "files with keys or certificates of %d endpoints can't be used: %s; what was in them before is used",
		"replace each of them, certificate and key of each other, until they fit")
	add(deaf, wire.NoKVEvents, "%d endpoints send no usable cache events: %s; what they have cached is estimated",
		"start vLLM with --kv-events-config and publisher zmq: an endpoint with a * is for kvEvents.connect, one without for kvEvents.listen")
	return all
}

// foreignViews are the endpoints that somebody else runs, for people.
func foreignViews(endpoints []Endpoint) []*fleetpb.EndpointView {
	var all []*fleetpb.EndpointView
	for _, e := range endpoints {
		x := e.Foreign
		if x == nil || !e.First {
			continue
		}
		v := &fleetpb.EndpointView{
			Address: e.Address, Models: x.Models, State: e.State, Reason: e.Reason, Since: timestamppb.New(e.Since),
			Weight: e.Weight, Load: e.Load, Speed: e.Speed, Source: x.Source, Type: x.Type,
		}
		if x.Last != nil && x.Last.MetricsErr != nil {
			v.MetricsError = x.Last.MetricsErr.Error()
		}
		if x.Last != nil && x.Last.EventsErr != nil {
			v.EventsError = x.Last.EventsErr.Error()
		}
		all = append(all, v)
	}
	return all
}
