package translate

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/desired"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
	"millrace.dev/millrace/xds/internal/fleet"
)

var update = flag.Bool("update", false, "rewrite testdata/*.json")

// full has everything that can be set.
func full(t *testing.T) (Site, *desired.State) {
	t.Helper()
	f, err := config.Parse("test.yaml", []byte(`
apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
spec: {weights: /models/smollm2.gguf, replicas: 2, layout: [{stages: 2}, {stages: 1}]}
---
apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: other}
spec: {weights: /models/other.gguf, tokenizer: /models/tokenizer.json, default: true}
---
apiVersion: millrace.dev/v1alpha1
kind: Policy
metadata: {name: default}
spec: {retries: {standard: 3, maxPerTry: 30s}, limits: {maxBodyBytes: 1Mi}, cors: {origins: [https://chat.example.com]}}
`))
	if err != nil {
		t.Fatal(err)
	}
	return Site{
		Gateway:   "127.0.0.1:8080",
		ExtProc:   []string{"127.0.0.1:9001", "127.0.0.1:9002"},
		AccessLog: "/var/log/access.log",
		Traces:    "collector:4317",
		HTTPS:     &HTTPS{Gateway: "0.0.0.0:8443", Cert: "/etc/public/tls.crt", Key: "/etc/public/tls.key"},
	}, desired.Next(nil, f, nil)
}

var keys = [][]byte{[]byte("0123456789abcdef")}

// snapshot has an endpoint of each kind.
func snapshot() *fleet.Snapshot {
	return &fleet.Snapshot{Endpoints: []fleet.Endpoint{
		{
			Address: "127.0.0.1:23001", Model: "smollm2", Replica: "smollm2-0", Nodes: []string{"node-a", "node-b"}, Zone: "rack-1",
			State: fleetpb.EndpointState_READY, Membership: fleet.Healthy, Weight: 1000, Health: 1, Epoch: 3,
			Load: &enginepb.Load{Running: 1, Slots: 4}, Speed: &enginepb.Speed{Prefill: 400, Decode: 50},
		},
		{
			Address: "127.0.0.1:23002", Model: "smollm2", Replica: "smollm2-1", Nodes: []string{"node-c"},
			State: fleetpb.EndpointState_NOT_READY, Reason: "node-c: its engine can't be heard: silent: 1 s", Membership: fleet.Unhealthy, Weight: 1,
		},
		{
			Address: "127.0.0.1:23003", Model: "smollm2", Replica: "smollm2-2", Nodes: []string{"node-d"},
			State: fleetpb.EndpointState_NOT_READY, Reason: "node-d: starting", Membership: fleet.Absent,
		},
		{ // claims the first one's address
			Address: "127.0.0.1:23001", Model: "smollm2", Replica: "smollm2-3", Nodes: []string{"node-e"},
			State: fleetpb.EndpointState_NOT_READY, Membership: fleet.Absent,
		},
	}}
}

// none is a state in which nothing is served.
func none() *desired.State {
	f := config.Default()
	f.Models = nil
	return desired.Next(nil, f, nil)
}

func TestGolden(t *testing.T) {
	site, state := full(t)
	static := func(s Site, d *desired.State, keys [][]byte) Resources {
		all, err := Static(s, d, keys)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	tests := map[string]Resources{
		"full":  static(site, state, keys),
		"bare":  static(Site{Gateway: "0.0.0.0:80"}, desired.Next(nil, config.Default(), nil), nil),
		"none":  static(Site{Gateway: "0.0.0.0:80", ExtProc: []string{"extproc.millrace.svc:7200"}}, none(), nil),
		"fleet": Fleet(state, snapshot()),
		"empty": Fleet(state, &fleet.Snapshot{}),
	}
	for name, all := range tests {
		t.Run(name, func(t *testing.T) {
			if faults := Faults(all); len(faults) > 0 {
				t.Errorf("Envoy's own rules: %v", faults)
			}
			golden(t, name, document(t, all))
		})
	}
}

// golden compares a document with the file of that name.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs; review it, then run with -update (-want +got):\n%s", path, diff)
	}
}

// document writes resources as JSON that is the same each time: protojson alone
// varies its spaces.
func document(t *testing.T, all Resources) []byte {
	t.Helper()
	out := map[string]map[string]json.RawMessage{}
	for typ, byName := range all {
		short := strings.TrimPrefix(typ, wire.TypePrefix)
		out[short] = map[string]json.RawMessage{}
		for name, m := range byName {
			b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			out[short][name] = b
		}
	}
	b, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, b, "", " "); err != nil {
		t.Fatal(err)
	}
	indented.WriteByte('\n')
	return indented.Bytes()
}

func TestTheSameInputGivesTheSameBytes(t *testing.T) {
	bytesOf := func() map[string]string {
		site, state := full(t)
		all, err := Static(site, state, keys)
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]string{}
		for typ, byName := range all {
			for name, m := range byName {
				b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
				if err != nil {
					t.Fatal(err)
				}
				found[typ+name] = string(b)
			}
		}
		return found
	}
	first := bytesOf()
	for range 20 {
		if !maps.Equal(first, bytesOf()) {
			t.Fatal("a restarted xds would push everything again")
		}
	}
}

func TestBadAddresses(t *testing.T) {
	tests := []struct {
		name string
		edit func(s *Site)
		want string
	}{
		{"gateway", func(s *Site) { s.Gateway = "nonsense" }, "gateway: address nonsense: missing port"},
		{"gateway port", func(s *Site) { s.Gateway = "a:99999" }, `port "99999"`},
		{"extproc", func(s *Site) { s.ExtProc = []string{"x"} }, "extproc: address x"},
		{"traces", func(s *Site) { s.Traces = "x" }, "traces: address x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, state := full(t)
			tt.edit(&s)
			if _, err := Static(s, state, keys); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Static() = %v, want …%s…", err, tt.want)
			}
		})
	}
}

func TestFaultsOfWhatIsPackedAreFound(t *testing.T) {
	site, state := full(t)
	all, err := Static(site, state, keys)
	if err != nil {
		t.Fatal(err)
	}
	c := engines("engines/x")
	c.LoadBalancingPolicy.Policies[0].TypedExtensionConfig.TypedConfig.TypeUrl = wire.TypePrefix + "nobody.knows.This"
	all[ClusterType]["engines/x"] = c
	faults := Faults(all)
	if len(faults) != 1 || faults[0].Kind != "Model" || faults[0].Name != "x" || !strings.Contains(faults[0].Text, `"engines/x"`) {
		t.Errorf("Faults() = %v, want the cluster's fault", faults)
	}
}

// TestWhatIsDesiredChangesNoListener goes through every setting but the names of
// headers: a listener that changes drains its connections.
func TestWhatIsDesiredChangesNoListener(t *testing.T) {
	site, _ := full(t)
	listenerOf := func(f config.File) proto.Message {
		all, err := Static(site, desired.Next(nil, f, nil), keys)
		if err != nil {
			t.Fatal(err)
		}
		return all[ListenerType][gatewayName]
	}
	first := listenerOf(config.Default())
	policy := func(edit func(*config.PolicySpec)) config.File {
		f := config.Default()
		edit(&f.Policy.Spec)
		return f
	}
	hour := config.Duration{Duration: time.Hour}
	for name, f := range map[string]config.File{
		"models":         {Models: append(config.Default().Models, config.Model{Metadata: config.Metadata{Name: "b"}}), Policy: config.Default().Policy},
		"maxBodyBytes":   policy(func(p *config.PolicySpec) { p.Limits.MaxBodyBytes = 1 << 30 }),
		"requestTimeout": policy(func(p *config.PolicySpec) { p.Limits.RequestTimeout = hour }),
		"gatewayTimeout": policy(func(p *config.PolicySpec) { p.Flow.GatewayTimeout = hour }),
		"retries": policy(func(p *config.PolicySpec) {
			p.Retries = config.Retries{Critical: 1, Standard: 2, Sheddable: 3, MaxPerTry: hour}
		}),
		"rewrites": policy(func(p *config.PolicySpec) {
			p.Rewrites = []config.Rewrite{{Model: "x", To: []config.RewriteTarget{{Model: "smollm2", Weight: 1}}}}
		}),
		"sessions": policy(func(p *config.PolicySpec) {
			p.Sessions = config.Sessions{Header: "x-chat", Cookie: config.Cookie{Name: "c"}, Idle: hour, Max: 7}
		}),
		"priorities": policy(func(p *config.PolicySpec) { p.Priorities.Default = "critical" }),
		"tenants": policy(func(p *config.PolicySpec) {
			p.Flow.Tenants = config.Tenants{Header: "x-tenant", RequestsPerMinute: 1, TokensPerMinute: 1, Max: 1}
		}),
		"explain": policy(func(p *config.PolicySpec) { p.Explain = true }),
	} {
		if diff := cmp.Diff(first, listenerOf(f), protocmp.Transform()); diff != "" {
			t.Errorf("%s changes the listener:\n%s", name, diff)
		}
	}
	if cmp.Equal(first, listenerOf(policy(func(p *config.PolicySpec) { p.Flow.Tenants.Header = "x-millrace-tenant" })), protocmp.Transform()) {
		t.Error("a header's name that begins like ours is removed")
	}
}

func TestExcept(t *testing.T) {
	names := []string{"x-millrace-priority", "X-Millrace-Prio", "x-session-id", "x-millrace-tier"}
	re := regexp.MustCompile("^(?:" + except("x-millrace-", names...) + ")$")
	kept := map[string]bool{"x-millrace-priority": true, "x-millrace-prio": true, "x-millrace-tier": true}
	tried := []string{
		"x-millrace-", "x-millrace-model", "x-millrace-p", "x-millrace-pri", "x-millrace-prior", "x-millrace-priority2",
		"x-millrace-prompt-tokens", "x-millrace-tie", "x-millrace-tiers", "x-millrace-t.er", "x-millrace-zzz",
	}
	for _, name := range append(tried, slices.Collect(maps.Keys(kept))...) {
		if got := re.MatchString(name); got == kept[name] {
			t.Errorf("%q removed: %v", name, got)
		}
	}
	if re.MatchString("x-session-id") {
		t.Error("another header is removed")
	}
}

// FuzzExcept compares the expression with the plain question that it stands for.
func FuzzExcept(f *testing.F) {
	f.Add("priority", "prio", "pri")
	f.Add("", "a", "ab")
	f.Add("a.b", "a", "axb")
	f.Fuzz(func(t *testing.T, one, two, asked string) {
		for _, s := range []string{one, two, asked} {
			if !regexp.MustCompile(`^[!-~]{0,128}$`).MatchString(s) || s != strings.ToLower(s) {
				return // no header's name, or a longer one than a policy may have
			}
		}
		re := regexp.MustCompile("^(?:" + except("x-", "x-"+one, "x-"+two) + ")$")
		if want := asked != one && asked != two; re.MatchString("x-"+asked) != want {
			t.Errorf("except(%q, %q) takes %q: %v, want %v", one, two, asked, !want, want)
		}
	})
}

func TestSeconds(t *testing.T) {
	for s, want := range map[float64]time.Duration{0: 0, 0.25: 250 * time.Millisecond, 0.8: 800 * time.Millisecond, 30: 30 * time.Second} {
		if got := seconds(s).AsDuration(); got != want {
			t.Errorf("seconds(%v) = %v", s, got)
		}
	}
}

func TestModelsListTheNamesThatClientsMayUse(t *testing.T) {
	f := config.File{Models: []config.Model{{Metadata: config.Metadata{Name: "a"}}, {Metadata: config.Metadata{Name: "b"}}}}
	f.Policy.Spec.Rewrites = []config.Rewrite{{Model: "b"}, {Model: "chat"}}
	if diff := cmp.Diff([]string{"a", "b", "chat"}, modelNames(desired.Next(nil, f, nil))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEveryErrorStatusHasAReply(t *testing.T) {
	for code := uint32(400); code < 600; code++ {
		i := slices.IndexFunc(errorReplies, func(r reply) bool { return r.from <= code && code < r.below })
		if i < 0 {
			t.Errorf("status %d has no reply", code)
		}
	}
}
