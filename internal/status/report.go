// Package status is `millrace status`: one page that shows what is wrong with a
// mesh, and why.
//
// Called by the millrace command. Its one rule: what it could not find out it reports as
// unknown; it never shows an old figure as a new one.
package status

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/state"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// Report is all that is known of a mesh at one moment; `-json` prints it.
type Report struct {
	// Dir is the mesh's folder, Listen its address.
	Dir    string `json:"dir"`
	Listen string `json:"listen"`
	// Running is whether `millrace up` runs, Ready whether the mesh answers.
	Running bool `json:"running"`
	Ready   bool `json:"ready"`
	// Source says who reports the nodes: "xds", "engines" when xds does not
	// answer, or "none".
	Source string `json:"source"`
	// At is when the source knew this; AgeMillis how long ago that was.
	At        time.Time `json:"at"`
	AgeMillis int64     `json:"age_ms"`
	Nodes     []Node    `json:"nodes"`
	// Unplaced are replicas without a place on nodes.
	Unplaced []Unplaced `json:"unplaced,omitempty"`
	// Endpoints are run by somebody else, as xds probes them; empty if xds is away.
	Endpoints []Endpoint `json:"endpoints,omitempty"`
	// Processes are all of the mesh, as state.json has them.
	Processes []state.Process `json:"processes"`
	// Objects are those of the configuration, with what became of them.
	Objects []Object `json:"objects"`
	// Conditions are what is wrong, with the way out.
	Conditions []obs.Condition `json:"conditions"`
}

// Unplaced is a replica without a place on nodes.
type Unplaced struct {
	Replica string `json:"replica"`
	Model   string `json:"model"`
	Reason  string `json:"reason"`
	// Asleep is whether nothing is wrong with that: it gets a place when requests wait for it.
	Asleep bool `json:"asleep"`
}

// Node is one row of the fleet's table.
type Node struct {
	Node    string `json:"node"`
	Model   string `json:"model"`
	Replica string `json:"replica"`
	// Stage of Stages, from 1; 0 of 0 without an assignment.
	Stage  int `json:"stage"`
	Stages int `json:"stages"`
	// State is READY, SUSPECT or NOT_READY; Engine is the engine's own.
	State  string    `json:"state"`
	Engine string    `json:"engine"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	// Loading is whether the model is "loaded" there, "asleep" until somebody asks, "loading",
	// or "failed", which Reason explains; empty: none of these.
	Loading string `json:"loading,omitempty"`
	// Weight at Envoy; 0 is not in use, nil unknown.
	Weight  *uint32 `json:"weight"`
	Running uint32  `json:"running"`
	Waiting uint32  `json:"waiting"`
	// Limit is how many requests may run at a time; LimitWhy is why no more or less where that
	// follows the model's goal, else empty.
	Limit    uint32 `json:"limit"`
	LimitWhy string `json:"limit_why,omitempty"`
	// Decode and Prefill are tokens per second of one sequence, as measured.
	Decode  float64 `json:"decode_tokens_per_second"`
	Prefill float64 `json:"prefill_tokens_per_second"`
	// Capabilities are what its backend can do, nil unknown; Args are the arguments
	// that the configuration adds to its command.
	Capabilities *Capabilities `json:"capabilities,omitempty"`
	Args         []string      `json:"args,omitempty"`
	// InCache are the tokens that are known to be in the engine's caches now.
	InCache uint64 `json:"in_cache_tokens"`
	// Generated and Cached count tokens since the engine started.
	Generated uint64 `json:"generated_tokens"`
	Cached    uint64 `json:"cached_tokens"`
	// Device is the GPUs or the CPU with their load, for a person.
	Device string `json:"device"`
	// MemoryUsed is what the node's part takes (GPU: what is in use there);
	// MemoryTotal is what there is. Bytes.
	MemoryUsed  uint64 `json:"memory_used_bytes"`
	MemoryTotal uint64 `json:"memory_total_bytes"`
	// LastReport is when the node last reported to xds; zero if xds was not asked.
	LastReport time.Time `json:"last_report"`
	// Drain is how far the node is emptied; nil: it is in service, or xds was not asked.
	Drain *Drain `json:"drain,omitempty"`
	// Sole are models that only this node serves and that can't start elsewhere.
	Sole []string `json:"sole,omitempty"`
}

// Drain is how far a node is emptied.
type Drain struct {
	// Why it is drained, and whether a person asked for it, by millrace drain.
	Why    string `json:"why"`
	ByHand bool   `json:"by_hand"`
	// Done is whether nothing is left, and Since since when that is so, or not.
	Done  bool      `json:"done"`
	Since time.Time `json:"since"`
	// Requests that run or wait in engines that need the node.
	Requests int `json:"requests"`
	// CachedTokens are those of conversations in its engine's cache: their next turns go to
	// other replicas.
	CachedTokens uint64 `json:"cached_tokens"`
	// Waits is what has to happen first, Serves which models nobody else serves, Stays which
	// replicas are loaded there still, and get no requests.
	Waits  []string `json:"waits,omitempty"`
	Serves []string `json:"serves,omitempty"`
	Stays  []string `json:"stays,omitempty"`
	// Text is all of it in one sentence.
	Text string `json:"text"`
}

func drain(d *fleetpb.Drain) *Drain {
	if d == nil {
		return nil
	}
	return &Drain{
		Why: d.GetWhy(), ByHand: d.GetByHand(), Done: d.GetDone(), Since: d.GetSince().AsTime(), Requests: int(d.GetRequests()),
		CachedTokens: d.GetCachedTokens(), Waits: d.GetWaits(), Serves: d.GetServes(), Stays: d.GetStays(), Text: d.GetText(),
	}
}

// Capabilities are what a backend can do as it is run.
type Capabilities struct {
	// Kind is "llamacpp", "vllm" or "openai".
	Kind string `json:"kind"`
	// ContextTokens is the longest sequence; 0 unknown.
	ContextTokens uint32 `json:"context_tokens"`
	// Unknown is whether it is unknown what the server answers.
	Unknown    bool `json:"unknown,omitempty"`
	Embeddings bool `json:"embeddings"`
	Tools      bool `json:"tools"`
	LoRA       bool `json:"lora"`
	// TensorParallel, PipelineParallel and DataParallel are among how many ranks a
	// layer and the layers are split, and the model is copied.
	TensorParallel   uint32 `json:"tensor_parallel"`
	PipelineParallel uint32 `json:"pipeline_parallel"`
	DataParallel     uint32 `json:"data_parallel"`
	// KVSave is whether a conversation's KV cache can be saved, KVEvents whether the
	// backend publishes what is in it.
	KVSave   bool `json:"kv_save"`
	KVEvents bool `json:"kv_events"`
}

func capabilities(e *enginepb.Status) *Capabilities {
	c := e.GetCapabilities()
	if c == nil {
		return nil
	}
	return &Capabilities{
		Kind: strings.ToLower(e.GetAssignment().GetBackend().GetKind().String()), ContextTokens: c.GetContextTokens(),
		Unknown: c.GetUnknown(), Embeddings: c.GetEmbeddings(), Tools: c.GetTools(), LoRA: c.GetLora(),
		TensorParallel: c.GetTensorParallel(), PipelineParallel: c.GetPipelineParallel(), DataParallel: c.GetDataParallel(),
		KVSave: c.GetKvSave(), KVEvents: c.GetKvEvents(),
	}
}

// The values of Report.Source.
const (
	fromXDS     = "xds"
	fromEngines = "engines"
	fromNobody  = "none"
)

// build makes the report of what was learned. It does no I/O.
func build(s state.State, running bool, source string, view *fleetpb.FleetView, now time.Time) Report {
	r := Report{
		Dir: s.Dir, Listen: s.Listen, Running: running, Ready: s.Ready, Source: source, At: now,
		Nodes: []Node{}, Processes: s.Processes, Objects: objects(s, view), Conditions: []obs.Condition{},
	}
	if at := view.GetAt(); at != nil {
		r.At = at.AsTime()
		r.AgeMillis = max(0, now.Sub(r.At).Milliseconds())
	}
	for _, n := range view.GetNodes() {
		r.Nodes = append(r.Nodes, row(n, source == fromXDS))
	}
	place(r.Nodes, view)
	slices.SortFunc(r.Nodes, func(a, b Node) int { return cmp.Compare(a.Node, b.Node) })
	for _, u := range view.GetUnplaced() {
		r.Unplaced = append(r.Unplaced, Unplaced{Replica: u.GetReplica(), Model: u.GetModel(), Reason: u.GetReason(), Asleep: u.GetAsleep()})
	}
	for _, e := range view.GetEndpoints() {
		r.Endpoints = append(r.Endpoints, endpoint(e))
	}
	r.conditions(s, view)
	return r
}

// place fills in which replica a silent node belongs to, where the other nodes
// of the replica know.
func place(nodes []Node, view *fleetpb.FleetView) {
	for i := range nodes {
		n := &nodes[i]
		for _, v := range view.GetNodes() {
			a := v.GetReport().GetEngine().GetAssignment()
			at := slices.IndexFunc(a.GetStages(), func(s *enginepb.Stage) bool { return s.GetNode() == n.Node })
			if n.Replica == "" && at >= 0 {
				n.Model, n.Replica, n.Stage, n.Stages = a.GetModel(), a.GetReplica(), at+1, len(a.GetStages())
			}
		}
	}
}

func row(v *fleetpb.NodeView, weighed bool) Node {
	e := v.GetReport().GetEngine()
	a := e.GetAssignment()
	n := Node{
		Node: v.GetNode(), Model: a.GetModel(), Replica: a.GetReplica(), Stages: len(a.GetStages()),
		State: v.GetState().String(), Engine: e.GetState().String(), Reason: v.GetReason(),
		Running: e.GetLoad().GetRunning(), Waiting: e.GetLoad().GetWaiting(), Limit: e.GetLoad().GetSlots(), LimitWhy: e.GetLoad().GetLimit(),
		Decode: e.GetSpeed().GetDecode(), Prefill: e.GetSpeed().GetPrefill(), InCache: e.GetLoad().GetCachedTokens(),
		Generated: e.GetTotals().GetGeneratedTokens(), Cached: e.GetTotals().GetCachedTokens(),
	}
	n.Loading = loading(e)
	n.Capabilities, n.Args = capabilities(e), a.GetBackend().GetArgs()
	n.Drain, n.Sole = drain(v.GetDrain()), v.GetSole()
	if d := n.Drain; d != nil {
		n.Reason = map[bool]string{true: "drained: ", false: "draining: "}[d.Done] + d.Text
	}
	if n.Stages > 0 {
		n.Stage = int(a.GetStage()) + 1
	}
	if v.GetSince() != nil {
		n.Since = v.GetSince().AsTime()
	}
	if weighed {
		weight := v.GetWeight()
		n.Weight, n.LastReport = &weight, v.GetLastReport().AsTime()
	}
	n.device(v.GetReport().GetTelemetry(), e.GetProcesses())
	if wake := e.GetLoad().GetWake(); n.Reason == "" && n.State == ready && wake != nil {
		n.Reason = unloaded(n.Loading, wake.AsDuration())
	}
	if n.Reason == "" && n.State == ready && n.LimitWhy != "" {
		n.Reason = fmt.Sprintf("works on %d at a time, to keep its goal: %s", n.Limit, n.LimitWhy)
	}
	if n.Reason == "" && n.State != ready {
		n.Reason = cmp.Or(v.GetReport().GetEngineError(), e.GetReason())
	}
	return n
}

const ready = "READY"

// device describes what the node computes with.
func (n *Node) device(t *fleetpb.Telemetry, ps []*enginepb.Process) {
	for _, p := range ps {
		n.MemoryUsed += p.GetRssBytes()
	}
	n.MemoryTotal = t.GetMemoryTotalBytes()
	switch gpus := t.GetGpus(); {
	case len(gpus) > 0:
		n.gpus(gpus)
	case t == nil:
		n.Device = "?"
	default:
		n.Device = fmt.Sprintf("CPU ×%d %.0f%%", t.GetCpus(), 100*t.GetCpuUtilization())
	}
}

func (n *Node) gpus(gpus []*fleetpb.Gpu) {
	n.MemoryUsed, n.MemoryTotal = 0, 0
	var names []string
	var busy, hottest float64
	lost := 0
	for _, g := range gpus {
		n.MemoryUsed += g.GetMemoryUsedBytes()
		n.MemoryTotal += g.GetMemoryTotalBytes()
		busy += g.GetUtilization() / float64(len(gpus))
		hottest = max(hottest, g.GetTemperatureCelsius())
		if g.GetLost() {
			lost++
		}
		if !slices.Contains(names, g.GetName()) {
			names = append(names, g.GetName())
		}
	}
	n.Device = fmt.Sprintf("GPU ×%d %s %.0f%% %.0f°C", len(gpus), strings.Join(names, "+"), 100*busy, hottest)
	if lost > 0 {
		n.Device += fmt.Sprintf(", %d lost", lost)
	}
}

// conditions lists what is wrong: what xds says, and what shows from outside.
func (r *Report) conditions(s state.State, view *fleetpb.FleetView) {
	for _, c := range view.GetConditions() {
		r.add(c.GetCode(), c.GetText(), c.GetNext())
	}
	if !r.Running {
		r.add("down", "no mesh runs here: `millrace up` has ended", obs.Command("millrace", "up", "-dir", s.Dir))
		return
	}
	if s.Stale {
		r.add("state-stale", "state.json is out of date, because `millrace up` can't write it: whether the mesh is ready, and which processes were restarted, is not known",
			"free space in "+s.Dir+", or make it writable; the file is then written again within a second")
	}
	for _, f := range s.Faults {
		r.add(wire.ConfigRefused, f.Text, "correct the file; the previous configuration stays in force meanwhile")
	}
	if r.Source != fromXDS {
		r.add("xds-silent", "xds does not answer: the table comes from the engines themselves; Envoy continues with the last weights that it got",
			"check the process xds; log: "+logOf(s, "xds"))
	}
	for _, p := range s.Processes {
		r.process(s, p)
	}
	r.unheard(s)
}

func (r *Report) add(code, text, next string) {
	r.Conditions = append(r.Conditions, obs.Condition{Code: code, Text: text, Next: next})
}

func (r *Report) process(s state.State, p state.Process) {
	switch p.Status {
	case state.Stopped:
		r.add("stopped", fmt.Sprintf("%s (pid %d) is stopped by a signal", p.Name, p.PID), fmt.Sprintf("kill -CONT %d", p.PID))
	case state.Down:
		r.add("process-down", fmt.Sprintf("%s is down: %s; %d restarts so far", p.Name, p.Reason, p.Restarts), "it is restarted automatically; log: "+logOf(s, p.Name))
	}
}

// unheard finds nodes whose processes run but of which xds has no report.
func (r *Report) unheard(s state.State) {
	for _, p := range s.Processes {
		if p.Role != "engine" || slices.ContainsFunc(r.Nodes, func(n Node) bool { return n.Node == p.Node }) {
			continue
		}
		next := "check its nodeagent, which reports it; log: " + logOf(s, "nodeagent@"+p.Node)
		if r.Source != fromXDS {
			next = "its engine does not answer; log: " + logOf(s, p.Name)
		}
		r.add("node-silent", p.Node+" has not reported", next)
	}
}

func logOf(s state.State, name string) string { return obs.Quote(s.Logs + "/" + name + ".log") }
