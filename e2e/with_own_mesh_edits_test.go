package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/obs"
	meshstatus "millrace.dev/millrace/internal/status"
	"millrace.dev/millrace/internal/wire"
)

// editSeed orders the edits of TestConfigurationIsEditedUnderLoad.
const editSeed = 8

// settings are what the file of the test says. Each edit changes some of them.
type settings struct {
	Weights                                  string
	Replicas, Slots, Queue, Context, Threads int
	Kind                                     string // of the backend
	Layout, Rewrites, Degrade                string
	Second                                   string // name of a second model; empty: none
	Explain                                  bool
	Retries, MaxBody, Idle, Wait, Tenants    int
	Timeout, Priority, Header, Cookie, Keys  string
	MaxPerTry, HedgeAfter, HedgeOthers       string
	Gateway, Reserve, DegradeAt, Key         string
}

// file is the text of settings. What is refused stands in a line of its own.
var file = template.Must(template.New("").Parse(`apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
spec:
  default: true
  replicas: {{.Replicas}}
  backend:
    kind: {{.Kind}}
    threads: {{.Threads}}
    contextTokens: {{.Context}}
    slots: {{.Slots}}
    queue: {{.Queue}}
  layout: {{.Layout}}
{{- if .Second}}
---
apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: {{.Second}}}
spec:
  weights: {{.Weights}}
  replicas: 1
{{- end}}
---
apiVersion: millrace.dev/v1alpha1
kind: Policy
metadata: {name: default}
spec:
  explain: {{.Explain}}
  retries:
    critical: 4
    standard: {{.Retries}}
    hedgeAfter: {{.HedgeAfter}}
    hedgeOthersAfter: {{.HedgeOthers}}
    maxPerTry: {{.MaxPerTry}}
  limits:
    maxBodyBytes: {{.MaxBody}}Mi
    requestTimeout: {{.Timeout}}
  priorities:
    default: {{.Priority}}
  sessions:
    header: {{.Header}}
    idle: {{.Idle}}m
    max: {{.Keys}}
    cookie:
      name: {{.Cookie}}
      keyFile: {{.Key}}
  flow:
    reserve: {{.Reserve}}
    degradeAt: {{.DegradeAt}}
    degrade: {{.Degrade}}
    gatewayTimeout: {{.Gateway}}
    maxWait:
      standard: {{.Wait}}s
    tenants:
      max: {{.Tenants}}
  rewrites: {{.Rewrites}}
`))

// firstSettings serve one model by two replicas.
func firstSettings(weights, key string) settings {
	return settings{
		Weights: weights, Replicas: 2, Slots: 4, Queue: 64, Context: 2048, Threads: 1, Kind: "llamacpp", Layout: "[{stages: 1}]", Rewrites: "[]", Degrade: "[]",
		Retries: 4, MaxBody: 16, Idle: 30, Wait: 20, Tenants: 100, Timeout: "10m", Priority: "standard", Header: "x-session-id",
		Cookie: "millrace-session", Keys: "1000", MaxPerTry: "0s", HedgeAfter: "0s", HedgeOthers: "2s", Gateway: "60s", Reserve: "0.1", DegradeAt: "0.5", Key: key,
	}
}

func (s settings) text(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	if err := file.Execute(&b, s); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// edit is one change of the file.
type edit struct {
	name   string
	change func(*settings)
	// bad is the line of the file that is refused, and field the path that is named;
	// empty: the edit is good.
	bad, field string
	// backends is how many backends are started by it.
	backends int
}

// refusals are edits of every class of fields that change nothing.
var refusals = []edit{
	{"kind of replicas", func(s *settings) { s.Replicas = -1 }, "replicas: -1", "spec.replicas", 0},
	{"more replicas than nodes", func(s *settings) { s.Replicas = 9 }, "replicas: 9", "spec.replicas", 0},
	{"kind of backend", func(s *settings) { s.Kind = "llama.cpp" }, "kind: llama.cpp", "spec.backend.kind", 0},
	{"slots", func(s *settings) { s.Slots = 0 }, "slots: 0", "spec.backend.slots", 0},
	{"context", func(s *settings) { s.Context = 7 }, "contextTokens: 7", "spec.backend.contextTokens", 0},
	{"queue", func(s *settings) { s.Queue = -3 }, "queue: -3", "spec.backend.queue", 0},
	{"layout", func(s *settings) { s.Layout = "[{stages: 2, shares: [1]}]" }, "layout: [{", "spec.layout[0].shares", 0},
	{"unknown field", func(s *settings) { s.Layout = "[{stagez: 1}]" }, "layout: [{", "spec.layout[0].stagez", 0},
	{"weights that are not there", func(s *settings) { s.Second, s.Weights = "bad", "/nowhere.gguf" }, "weights: /nowhere", "spec.weights", 0},
	{"retries", func(s *settings) { s.Retries = 99 }, "standard: 99", "spec.retries.standard", 0},
	{"limits", func(s *settings) { s.Timeout = "soon" }, "requestTimeout: soon", "spec.limits.requestTimeout", 0},
	{"priorities", func(s *settings) { s.Priority = "urgent" }, "default: urgent", "spec.priorities.default", 0},
	{"sessions", func(s *settings) { s.Header = `"not a header"` }, "header: \"not", "spec.sessions.header", 0},
	{"cookie's key", func(s *settings) { s.Key = "/nowhere.key" }, "keyFile: /nowhere", "spec.sessions.cookie.keyFile", 0},
	{"flow", func(s *settings) { s.Reserve = "7" }, "reserve: 7", "spec.flow.reserve", 0},
	{"rewrite to nobody", func(s *settings) { s.Rewrites = "[{model: x, to: [{model: nobody}]}]" }, "rewrites: [", "spec.rewrites[0].to[0].model", 0},
}

// admissions are edits that start no process.
var admissions = []edit{
	{"explain", func(s *settings) { s.Explain = !s.Explain }, "", "", 0},
	{"retries", func(s *settings) { s.Retries = 7 - s.Retries }, "", "", 0},
	{"limits", func(s *settings) { s.MaxBody, s.Timeout = 32, "5m" }, "", "", 0},
	{"sessions", func(s *settings) { s.Idle, s.Keys = 7, "500" }, "", "", 0},
	{"header of sessions", func(s *settings) { s.Header = "x-millrace-conversation" }, "", "", 0}, // changes the listener
	{"flow", func(s *settings) { s.Wait, s.Reserve, s.DegradeAt, s.Gateway, s.Tenants = 9, "0.2", "0.6", "50s", 50 }, "", "", 0},
	{"queue", func(s *settings) { s.Queue = 32 }, "", "", 0},
	{"rewrites", func(s *settings) { s.Rewrites = "[{model: chat, to: [{model: smollm2}]}]" }, "", "", 0},
	{"priorities", func(s *settings) { s.Priority = "critical" }, "", "", 0},
	{"maxPerTry", func(s *settings) { s.MaxPerTry = "60s" }, "", "", 0},
	{"hedgeAfter", func(s *settings) { s.HedgeAfter = "30s" }, "", "", 0},
	{"hedgeOthersAfter", func(s *settings) { s.HedgeOthers = "0s" }, "", "", 0},
}

// layouts are edits that start and end backends, in this order.
var layouts = []edit{
	{"a replica more", func(s *settings) { s.Replicas = 3 }, "", "", 1},
	{"a replica less", func(s *settings) { s.Replicas = 2 }, "", "", 0},
	{"slots", func(s *settings) { s.Slots = 2 }, "", "", 2},
	{"a second model", func(s *settings) { s.Second = "second" }, "", "", 1},
	{"another name", func(s *settings) { s.Second = "renamed" }, "", "", 1},
	{"one model", func(s *settings) { s.Second = "" }, "", "", 0},
	{"threads", func(s *settings) { s.Threads = 2 }, "", "", 2},
	{twoStages, func(s *settings) { s.Layout = "[{stages: 2}, {stages: 1}]" }, "", "", 1},
}

// twoStages is the edit that starts shards, too: one for each stage.
const twoStages = "two stages"

// edits returns the script: the layouts in their order, all else between them.
func edits() []edit {
	r := rand.New(rand.NewPCG(editSeed, 1))
	script := slices.Clone(layouts)
	for _, e := range slices.Concat(refusals, admissions) {
		script = slices.Insert(script, r.IntN(len(script)+1), e)
	}
	return script
}

// TestConfigurationIsEditedUnderLoad edits the file of a mesh 34 times under a
// steady load: no request fails, only the backends are started that an edit concerns,
// and what is refused is named by its line.
func TestConfigurationIsEditedUnderLoad(t *testing.T) {
	dir := t.TempDir()
	path, key := filepath.Join(dir, "mesh.yaml"), filepath.Join(dir, "cookie.key")
	now := firstSettings(rig.MustCached(t, rig.Weights), key)
	rig.Write(t, path, now.text(t))
	m := &edited{Mesh: rig.OwnMesh(t, "-config", path, "-nodes", "4"), path: path}
	load := m.StartLoad(t, 3)
	load.More(t, 5)
	began := time.Now()
	for i, e := range edits() {
		next := now
		e.change(&next)
		before, version := m.State(t).PIDs(), m.version(t)
		m.save(t, i, next.text(t))
		if e.bad == "" {
			m.accepted(t, e, version)
			now = next
		} else {
			m.refused(t, e, next.text(t), version)
		}
		m.started(t, e, before)
		load.More(t, 2)
		if failed := load.Failed(); len(failed) > 0 {
			t.Fatalf("edit %d, %s: %s", i, e.name, strings.Join(failed, "\n"))
		}
		if e.bad != "" { // undone, so that the next edit is judged for itself
			m.save(t, i, now.text(t))
			m.clean(t, e)
		}
	}
	load.MustAllSucceed(t)
	t.Logf("%d edits in %v: %v", len(edits()), time.Since(began).Round(time.Second), load)
}

// edited is a mesh whose configuration is edited.
type edited struct {
	*rig.Mesh
	path string
}

// save writes the file as editors do: by turns in place and as a new file.
func (m *edited) save(t *testing.T, i int, text string) {
	t.Helper()
	if i%2 == 0 {
		rig.Write(t, m.path, text)
	} else {
		rig.Replace(t, m.path, text)
	}
}

// report returns what `millrace status` says. It must call the mesh ready, unless there
// is a model that nobody serves yet.
func (m *edited) report() (r meshstatus.Report, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := m.Status(ctx, &r); err != nil {
		return r, err
	}
	starting := slices.ContainsFunc(r.Objects, func(o meshstatus.Object) bool { // or has just become ready
		return len(o.Replicas) > 0 && (o.ReadyReplicas == 0 || time.Since(o.Conditions[1].Since) < 2*time.Second)
	})
	switch {
	case r.Ready:
		return r, nil
	case starting:
		return r, errors.New("a model is starting")
	}
	return r, rig.Final(fmt.Errorf("status calls the mesh not ready: %+v", r.Objects))
}

// accepted waits until the file is in force and all is as desired.
func (m *edited) accepted(t *testing.T, e edit, before uint64) {
	t.Helper()
	rig.Wait(t, rig.BackLimit, e.name+" is in force", func() error {
		if now := m.version(t); now == before {
			return fmt.Errorf("version %d still", now)
		}
		r, err := m.report()
		if err != nil {
			return err
		}
		for _, o := range r.Objects {
			for _, c := range o.Conditions {
				if c.Status == (c.Type == "Progressing") {
					return fmt.Errorf("%s %s: %+v", o.Kind, o.Name, c)
				}
			}
		}
		return nil
	})
}

// version returns that of the desired state that xds has in force.
func (m *edited) version(t *testing.T) uint64 {
	t.Helper()
	v, err := m.Fleet(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return v.GetDesiredVersion()
}

// refused waits until status names the line and field, and nothing else has changed.
func (m *edited) refused(t *testing.T, e edit, text string, before uint64) {
	t.Helper()
	line := 1 + strings.Count(text[:strings.Index(text, e.bad)], "\n")
	want := fmt.Sprintf("%s:%d: %s: ", m.path, line, e.field)
	rig.Wait(t, rig.BackLimit, e.name+" is refused", func() error {
		r, err := m.report()
		if err != nil {
			return err
		}
		for _, c := range r.Conditions {
			if c.Code == wire.ConfigRefused && strings.HasPrefix(c.Text, want) {
				return nil
			}
		}
		return fmt.Errorf("no condition begins with %q: %v", want, r.Conditions)
	})
	r, err := m.report()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(r.Objects, func(o meshstatus.Object) bool {
		return slices.ContainsFunc(o.Conditions, func(c meshstatus.ObjectCondition) bool {
			return c.Type == "Accepted" && !c.Status && c.Field == e.field
		})
	}) {
		t.Errorf("%s: no object is refused for %s: %+v", e.name, e.field, r.Objects)
	}
	if now := m.version(t); now != before {
		t.Errorf("%s: version %d is in force, before it was %d", e.name, now, before)
	}
}

// clean waits until nothing is refused any more.
func (m *edited) clean(t *testing.T, e edit) {
	t.Helper()
	rig.Wait(t, rig.BackLimit, e.name+" is undone", func() error {
		r, err := m.report()
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(r.Conditions, func(c obs.Condition) bool { return c.Code == wire.ConfigRefused }); i >= 0 {
			return errors.New(r.Conditions[i].Text)
		}
		return nil
	})
}

// started checks which processes are others than before.
func (m *edited) started(t *testing.T, e edit, before map[string]int) {
	t.Helper()
	var began []string
	for name, pid := range m.State(t).PIDs() {
		if pid != before[name] && pid != 0 {
			began = append(began, name)
		}
	}
	slices.Sort(began)
	backends, shards := 0, 0
	for _, name := range began {
		switch {
		case strings.HasPrefix(name, "backend@"):
			backends++
		case strings.HasPrefix(name, "shard@") && e.name == twoStages:
			shards++
		default:
			t.Errorf("%s has started %s", e.name, name)
		}
	}
	if e.name == twoStages && shards != 2 {
		t.Errorf("%s has started %v, want 2 shards", e.name, began)
	}
	if backends != e.backends {
		t.Errorf("%s has started %v, want %d backends", e.name, began, e.backends)
	}
}
