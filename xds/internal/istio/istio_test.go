package istio

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	networking "istio.io/api/networking/v1alpha3"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/inventory"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/xds/internal/fleet"
	"millrace.dev/millrace/xds/internal/weight"
)

var site = Site{
	Namespace: "llm", Name: "millrace", Namespaces: []string{"llm", "ingress"},
	Front: "millrace-gateway.llm.svc.cluster.local", ExtProc: []string{"millrace-extproc.llm.svc.cluster.local:7204"},
}

// state returns what a text desires: two models, and spec.istio as given.
func state(t *testing.T, istio string) *desired.State {
	t.Helper()
	text := "apiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: a}\nspec: {weights: /a.gguf}\n---\n" +
		"apiVersion: millrace.dev/v1alpha1\nkind: Endpoints\nmetadata: {name: theirs}\nspec: {endpoints: [{address: '10.0.0.9:8000', models: [Org/B, a]}]}\n---\n" +
		"apiVersion: millrace.dev/v1alpha1\nkind: Policy\nmetadata: {name: default}\nspec: {istio: " + istio + "}\n"
	f, err := config.Parse("mesh.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return desired.Next(nil, f, nil)
}

// names returns the objects by key, with no more than their number for each kind.
func names(all []*Object) map[string]int {
	n := make(map[string]int)
	for _, o := range all {
		n[o.Kind.Name+" "+o.Namespace]++
	}
	return n
}

func TestStatic(t *testing.T) {
	tests := []struct {
		name, istio string
		want        map[string]int
		problems    []string // their codes
	}{
		{"nothing is asked", `{}`, map[string]int{}, nil},
		{"gateway of Istio", `{gateways: [{name: old, api: Istio, namespace: ingress}]}`,
			map[string]int{"ServiceEntry llm": 3, "DestinationRule llm": 3, "VirtualService llm": 1, "EnvoyFilter ingress": 1}, nil},
		{"gateway of Kubernetes", `{gateways: [{name: new}]}`,
			map[string]int{"ServiceEntry llm": 3, "DestinationRule llm": 3, "HTTPRoute llm": 3, "EnvoyFilter llm": 1}, nil},
		{"gateway where xds may not write", `{gateways: [{name: new, namespace: secret}]}`,
			map[string]int{"ServiceEntry llm": 3, "DestinationRule llm": 3, "HTTPRoute llm": 3}, []string{Forbidden}},
		{"pool has Pods of ours alone", `{gateways: [{name: new, mode: InferencePool}]}`,
			map[string]int{"ServiceEntry llm": 3, "DestinationRule llm": 3, "HTTPRoute llm": 3, "InferencePool llm": 1}, []string{Unsupported}},
		{"sidecars", `{sidecars: {enabled: true, namespaces: [ingress, llm]}}`,
			map[string]int{"ServiceEntry llm": 3, "DestinationRule llm": 3, "VirtualService llm": 1, "EnvoyFilter ingress": 1, "EnvoyFilter llm": 1}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			objects, problems := Static(site, state(t, tt.istio))
			if diff := cmp.Diff(tt.want, names(objects)); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
			var codes []string
			for _, p := range problems {
				codes = append(codes, p.Code)
			}
			if diff := cmp.Diff(tt.problems, codes); diff != "" {
				t.Errorf("conditions (-want +got):\n%s", diff)
			}
			seen := make(map[Key]bool)
			for _, o := range objects {
				if seen[o.Key()] || !dnsName.MatchString(o.Name) {
					t.Errorf("name of %s; must be one that Kubernetes takes, once", o.Key())
				}
				seen[o.Key()] = true
			}
		})
	}
}

// TestFiltersFitAnyEnvoy holds what a stock Envoy refused: a regular expression that is
// larger than its owner allows. One that names two methods is not.
func TestFiltersFitAnyEnvoy(t *testing.T) {
	objects, _ := Static(site, state(t, `{sidecars: {enabled: true}}`))
	for _, o := range objects {
		for _, m := range regexp.MustCompile(`regex:([^\]]*)`).FindAllStringSubmatch(fmt.Sprint(o.Spec), -1) {
			if o.Kind == EnvoyFilter && m[1] != "GET|HEAD" {
				t.Errorf("%s has the regular expression %s: a stock Envoy takes small ones only", o.Key(), m[1])
			}
		}
	}
}

// TestExtprocIsAskedByItsHost holds what an Envoy beside extproc refused: the name of Istio's
// cluster, which is no authority of HTTP.
func TestExtprocIsAskedByItsHost(t *testing.T) {
	objects, _ := Static(site, state(t, `{sidecars: {enabled: true}}`))
	i := slices.IndexFunc(objects, func(o *Object) bool { return o.Kind == EnvoyFilter })
	text := fmt.Sprint(objects[i].Spec)
	if want := "authority:" + site.pickerHost(); strings.Count(text, want) != 2 {
		t.Errorf("%s must be in the filter and in the health check: %s", want, text)
	}
}

// TestTriesEndWhereFiltersAreKnown has the filters that end the tries of what hurts be in all
// clusters of Envoys that have them, in a form that replaces what other Envoys get.
func TestTriesEndWhereFiltersAreKnown(t *testing.T) {
	objects, _ := Static(site, state(t, `{sidecars: {enabled: true}}`))
	halting := map[string]bool{} // clusters
	for _, o := range objects {
		if o.Kind != EnvoyFilter {
			continue
		}
		b, err := json.Marshal(o.Spec)
		if err != nil {
			t.Fatal(err)
		}
		var e networking.EnvoyFilter
		if err := protojson.Unmarshal(b, &e); err != nil {
			t.Fatal(err)
		}
		all := map[string]bool{}
		for _, p := range e.GetConfigPatches() {
			host, text := p.GetMatch().GetCluster().GetService(), fmt.Sprint(p.GetPatch().GetValue())
			switch version := p.GetMatch().GetProxy().GetProxyVersion(); {
			case p.GetApplyTo() != networking.EnvoyFilter_CLUSTER:
			case version == "":
				all[host] = true
				if strings.Contains(text, "envoy.filters.http.lua") {
					t.Errorf("%s: %s has filters for any Envoy", o.Key(), host)
				}
			case !all[host] || !strings.Contains(text, "envoy.filters.http.lua"):
				t.Errorf("%s: %s has for %s %s; it must come after what all get, and have the filters", o.Key(), host, version, text)
			default:
				halting[host] = true
				for v, want := range map[string]bool{"1.31.0": true, "1.30.2": false, "1.9.9": false, "1.40.1-x": true, "2.0.0": true, "11.31.0": false} {
					if got := regexp.MustCompile(version).MatchString(v); got != want {
						t.Errorf("%s: %s: %v, want %v", version, v, got, want)
					}
				}
			}
		}
	}
	if len(halting) != 2 {
		t.Errorf("clusters of %v; want both models", halting)
	}
}

// TestEnginesThatServeTLS are not sent plain text, and a condition says so.
func TestEnginesThatServeTLS(t *testing.T) {
	d := state(t, `{sidecars: {enabled: true}}`)
	d.Endpoints[0].Spec.Endpoints[0].TLS = config.EngineTLS{SkipVerify: true}
	_, problems := Static(site, d)
	if i := slices.IndexFunc(problems, func(p obs.Condition) bool { return strings.Contains(p.Text, "10.0.0.9:8000") }); i < 0 || problems[i].Code != Unsupported || problems[i].Next == "" {
		t.Errorf("conditions %+v; want one of 10.0.0.9:8000 with a way out", problems)
	}
	snap := &fleet.Snapshot{Endpoints: []fleet.Endpoint{{
		Address: "10.0.0.9:8000", Model: "a", Membership: fleet.Healthy,
		Foreign: &fleet.Foreign{Entry: inventory.Entry{Endpoint: d.Endpoints[0].Spec.Endpoints[0]}},
	}}}
	if all := Entries(site, d, snap); len(all) != 0 {
		t.Errorf("entries %+v, want none", all)
	}
}

func TestEntries(t *testing.T) {
	d := state(t, `{sidecars: {enabled: true}}`)
	theirs := &fleet.Foreign{}
	snap := &fleet.Snapshot{Endpoints: []fleet.Endpoint{
		{Model: "a", Address: "10.0.0.1:8000", Membership: fleet.Healthy, Weight: 1000},
		{Model: "a", Address: "10.0.0.1:8001", Membership: fleet.Healthy}, // the same Pod, no weight yet
		{Model: "a", Address: "10.0.0.1:8000", Membership: fleet.Healthy, Weight: 500},
		{Model: "a", Address: "10.0.0.2:8000", Membership: fleet.Absent, Weight: 7},
		{Model: "a", Address: "10.0.0.3:8000", Membership: fleet.Unhealthy, Weight: 7},
		{Model: "gone", Address: "10.0.0.4:8000", Membership: fleet.Healthy, Weight: 7},
		{Model: "Org/B", Address: "10.0.0.9:8000", Membership: fleet.Healthy, Weight: 9, Foreign: theirs, First: true},
		{Model: "a", Address: "10.0.0.9:8000", Membership: fleet.Healthy, Weight: 9, Foreign: theirs},
	}}
	var got []string
	unique := make(map[string]bool)
	for _, e := range Entries(site, d, snap) {
		got = append(got, fmt.Sprint(e.Model, " ", e.Address, " ", e.Exact))
		unique[e.Name] = true
	}
	want := []string{"a 10.0.0.1:8000 1000", "a 10.0.0.1:8001 1", "Org/B 10.0.0.9:8000 9", "a 10.0.0.9:8000 9"}
	if diff := cmp.Diff(want, got); diff != "" || len(unique) != len(want) {
		t.Errorf("%d names, entries (-want +got):\n%s", len(unique), diff)
	}
	if got := Entries(site, state(t, `{}`), snap); got != nil {
		t.Errorf("without spec.istio: %v", got)
	}
}

// TestMutualTLSNamesAccounts holds that Envoys of a mesh with mutual TLS take nobody else for
// an engine, or for extproc.
func TestMutualTLSNamesAccounts(t *testing.T) {
	for tls, want := range map[string]string{"None": "<nil> <nil>", "IstioMutual": "millrace-engine millrace-extproc"} {
		d := state(t, `{tls: `+tls+`, sidecars: {enabled: true}}`)
		engine, ok := Workload(site, d, Entry{Name: "x", Model: "a", Address: "10.0.0.1:8000"}, 1)
		if !ok {
			t.Fatal("no object of an endpoint")
		}
		objects, _ := Static(site, d)
		i := slices.IndexFunc(objects, func(o *Object) bool { return o.Kind == ServiceEntry && o.Name == "millrace-extproc" })
		picker := objects[i].Spec["endpoints"].([]any)[0].(map[string]any)
		if got := fmt.Sprint(engine.Spec["serviceAccount"], " ", picker["serviceAccount"]); got != want {
			t.Errorf("tls %s: accounts %s, want %s", tls, got, want)
		}
	}
}

func TestLevel(t *testing.T) {
	for _, tt := range []struct{ before, exact, want uint32 }{
		{0, weight.Full, levels}, {0, 0, 1}, {0, 1, 1}, {0, 500, 32}, {1, 1, 1},
		{32, 508, 32},   // within the slack
		{32, 520, 33},   // beyond it
		{7000, 500, 32}, // an edit
		{levels, weight.Full * 2, levels},
	} {
		if got := Level(tt.before, tt.exact); got != tt.want {
			t.Errorf("Level(%d, %d) = %d, want %d", tt.before, tt.exact, got, tt.want)
		}
	}
	at, changes := Level(0, 507), 0
	for range 1000 { // a weight that wavers around the border of two levels
		next := Level(at, 500+rand.Uint32N(16))
		if next != at {
			at, changes = next, changes+1
		}
	}
	if changes > 1 {
		t.Errorf("a weight that wavers by 1.6 %% was written %d times", changes)
	}
}

// planned returns the plan as text.
func planned(all []action) (s []string) {
	for _, a := range all {
		text := a.verb.String() + " " + a.key.Kind + " " + a.key.Name
		if a.by != "" {
			text += " by " + a.by
		}
		s = append(s, text)
	}
	return s
}

func TestPlan(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	object := func(k Kind, name, hash string) *Object {
		return &Object{Kind: k, Namespace: "llm", Name: name, hash: hash, Labels: map[string]string{modelLabel: "a"}}
	}
	found := func(k Kind, hash, written string) *Found {
		return &Found{kind: k, hash: hash, written: written, model: "a"}
	}
	key := func(k Kind, name string) Key { return Key{k.Name, "llm", name} }
	entry, route, host := object(WorkloadEntry, "w", "1"), object(VirtualService, "r", "1"), object(ServiceEntry, "s", "1")
	tests := []struct {
		name   string
		want   []*Object
		found  map[Key]*Found
		done   map[Key]*memory
		routed time.Duration // how long ago
		plan   []string
	}{
		{"hosts before routes", []*Object{route, host}, nil, nil, time.Hour, []string{"apply ServiceEntry s"}},
		{"then routes", []*Object{route, host}, map[Key]*Found{key(ServiceEntry, "s"): found(ServiceEntry, "1", "1")}, nil, time.Hour, []string{"apply VirtualService r"}},
		{"as it is to be", []*Object{entry}, map[Key]*Found{key(WorkloadEntry, "w"): found(WorkloadEntry, "1", "1")}, nil, time.Hour, nil},
		{"another weight", []*Object{entry}, map[Key]*Found{key(WorkloadEntry, "w"): found(WorkloadEntry, "0", "0")}, nil, time.Hour, []string{"apply WorkloadEntry w"}},
		{"written half a second ago", []*Object{entry}, map[Key]*Found{key(WorkloadEntry, "w"): found(WorkloadEntry, "0", "0")},
			map[Key]*memory{key(WorkloadEntry, "w"): {written: now.Add(-500 * time.Millisecond)}}, time.Hour, nil},
		{"refused three times, 3 s ago", []*Object{entry}, nil,
			map[Key]*memory{key(WorkloadEntry, "w"): {written: now.Add(-3 * time.Second), failures: 3}}, time.Hour, nil},
		{"a write is under way", []*Object{entry}, nil, map[Key]*memory{key(WorkloadEntry, "w"): {busy: true}}, time.Hour, nil},
		{"edited by somebody", []*Object{entry}, map[Key]*Found{key(WorkloadEntry, "w"): {kind: WorkloadEntry, hash: "x", written: "1", by: "kubectl-edit"}}, nil, time.Hour,
			[]string{"restore WorkloadEntry w by kubectl-edit"}},
		{"deleted by somebody", []*Object{entry}, nil, map[Key]*memory{key(WorkloadEntry, "w"): {wrote: "1"}}, time.Hour,
			[]string{"apply WorkloadEntry w by somebody who deleted it"}},
		{"drained at once", []*Object{host}, map[Key]*Found{key(ServiceEntry, "s"): found(ServiceEntry, "1", "1"), key(WorkloadEntry, "w"): found(WorkloadEntry, "1", "1")}, nil, 0,
			[]string{"delete WorkloadEntry w"}},
		{"a model is gone: routes first", nil, map[Key]*Found{key(ServiceEntry, "s"): found(ServiceEntry, "1", "1"), key(WorkloadEntry, "w"): found(WorkloadEntry, "1", "1"), key(VirtualService, "r"): found(VirtualService, "1", "1")}, nil, time.Hour,
			[]string{"delete VirtualService r"}},
		{"routes are gone for a second", nil, map[Key]*Found{key(ServiceEntry, "s"): found(ServiceEntry, "1", "1")}, nil, time.Second, nil},
		{"routes are gone for long", nil, map[Key]*Found{key(ServiceEntry, "s"): found(ServiceEntry, "1", "1"), key(WorkloadEntry, "w"): found(WorkloadEntry, "1", "1")}, nil, time.Minute,
			[]string{"delete WorkloadEntry w", "delete ServiceEntry s"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := make(map[Key]*Object)
			for _, o := range tt.want {
				want[o.Key()] = o
			}
			got := planned(plan(now, want, tt.found, tt.done, now.Add(-tt.routed)))
			if diff := cmp.Diff(tt.plan, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestFit(t *testing.T) {
	all := Schemas{}
	err := ParseSchemas([]byte(`{"components":{"schemas":{"x":{
		"x-kubernetes-group-version-kind":[{"group":"networking.istio.io","version":"v1","kind":"DestinationRule"}],
		"properties":{"spec":{"properties":{"host":{},"exportTo":{"items":{}},"trafficPolicy":{"properties":{"loadBalancer":{"x-kubernetes-preserve-unknown-fields":true}}}}}}}}}}`), all)
	if err != nil {
		t.Fatal(err)
	}
	rule := func(policy map[string]any) *Object {
		return site.object(DestinationRule, "llm", "a", "a", map[string]any{"host": "a", "exportTo": []any{"b"}, "trafficPolicy": policy})
	}
	balancer := map[string]any{"simple": "ROUND_ROBIN"}
	if o, unknown := all.Fit(rule(map[string]any{"loadBalancer": balancer})); o == nil || unknown != nil {
		t.Errorf("a known object: %v, unknown %v", o, unknown)
	}
	o, unknown := all.Fit(rule(map[string]any{"loadBalancer": balancer, "retryBudget": map[string]any{"percent": 100}}))
	if o == nil || o.hash != rule(map[string]any{"loadBalancer": balancer}).hash || !cmp.Equal(unknown, []string{"spec.trafficPolicy.retryBudget"}) {
		t.Errorf("what can be left out: %v, unknown %v", o, unknown)
	}
	if o, unknown := all.Fit(rule(map[string]any{"tls": map[string]any{"mode": "DISABLE"}})); o != nil || !cmp.Equal(unknown, []string{"spec.trafficPolicy.tls"}) {
		t.Errorf("what can't be left out: %v, unknown %v", o, unknown)
	}
	if o, unknown := all.Fit(site.object(EnvoyFilter, "llm", "a", "", map[string]any{})); o != nil || !cmp.Equal(unknown, []string{"kind"}) {
		t.Errorf("a kind that is not there: %v, unknown %v", o, unknown)
	}
}

func TestSlugsAreNamesAndDiffer(t *testing.T) {
	seen := make(map[string]string)
	for _, m := range []string{"smollm2", "qwen2.5-7b", "Qwen2.5-7B", "org/model", "org-model", "Org/Model", "a..b", "-", "ü", strings.Repeat("x", 96), strings.Repeat("x", 95) + "y"} {
		s := slug(m)
		if len(s) > 63 || !dnsName.MatchString(s) {
			t.Errorf("slug(%q) = %q; must be part of a host's name", m, s)
		}
		if other, ok := seen[s]; ok {
			t.Errorf("slug(%q) = slug(%q)", m, other)
		}
		seen[s] = m
	}
}
