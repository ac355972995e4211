package fleet

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/probe"
	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// pool is a state of two models without replicas, which so many endpoints serve.
func pool(n int) *desired.State {
	spec := config.EndpointsSpec{}
	for i := range n {
		spec.Endpoints = append(spec.Endpoints, config.Endpoint{
			Address: fmt.Sprintf("10.0.0.%d:80", i+1), Models: []string{"m", "n"}, Type: "vllm", Metrics: "http://x/metrics", Node: fmt.Sprintf("n%d", i),
		})
	}
	f := config.File{
		Models:    []config.Model{{Metadata: config.Metadata{Name: "m"}}, {Metadata: config.Metadata{Name: "n"}}},
		Endpoints: []config.Endpoints{{Metadata: config.Metadata{Name: "pool"}, Spec: spec}},
		Policy:    config.Default().Policy,
	}
	return desired.Next(nil, f, nil)
}

// others is a fleet of endpoints that somebody else runs.
type others struct {
	*Fleet
	now time.Time
}

func newOthers(n int) *others {
	o := &others{now: time.Unix(1e9, 0)}
	o.Fleet = New(time.Second, o.now)
	o.desire(pool(n))
	return o
}

func (o *others) desire(s *desired.State) {
	o.Step(o.now, Desired{desired.Published{State: s}})
}

// see takes in what was observed of the i-th.
func (o *others) see(i int, obs probe.Observation) {
	obs.Address = fmt.Sprintf("10.0.0.%d:80", i+1)
	o.Step(o.now, Observed{&obs})
}

// decide returns the endpoints of a model, after so long.
func (o *others) decide(after time.Duration, model string) (all []Endpoint, s *Snapshot) {
	o.now = o.now.Add(after)
	s = o.Decide(o.now)
	for _, e := range s.Endpoints {
		if e.Model == model {
			all = append(all, e)
		}
	}
	return all, s
}

func TestForeignEndpoints(t *testing.T) {
	o := newOthers(2)
	es, s := o.decide(0, "m")
	if len(es) != 2 || s.Settled || es[0].State != suspect || es[0].Membership != Healthy {
		t.Fatalf("before anything was observed: settled %v, %+v", s.Settled, es)
	}
	o.see(0, probe.Observation{Epoch: 7, Speed: probe.Speed{Decode: 50}, Cache: &enginepb.Cache{Epoch: 7}})
	if _, s = o.decide(0, "m"); s.Settled {
		t.Error("settled, and one of them was not probed")
	}
	o.see(1, probe.Observation{Speed: probe.Speed{Decode: 100}})
	for _, model := range []string{"m", "n"} {
		es, s = o.decide(time.Second, model)
		if !s.Settled || len(es) != 2 || es[0].Weight != 500 || es[1].Weight != 1000 || es[0].State != ready || es[0].Epoch != 7 || es[0].Cache == nil {
			t.Errorf("model %s: settled %v, %+v", model, s.Settled, es)
		}
	}
	if len(s.Conditions) > 0 {
		t.Errorf("conditions %v", s.Conditions)
	}

	changes := s.Changes
	o.see(0, probe.Observation{State: probe.NotReady, Err: scrape.ErrGone, Epoch: 7})
	es, s = o.decide(time.Second, "m")
	if es[0].Membership != Absent || es[0].Weight != 0 || es[0].Reason == "" || es[1].Weight != 1000 || s.Changes == changes {
		t.Errorf("one is gone: %+v", es)
	}
	v := s.View(0, nil)
	if len(v.GetEndpoints()) != 2 || v.GetEndpoints()[0].GetState() != notReady || v.GetEndpoints()[1].GetWeight() != 1000 || v.GetEndpoints()[0].GetSource() != "Endpoints/pool" {
		t.Errorf("view %v", v.GetEndpoints())
	}
	if len(s.Conditions) != 1 || s.Conditions[0].Code != wire.EndpointsDown || !strings.Contains(s.Conditions[0].Text, "10.0.0.1:80") {
		t.Errorf("conditions %v", s.Conditions)
	}
	for _, obj := range v.GetObjects() {
		for _, c := range obj.GetConditions() {
			if want := obj.GetKind() != "Endpoints"; c.GetType() == "Ready" && c.GetStatus() != want {
				t.Errorf("%s %s: ready %v", obj.GetKind(), obj.GetName(), c.GetStatus())
			}
		}
	}

	o.see(0, probe.Observation{FilesErr: errors.New("tls.cert: private key does not match")})
	_, s = o.decide(time.Second, "m")
	if len(s.Conditions) != 1 || s.Conditions[0].Code != wire.EndpointFiles || !strings.Contains(s.Conditions[0].Text, "10.0.0.1:80 (tls.cert: private key") {
		t.Errorf("conditions %v", s.Conditions)
	}
	o.see(0, probe.Observation{State: probe.NotReady, Err: scrape.ErrGone, Epoch: 7})

	o.see(1, probe.Observation{State: probe.NotReady, Err: scrape.ErrGone})
	_, s = o.decide(time.Second, "m")
	down := 0
	for _, c := range s.Conditions {
		if c.Code == wire.ModelDown {
			down++
		}
	}
	if down != 2 {
		t.Errorf("nobody is there, and %d models are down: %v", down, s.Conditions)
	}
}

// TestForeignSilence lowers the weight of who is silent, and takes nobody out if all are.
func TestForeignSilence(t *testing.T) {
	silent := probe.Observation{State: probe.Suspect, Err: scrape.ErrSilent}
	gone := probe.Observation{State: probe.NotReady, Err: scrape.ErrSilent}
	o := newOthers(2)
	o.see(0, probe.Observation{})
	o.see(1, probe.Observation{})
	o.decide(time.Second, "m")
	o.see(0, silent)
	es, _ := o.decide(time.Second, "m")
	if es[0].State != suspect || es[0].Weight >= es[1].Weight || es[0].Membership != Healthy {
		t.Errorf("one is silent: %+v", es)
	}
	first := es[0].Weight
	if es, _ = o.decide(5*time.Second, "m"); es[0].Weight >= first {
		t.Errorf("weight %d, and 5 s later %d", first, es[0].Weight)
	}
	o.see(0, gone)
	if es, _ = o.decide(time.Second, "m"); es[0].Membership != Absent {
		t.Errorf("one hangs: %+v", es[0])
	}
	o.see(1, gone)
	if es, _ = o.decide(time.Second, "m"); es[0].Membership != Healthy || es[1].Membership != Healthy || es[0].State != suspect {
		t.Errorf("all are silent at once: %+v", es)
	}
	o.see(1, probe.Observation{})
	if es, _ = o.decide(time.Second, "m"); es[0].Membership != Absent || es[1].State != ready {
		t.Errorf("one answers again: %+v", es)
	}
}

// TestForeignEndpointsChange keeps what is known of those who stay.
func TestForeignEndpointsChange(t *testing.T) {
	o := newOthers(2)
	o.see(0, probe.Observation{Epoch: 7})
	o.see(1, probe.Observation{Epoch: 8})
	o.decide(time.Second, "m")
	o.desire(pool(1))
	o.see(1, probe.Observation{Epoch: 8}) // late
	es, _ := o.decide(time.Second, "m")
	if len(es) != 1 || es[0].Epoch != 7 || es[0].State != ready {
		t.Errorf("%+v", es)
	}
	o.desire(pool(3))
	var s *Snapshot
	if es, s = o.decide(time.Second, "m"); len(es) != 3 || es[0].Epoch != 7 || es[1].State != suspect || !s.Settled {
		t.Errorf("settled %v, %+v", s.Settled, es)
	}
	other := pool(1)
	other.Endpoints[0].Spec.Endpoints[0].Metrics = "http://y/metrics"
	o.desire(other)
	if es, _ = o.decide(time.Second, "m"); len(es) != 1 || es[0].State != suspect {
		t.Errorf("another entry of the address: %+v", es)
	}
}

// TestAddressOfOurs is that of an engine of ours: nobody else may have it.
func TestAddressOfOurs(t *testing.T) {
	o := newOthers(1)
	o.see(0, probe.Observation{})
	s := &Snapshot{}
	o.judgeForeign(o.now, map[string]string{"10.0.0.1:80": "node-a"}, s)
	if len(s.Endpoints) != 2 || s.Endpoints[0].Membership != Absent || !strings.Contains(s.Endpoints[0].Reason, "node-a") {
		t.Errorf("%+v", s.Endpoints)
	}
	if c := judgeEndpoints(Object{Key: Key{"Endpoints", "pool"}}, s.Endpoints); c.Status || !strings.Contains(c.Message, "node-a") {
		t.Errorf("condition %+v", c)
	}
}

// TestForeignResource is valid whatever was observed.
func TestForeignResource(t *testing.T) {
	o := newOthers(1)
	o.see(0, probe.Observation{State: probe.NotReady, Err: fmt.Errorf("%s", strings.Repeat("x", 5000))})
	es, _ := o.decide(time.Second, "m")
	m := es[0].Foreign.Resource()
	if err := m.ValidateAll(); err != nil {
		t.Error(err)
	}
	m.State = fleetpb.EndpointState_READY
	if es[0].Foreign.Resource().GetState() != notReady {
		t.Error("what a Resource is changed to is in the next one")
	}
}
