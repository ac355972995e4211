// Package config reads the configuration of a fleet: YAML objects of
// apiVersion millrace.dev/v1alpha1 (Model, Policy and Endpoints), the very schema that the
// CRDs carry. It is for every program with a -config flag. Fleet is the file of
// `extproc -fleet`, in the same spirit.
//
// Its one rule: everything works without a file, and a file with faults is
// refused whole, with all of its faults at once, each by line and path.
//
// The CRDs are generated from these types (internal/kubeapi): a marker says to an API
// server what validate says here, and a test has both judge the same objects.
//
// +kubebuilder:validation:Optional
package config

import (
	"millrace.dev/millrace/internal/backends"
	"path/filepath"
	"strconv"
	"time"

	"millrace.dev/millrace/internal/wire"
)

// APIVersion is the only version of the objects that this program knows.
const APIVersion = "millrace.dev/v1alpha1"

// Kinds of objects.
const (
	KindModel     = "Model"
	KindPolicy    = "Policy"
	KindEndpoints = "Endpoints"
)

// DefaultModel is the id of the model that set-up fetches; the only one that
// may leave its weights unnamed.
const DefaultModel = "smollm2"

// When a model is loaded.
const (
	LoadAlways   = "always"
	LoadOnDemand = "onDemand"
)

// Kinds of backends.
const (
	LlamaCpp = backends.LlamaCpp
	VLLM     = backends.VLLM
	OpenAI   = backends.OpenAI
)

// File is all that a configuration says. A File from this package is complete:
// at least one model, exactly one of them the default, every default filled in.
type File struct {
	// Models in the order of the file, and behind them those that only Endpoints name.
	Models []Model
	// Endpoints are engines that are run by somebody else, in the order of the file.
	Endpoints []Endpoints
	// Policy for all requests.
	Policy Policy
}

// Metadata names an object.
type Metadata struct {
	// Name of the object, unique among those of its kind. A model's name is its
	// id in the API: lower-case letters, digits, "-" and ".", at most 63. A
	// policy's name is "default".
	Name string `json:"name"`
}

// Model is one model that the fleet serves.
type Model struct {
	// APIVersion is "millrace.dev/v1alpha1".
	APIVersion string `json:"apiVersion"`
	// Kind is "Model".
	Kind string `json:"kind"`
	// Metadata names the model.
	Metadata Metadata `json:"metadata"`
	// Spec is what the model is to be.
	Spec ModelSpec `json:"spec"`
}

// ModelSpec says which weights a model has and how it is laid out.
//
// +kubebuilder:object:generate=true
// +millrace:rule:at="weights",when="self.backend.kind == 'openai' && !(has(self.replicas) && self.replicas == 0)",holds="self.weights.size() == 0",shows="quoted",words="must be left out: the server is external, and so are its weights"
// +millrace:rule:at="load",when="self.backend.kind == 'openai'",holds="self.load != 'onDemand'",shows="quoted",words="must be always: nothing is loaded here, the server is external"
// +millrace:rule:at="layout",when="has(self.replicas) && self.replicas >= 1 && !(has(self.scaling) && self.scaling.mode == 'auto')",holds="self.layout.size() <= self.replicas",shows="{string(self.layout.size())} entries",words="must be ≤ {string(self.replicas)}, the number of replicas"
// +millrace:rule:at="layout",when="has(self.scaling) && self.scaling.mode == 'auto' && has(self.scaling.maxReplicas)",holds="self.layout.size() <= self.scaling.maxReplicas",shows="{string(self.layout.size())} entries",words="must be ≤ {string(self.scaling.maxReplicas)}, the number of replicas"
// +millrace:rule:at="load",when="has(self.scaling) && self.scaling.mode == 'auto'",holds="self.load != 'onDemand'",shows="quoted",words="must be always where scaling.mode is auto: who is loaded on demand gets its place by turns"
// +millrace:rule:at="layout",when="self.backend.kind == 'vllm'",holds="self.layout.all(l, l.stages <= 1)",shows="[{string(self.layout.map(l, l.stages > 1).indexOf(true))}].stages: {string(self.layout.filter(l, l.stages > 1)[0].stages)}",words="must be 1: a vllm replica is on one node; split it there by backend.tensorParallel or backend.pipelineParallel"
// +millrace:rule:at="layout",when="self.backend.kind == 'openai'",holds="self.layout.all(l, l.stages <= 1)",shows="[{string(self.layout.map(l, l.stages > 1).indexOf(true))}].stages: {string(self.layout.filter(l, l.stages > 1)[0].stages)}",words="must be 1: nodes can't share an external server"
type ModelSpec struct {
	// Weights is the path of a GGUF file on the nodes, of a folder for a backend of
	// kind "vllm", and must be left out for kind "openai"; a relative one starts at
	// the folder of the file that names it. Empty: the model that set-up fetches,
	// only for the model named "smollm2" on llamacpp.
	// +kubebuilder:validation:MaxLength=4096
	Weights string `json:"weights,omitempty"`
	// Tokenizer is the path of a GGUF or tokenizer.json file. Empty: Weights, or
	// the tokenizer.json in it; tokens are estimated where there is neither.
	// +kubebuilder:validation:MaxLength=4096
	Tokenizer string `json:"tokenizer,omitempty"`
	// TemplateArgs is the JSON of the arguments that its engines give the chat template by
	// default, such as '{"enable_thinking": false}': what spec.backend.args has for vLLM's
	// --default-chat-template-kwargs is to be here, too. An endpoint's own win, and a request's
	// chat_template_kwargs over both. Default: none.
	// +millrace:form:name=templateArgs,optional=true
	TemplateArgs string `json:"templateArgs,omitempty"`
	// Default is whether requests that name no model go to this one. Without
	// any, the first model of the file is.
	Default bool `json:"default,omitempty"`
	// Backend is how the inference engine is run.
	// +kubebuilder:default={}
	Backend Backend `json:"backend"`
	// Replicas is how many copies of the model run, 0 to 1024; with 0 only Endpoints
	// serve it. Default: as many as Layout has entries. Set it where something else, such
	// as an autoscaler, is to change it.
	// +millrace:between:least="0",most="1024"
	Replicas int `json:"replicas"`
	// Layout is how each replica lies on the nodes: entry i is for replica i,
	// the last one for all further replicas. At most 128 entries. Default: xds plans where
	// replicas of kind "llamacpp" lie that are always loaded, in how many stages, by the memory
	// and speed of the nodes that there are; any other has one stage.
	// +kubebuilder:validation:MaxItems=128
	// +listType=atomic
	Layout []Layout `json:"layout,omitempty"`
	// Load is when the model is loaded: "always" at the start, which proves it and measures how
	// long that takes, or "onDemand" by the first request, which waits. Default "always"; of kind
	// "openai" nothing is loaded here, and it is the only one.
	// +kubebuilder:default=always
	// +millrace:oneOf:values={always,onDemand}
	Load string `json:"load"`
	// KeepAlive is how long a replica keeps the model loaded without requests, 0s to 720h; less
	// than a second counts as one. Then its memory is freed, and the next request waits until it
	// is loaded again. Of kind "openai" nothing is loaded here. Default 0s: for ever.
	// +kubebuilder:default="0s"
	// +millrace:lasts:least="0s",most="720h"
	KeepAlive Duration `json:"keepAlive"`
	// Goal is how long answers may take: each replica works on as many requests at a time as
	// can keep it, at most backend.slots, and lets the others wait, the more urgent first.
	// Of kind "openai" it counts what went through the engine. Default: none; then it works on
	// backend.slots.
	// +kubebuilder:default={}
	Goal Goal `json:"goal"`
	// Scaling is how the number of replicas follows demand (manifests/scaling.md). Default: it
	// does not, spec.replicas holds.
	Scaling Scaling `json:"scaling,omitzero"`
	// Implied is whether there is no object of it: Endpoints serve it.
	Implied bool `json:"-"`
}

// Planned reports whether xds plans how the replicas lie on nodes: nobody has written it, and
// they are always loaded.
func (s ModelSpec) Planned() bool {
	return len(s.Layout) == 0 && s.Backend.Kind == LlamaCpp && s.Load != LoadOnDemand
}

// Rests reports whether replicas may have the model unloaded while nobody asks for it.
func (s ModelSpec) Rests() bool {
	return s.Backend.Kind != OpenAI && (s.Load == LoadOnDemand || s.KeepAlive.Duration > 0)
}

// Goal is how long answers may take.
//
// +kubebuilder:object:generate=true
type Goal struct {
	// FirstToken is how long the first token may take, the wait in the engine's queue included,
	// 0s to 10m. Default 0s: as long as it will.
	// +kubebuilder:default="0s"
	// +millrace:lasts:least="0s",most="10m"
	FirstToken Duration `json:"firstToken"`
	// Token is how long each token after it may take, 0s to 10m. Default 0s: as long as it will.
	// +kubebuilder:default="0s"
	// +millrace:lasts:least="0s",most="10m"
	Token Duration `json:"token"`
}

// Backend is how the inference engine of a model is run, on every node alike.
//
// +kubebuilder:object:generate=true
// +millrace:rule:at="contextTokens",when="self.kind in ['llamacpp', 'vllm'] || self.kind == 'openai' && self.contextTokens != 0",holds="self.contextTokens >= 128",shows="{string(self.contextTokens)}",words="must be ≥ 128"
// +millrace:rule:at="contextTokens",when="self.kind in ['llamacpp', 'vllm'] || self.kind == 'openai' && self.contextTokens != 0",holds="self.contextTokens <= 16777216",shows="{string(self.contextTokens)}",words="must be ≤ 16777216"
// +millrace:rule:at="tensorParallel",when="self.kind == 'llamacpp'",holds="self.tensorParallel in [0, 1]",shows="{string(self.tensorParallel)}",words="must be 1: llamacpp splits layers over nodes: layout.stages, or choose kind vllm"
// +millrace:rule:at="pipelineParallel",when="self.kind == 'llamacpp'",holds="self.pipelineParallel in [0, 1]",shows="{string(self.pipelineParallel)}",words="must be 1: llamacpp splits layers over nodes: layout.stages"
// +millrace:rule:at="dataParallel",when="self.kind == 'llamacpp'",holds="self.dataParallel in [0, 1]",shows="{string(self.dataParallel)}",words="must be 1: ask for more replicas"
// +millrace:rule:at="args",when="self.kind == 'llamacpp'",holds="self.args.size() == 0",shows="{string(self.args.size())} arguments",words="must be left out: llamacpp's binding has no command line"
// +millrace:rule:at="url",when="self.kind == 'llamacpp'",holds="self.url.size() == 0",words="must be left out: llamacpp is started by engine; choose kind openai for a server that runs already"
// +millrace:rule:at="model",when="self.kind == 'llamacpp'",holds="self.model.size() == 0",shows="quoted",words="must be left out: llamacpp serves the model by its own name"
// +millrace:rule:at="tensorParallel",when="self.kind == 'vllm'",holds="self.tensorParallel >= 0",shows="{string(self.tensorParallel)}",words="must be ≥ 1"
// +millrace:rule:at="tensorParallel",when="self.kind == 'vllm'",holds="self.tensorParallel <= 1024",shows="{string(self.tensorParallel)}",words="must be ≤ 1024"
// +millrace:rule:at="pipelineParallel",when="self.kind == 'vllm'",holds="self.pipelineParallel >= 0",shows="{string(self.pipelineParallel)}",words="must be ≥ 1"
// +millrace:rule:at="pipelineParallel",when="self.kind == 'vllm'",holds="self.pipelineParallel <= 1024",shows="{string(self.pipelineParallel)}",words="must be ≤ 1024"
// +millrace:rule:at="dataParallel",when="self.kind == 'vllm'",holds="self.dataParallel >= 0",shows="{string(self.dataParallel)}",words="must be ≥ 1"
// +millrace:rule:at="dataParallel",when="self.kind == 'vllm'",holds="self.dataParallel <= 1024",shows="{string(self.dataParallel)}",words="must be ≤ 1024"
// +millrace:rule:at="args",when="self.kind == 'vllm'",holds="self.args.size() == 0 || self.args[0].startsWith('-')",shows="[0]: {strings.quote(self.args[0].size() > 80 ? self.args[0].substring(0, 80) : self.args[0])}",words="must begin with an argument's name, such as --dtype"
// +millrace:rule:at="url",when="self.kind == 'vllm'",holds="self.url.size() == 0",words="must be left out: vllm is started by engine; choose kind openai for a server that runs already"
// +millrace:rule:at="model",when="self.kind == 'vllm'",holds="self.model.size() == 0",shows="quoted",words="must be left out: vllm serves the model by its own name"
// +millrace:rule:at="tensorParallel",when="self.kind == 'openai'",holds="self.tensorParallel in [0, 1]",shows="{string(self.tensorParallel)}",words="must be 1: the server is external"
// +millrace:rule:at="pipelineParallel",when="self.kind == 'openai'",holds="self.pipelineParallel in [0, 1]",shows="{string(self.pipelineParallel)}",words="must be 1: the server is external"
// +millrace:rule:at="dataParallel",when="self.kind == 'openai'",holds="self.dataParallel in [0, 1]",shows="{string(self.dataParallel)}",words="must be 1: the server is external"
// +millrace:rule:at="args",when="self.kind == 'openai'",holds="self.args.size() == 0",shows="{string(self.args.size())} arguments",words="must be left out: nothing is started, the server is external"
// +millrace:rule:at="url",missing=true,when="has(self.kind) && self.kind == 'openai'",holds="has(self.url) && self.url.size() > 0",words="missing; must be a URL such as http://10.0.0.7:8000"
type Backend struct {
	// Kind is "llamacpp", "vllm" or "openai", an external server.
	// Default "llamacpp".
	// +kubebuilder:default=llamacpp
	// +millrace:oneOf:values={llamacpp,vllm,openai}
	Kind string `json:"kind"`
	// ContextTokens is the context of one sequence, 128 to 16777216 tokens.
	// Default 4096; of kind "openai" 0, which is not known.
	ContextTokens int `json:"contextTokens"`
	// Slots is how many sequences are decoded at the same time, 1 to 1024.
	// Default 4.
	// +kubebuilder:default=4
	// +millrace:between:least="1",most="1024"
	Slots int `json:"slots"`
	// Threads is the number of CPU threads of each backend process, 1 to 1024.
	// Default 1.
	// +kubebuilder:default=1
	// +millrace:between:least="1",most="1024"
	Threads int `json:"threads"`
	// Queue is how many requests may wait for a slot, 0 to 65536; one more is
	// refused with 429. Default 64.
	// +kubebuilder:default=64
	// +millrace:between:least="0",most="65536"
	Queue int `json:"queue"`
	// TensorParallel is among how many ranks of its node a "vllm" splits each layer,
	// 1 to 1024. Default 1.
	TensorParallel int `json:"tensorParallel,omitempty"`
	// PipelineParallel is among how many ranks of its node a "vllm" splits the layers,
	// 1 to 1024. Default 1.
	PipelineParallel int `json:"pipelineParallel,omitempty"`
	// DataParallel is on how many ranks of its node a "vllm" has the model, 1 to 1024.
	// Default 1.
	DataParallel int `json:"dataParallel,omitempty"`
	// Args are more arguments of a "vllm"'s command, such as [--dtype, float32].
	// What engine sets itself is refused. At most 128.
	// +kubebuilder:validation:MaxItems=128
	// +listType=atomic
	// +kubebuilder:validation:items:MaxLength=2048
	// +millrace:each:vllmArgument:of="millrace.dev/millrace/internal/backends"
	Args []string `json:"args,omitempty"`
	// URL is where the server of kind "openai" is, such as http://10.0.0.7:8000.
	// +millrace:form:name=URL,of="millrace.dev/millrace/internal/backends",optional=true,hidden=true,also="isURL(self)"
	URL string `json:"url,omitempty"`
	// Model is the model's id at that server. Default: the model's name.
	// +millrace:form:name=Model,of="millrace.dev/millrace/internal/backends"
	Model string `json:"model,omitempty"`
}

// Layout is how one replica lies on the nodes.
//
// +kubebuilder:object:generate=true
// +millrace:rule:at="shares",holds="self.shares.size() in [0, self.stages]",shows="{string(self.shares.size())} entries",words="must be {string(self.stages)}, one a stage"
// +millrace:rule:at="nodes",holds="self.nodes.size() in [0, self.stages]",shows="{string(self.nodes.size())} entries",words="must be {string(self.stages)}, one a stage"
type Layout struct {
	// Stages is how many nodes share the layers, 1 to 256. Default 1.
	// +kubebuilder:default=1
	// +millrace:between:least="1",most="256"
	Stages int `json:"stages"`
	// Shares is the relative number of layers of each stage, each > 0; they
	// need not add up to anything. Empty: equal shares.
	// +kubebuilder:validation:MaxItems=256
	// +listType=atomic
	// +millrace:each:rule:holds="self > 0.0 && self <= 1000000.0",shows="{string(self)}",words="must be > 0 and ≤ 1000000"
	Shares []float32 `json:"shares,omitempty"`
	// Nodes names the node of each stage, all different. Empty: any nodes.
	// +kubebuilder:validation:MaxItems=256
	// +listType=set
	// +millrace:each:form:name=nodeName
	Nodes []string `json:"nodes,omitempty"`
}

// Policy is the rules for requests, one for the whole fleet.
type Policy struct {
	// APIVersion is "millrace.dev/v1alpha1".
	APIVersion string `json:"apiVersion"`
	// Kind is "Policy".
	Kind string `json:"kind"`
	// Metadata names the policy: "default".
	Metadata Metadata `json:"metadata"`
	// Spec is the rules.
	Spec PolicySpec `json:"spec"`
}

// PolicySpec is the rules for requests.
//
// +kubebuilder:object:generate=true
type PolicySpec struct {
	// Sessions is how conversations are recognised and remembered.
	// +kubebuilder:default={}
	Sessions Sessions `json:"sessions"`
	// Retries is how often a request is tried.
	// +kubebuilder:default={}
	Retries Retries `json:"retries"`
	// Priorities is how a request says what it is worth.
	// +kubebuilder:default={}
	Priorities Priorities `json:"priorities"`
	// Limits bounds what one request may cost.
	// +kubebuilder:default={}
	Limits Limits `json:"limits"`
	// Explain is whether a request with "x-millrace-debug: 1" gets to know why it went
	// where it went, in the answer's header x-millrace-decision: it has the addresses
	// of the engines. Default false.
	Explain bool `json:"explain,omitempty"`
	// Rewrites let other models serve requests for a name, at most 512. Default: none.
	// +kubebuilder:validation:MaxItems=512
	// +listType=map
	// +listMapKey=model
	Rewrites []Rewrite `json:"rewrites,omitempty"`
	// Flow is what happens when all endpoints of a model are busy, and what each
	// tenant may use.
	// +kubebuilder:default={}
	Flow Flow `json:"flow"`
	// PathPrefixes are what the API's paths may have in front of them, at most 16: with
	// /llm, /llm/v1/chat/completions is what /v1/chat/completions is. Default: none.
	// +kubebuilder:validation:MaxItems=16
	// +listType=atomic
	// +millrace:each:form:name=pathPrefix
	// +millrace:once
	PathPrefixes []string `json:"pathPrefixes,omitempty"`
	// CORS is which web pages may ask from a browser.
	// +kubebuilder:default={}
	CORS CORS `json:"cors"`
	// Istio is which Envoys of an Istio mesh route to the engines themselves.
	// +kubebuilder:default={}
	Istio Istio `json:"istio"`
}

// Sessions is how conversations are recognised and remembered.
type Sessions struct {
	// Header names a request's session. Default "x-session-id".
	// +kubebuilder:default="x-session-id"
	// +millrace:form:name=headerName
	Header string `json:"header"`
	// Cookie is for clients that send no such header.
	// +kubebuilder:default={}
	Cookie Cookie `json:"cookie"`
	// Idle is how long a session without requests is remembered, 1s to 720h.
	// Default 30m.
	// +kubebuilder:default="30m"
	// +millrace:lasts:least="1s",most="720h"
	Idle Duration `json:"idle"`
	// Max is how many sessions are remembered at most, 1 to 10000000; the one
	// idle for longest is forgotten. Default 100000.
	// +kubebuilder:default=100000
	// +millrace:between:least="1",most="10000000"
	Max int `json:"max"`
}

// Cookie is the signed session cookie.
type Cookie struct {
	// Name of the cookie; "" sets and reads none. Default "millrace-session".
	// +kubebuilder:default="millrace-session"
	// +millrace:form:name=cookieName
	Name string `json:"name"`
	// KeyFile is the path of a file whose bytes (16 to 256) sign the cookie; a
	// relative one starts at the folder of the file that names it. Empty: xds
	// makes a key that lives as long as xds does.
	// +kubebuilder:validation:MaxLength=4096
	KeyFile string `json:"keyFile,omitempty"`
}

// Retries is how often a request is tried in all, each time on another node,
// 1 (no retry) to 16, by the request's priority.
type Retries struct {
	// Critical attempts. Default 4.
	// +kubebuilder:default=4
	// +millrace:between:least="1",most="16"
	Critical int `json:"critical"`
	// Standard attempts. Default 4.
	// +kubebuilder:default=4
	// +millrace:between:least="1",most="16"
	Standard int `json:"standard"`
	// Sheddable attempts. Default 2.
	// +kubebuilder:default=2
	// +millrace:between:least="1",most="16"
	Sheddable int `json:"sheddable"`
	// MaxPerTry is how long one attempt may wait for response headers, which a
	// response that is not streamed sends only when it is complete. Default 0s:
	// as long as the request itself may take.
	// +kubebuilder:default="0s"
	// +millrace:lasts:least="0s",most="24h"
	MaxPerTry Duration `json:"maxPerTry"`
	// HedgeAfter is how long an attempt is waited for, at least, before the next endpoint is
	// asked, too; whoever answers first counts. It is four times as long as was predicted
	// if that is more, and 30 s or 2 min where no speed is known. An answer that has begun is
	// not cut by it. 0s: never, and never beside maxPerTry. Default 0s, as engines of ours
	// that hang are found by their connections; in a fleet's file 2s. See HedgeOthersAfter.
	// +kubebuilder:default="0s"
	// +millrace:lasts:least="0s",most="1h"
	HedgeAfter Duration `json:"hedgeAfter"`
	// HedgeOthersAfter is the same for attempts at endpoints that others run (Endpoints), where
	// HedgeAfter is 0s: they speak HTTP/1.1, which has no pings that would find one that hangs.
	// Not in a fleet's file. 0s: never. Default 2s.
	// +kubebuilder:default="2s"
	// +millrace:lasts:least="0s",most="1h"
	HedgeOthersAfter Duration `json:"hedgeOthersAfter"`
}

// Attempts returns how often a request of the given priority is tried in all;
// an unknown priority counts as standard.
func (r Retries) Attempts(priority string) int {
	switch priority {
	case wire.Critical:
		return r.Critical
	case wire.Sheddable:
		return r.Sheddable
	default:
		return r.Standard
	}
}

// Priorities is how a request says what it is worth.
type Priorities struct {
	// Header holds a request's priority. Default "x-millrace-priority".
	// +kubebuilder:default="x-millrace-priority"
	// +millrace:form:name=headerName
	Header string `json:"header"`
	// Default is the priority of a request that names none: "critical",
	// "standard" or "sheddable". Default "standard".
	// +kubebuilder:default=standard
	// +millrace:oneOf:values={critical,standard,sheddable}
	Default string `json:"default"`
}

// Limits bounds what one request may cost.
type Limits struct {
	// MaxBodyBytes is the largest request body, 1Ki to 1Gi; a larger one is
	// answered with 413. Default 16Mi.
	// +kubebuilder:default="16Mi"
	// +millrace:size:least=1Ki,most=1Gi
	MaxBodyBytes Bytes `json:"maxBodyBytes"`
	// MaxBytesInFlight is the most bytes of request bodies that Envoy and an extproc hold at a
	// time, 1Mi to 64Gi: from a request's headers until its answer begins, and while it waits
	// in the queue. A body that has no room is answered with 503, at its headers. Extproc
	// takes twice, Envoy three times as much memory for them. Default 256Mi.
	// +kubebuilder:default="256Mi"
	// +millrace:size:least=1Mi,most=64Gi
	MaxBytesInFlight Bytes `json:"maxBytesInFlight"`
	// RequestTimeout is how long a request may take once it has come in whole, retries
	// included, 1s to 24h; its body may come in for ten minutes. A backend that is to be
	// changed waits as long for running requests. Default 10m.
	// +kubebuilder:default="10m"
	// +millrace:lasts:least="1s",most="24h"
	RequestTimeout Duration `json:"requestTimeout"`
}

// Default returns the configuration that holds without any file: the model that
// set-up fetches, once sharded over two nodes and once whole on a third.
func Default() File {
	m := newModel()
	m.Metadata.Name = DefaultModel
	m.Spec.Default = true
	m.Spec.Replicas = 2
	m.Spec.Layout = []Layout{{Stages: 2, Shares: []float32{1, 1}}, {Stages: 1}}
	return File{Models: []Model{m}, Policy: newPolicy()}
}

// NewModel returns a model with the defaults.
func NewModel(name string) Model {
	m := newModel()
	m.Metadata.Name, m.Spec.Replicas = name, 1
	return m
}

// IsModelName reports whether a model may have the name.
func IsModelName(name string) bool { return modelName.fits(name) }

// newModel returns a model of which only the name is missing.
func newModel() Model {
	return Model{
		APIVersion: APIVersion,
		Kind:       KindModel,
		Spec: ModelSpec{
			Load:    LoadAlways,
			Backend: Backend{Kind: LlamaCpp, ContextTokens: 4096, Slots: 4, Threads: 1, Queue: 64},
		},
	}
}

func newPolicy() Policy {
	return Policy{
		APIVersion: APIVersion,
		Kind:       KindPolicy,
		Metadata:   Metadata{Name: "default"},
		Spec: PolicySpec{
			Sessions: Sessions{
				Header: wire.SessionHeader,
				Cookie: Cookie{Name: "millrace-session"},
				Idle:   Duration{30 * time.Minute},
				Max:    100_000,
			},
			Retries:    Retries{Critical: 4, Standard: 4, Sheddable: 2, HedgeOthersAfter: Duration{hedgeOthers}},
			Priorities: Priorities{Header: wire.PriorityHeader, Default: wire.Standard},
			Limits:     Limits{MaxBodyBytes: 16 << 20, MaxBytesInFlight: 256 << 20, RequestTimeout: Duration{10 * time.Minute}},
			Flow:       newFlow(),
			CORS:       CORS{MaxAge: Duration{10 * time.Minute}},
			Istio:      Istio{TLS: TLSNone},
		},
	}
}

// TokenizerFile returns the file with the model's tokenizer: Tokenizer, or what
// there is of one in Weights where that is empty; "": none is known.
func (s ModelSpec) TokenizerFile() string {
	switch {
	case s.Tokenizer != "":
		return s.Tokenizer
	case s.Backend.Kind == VLLM && s.Weights != "":
		return filepath.Join(s.Weights, "tokenizer.json")
	}
	return s.Weights
}

// LayoutOf returns the layout of one replica, from 0, with its shares filled in.
func (s ModelSpec) LayoutOf(replica int) Layout {
	l := Layout{Stages: 1}
	if n := len(s.Layout); n > 0 {
		l = s.Layout[min(replica, n-1)]
	}
	if len(l.Shares) == 0 {
		l.Shares = make([]float32, l.Stages)
		for i := range l.Shares {
			l.Shares[i] = 1
		}
	}
	return l
}

// ReplicaName returns the fleet-wide name of one replica of the model, from 0.
func (m Model) ReplicaName(replica int) string {
	return m.Metadata.Name + "-" + strconv.Itoa(replica)
}

// DefaultModel returns the model for requests that name none.
func (f File) DefaultModel() Model {
	for _, m := range f.Models {
		if m.Spec.Default {
			return m
		}
	}
	if len(f.Models) == 0 {
		return Model{}
	}
	return f.Models[0]
}

// absolute makes the object's paths absolute, starting at dir.
func (s *ModelSpec) absolute(dir string) {
	s.Weights = under(dir, s.Weights)
	s.Tokenizer = under(dir, s.Tokenizer)
}

func (s *PolicySpec) absolute(dir string) {
	s.Sessions.Cookie.KeyFile = under(dir, s.Sessions.Cookie.KeyFile)
}

func under(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}
