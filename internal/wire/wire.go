// Package wire holds the words that Millrace's programs, Envoy and clients say to each
// other: names of headers, of Envoy's dynamic metadata, of priorities and reasons, and
// type URLs of our xDS resources.
//
// Used by every program and by tests. Its one rule: a word that two parts must spell
// alike stands here and nowhere else; messages with a schema are protobuf (*pb) instead.
package wire

// Headers of a request, which clients send; their names are a matter of policy, these
// are the defaults.
const (
	// SessionHeader names the conversation.
	SessionHeader = "x-session-id"
	// PriorityHeader names the priority.
	PriorityHeader = "x-millrace-priority"
)

// Headers of a request with fixed names, which clients send.
const (
	// DebugHeader asks, with the value "1", for DecisionHeader.
	DebugHeader = "x-millrace-debug"
	// ProbeHeader holds the key of a mesh's own probes, which count for no tenant.
	ProbeHeader = "x-millrace-probe"
	// TimeoutHeader and EnvoyTimeoutHeader say how long the client waits, in milliseconds.
	TimeoutHeader      = "x-request-timeout-ms"
	EnvoyTimeoutHeader = "x-envoy-expected-rq-timeout-ms"
)

// Headers of a request with fixed names, by which clients of the inference extension's
// endpoint pickers say what they want, and their names of before.
const (
	// ObjectiveHeader names an InferenceObjective.
	ObjectiveHeader    = "x-llm-d-inference-objective"
	OldObjectiveHeader = "x-gateway-inference-objective"
	// FairnessHeader names who is to have a fair share.
	FairnessHeader    = "x-llm-d-inference-fairness-id"
	OldFairnessHeader = "x-gateway-inference-fairness-id"
	// RenameHeader is the name under which the model is to be forwarded.
	RenameHeader    = "x-llm-d-model-name-rewrite"
	OldRenameHeader = "x-gateway-model-name-rewrite"
)

// Headers of a request with fixed names, by which clients say how fast it is to be answered, in
// milliseconds: to the first token, for each further one, until the answer is whole. Those of
// the inference extension's clients, and their names of before, mean the same.
const (
	TTFTHeader    = "x-millrace-slo-ttft-ms"
	TPOTHeader    = "x-millrace-slo-tpot-ms"
	E2EHeader     = "x-millrace-slo-e2e-ms"
	LLMDTTFT      = "x-llm-d-slo-ttft-ms"
	LLMDTPOT      = "x-llm-d-slo-tpot-ms"
	OldTTFTHeader = "x-slo-ttft-ms"
	OldTPOTHeader = "x-slo-tpot-ms"
)

// ProbeKey is the environment variable by which a mesh gives its extprocs the key of its
// own probes.
const ProbeKey = "MILLRACE_PROBE_KEY"

// PoolHeader is gRPC metadata by which a gateway names the pool, "namespace/name", that a
// stream of the external processor is for.
const PoolHeader = "x-millrace-pool"

// Headers by which the conformance suite of the inference extension steers a picker, and
// sees who has answered.
const (
	SelectionHeader = "test-epp-endpoint-selection"
	ServedHeader    = "x-conformance-test-served-endpoint"
)

// Prefixes of headers that choose a host, a model or a retry policy. What a client sends
// under them is removed, but for the headers that the policy names.
const (
	GatewayPrefix = "x-gateway-"
	OwnPrefix     = "x-millrace-"
	EnvoyPrefix   = "x-envoy-"
)

// Headers that extproc sets on a request.
const (
	// DestinationHeader lists the endpoints, "ip:port,ip:port", the best first: also the
	// key of the same list in the metadata of LBNamespace (endpoint-picker protocol 1.0).
	DestinationHeader = "x-gateway-destination-endpoint"
	// ModelHeader is the id of the model, by which Envoy chooses the route.
	ModelHeader = "x-millrace-model"
	// PromptTokensHeader is the exact number of tokens of the prompt.
	PromptTokensHeader = "x-millrace-prompt-tokens"
	// PrefixHeader is the keys of the prompt's prefixes: "KEY.TOKENS,…", the shortest
	// first, the key as 16 hexadecimal digits.
	PrefixHeader = "x-millrace-prefix"
	// RequestHeader is a number that extproc has given to a request whose tenant has a
	// budget of tokens, in hexadecimal: an engine names the request by it in
	// its account.
	RequestHeader = "x-millrace-request"
	// TenantHeader stands for the tenant of a request for what is stored, or is to be: who alone
	// can read it again.
	TenantHeader = "x-millrace-tenant"
	// TriesHeader is what of the request's headers and its answers' was sent and received in
	// the tries before, in bytes, between the filters of a try; no engine sees it.
	TriesHeader = "x-millrace-tries"
	// RetriesHeader is how often Envoy may try again.
	RetriesHeader = "x-envoy-max-retries"
	// PerTryHeader is after how many milliseconds without an answer Envoy is to try again,
	// and HedgeHeader, as "true", that the attempt before may still answer.
	PerTryHeader = "x-envoy-upstream-rq-per-try-timeout-ms"
	HedgeHeader  = "x-envoy-hedge-on-per-try-timeout"
)

// Headers of a response.
const (
	// AttemptsHeader is how often Envoy has tried, set by Envoy.
	AttemptsHeader = "x-envoy-attempt-count"
	// NodeHeader and ReplicaHeader name who answered.
	NodeHeader    = "x-millrace-node"
	ReplicaHeader = "x-millrace-replica"
	// LostHeader is "1" where a backend was lost while it worked on the request.
	LostHeader = "x-millrace-lost"
	// UnansweredHeader is where a request is not tried at a third engine, because it has hurt
	// two, how many of them had it and ended without an answer.
	UnansweredHeader = "x-millrace-unanswered"
	// UsageHeader is what the request cost, also a trailer: the Usage… keys below as
	// "key=number,key=number".
	UsageHeader = "x-millrace-usage"
	// ResponseIDHeader is the id of a response of the Responses API, also a trailer.
	ResponseIDHeader = "x-millrace-response-id"
	// LoadHeader is an ORCA load report in its text form, also a trailer: LoadText, then
	// the Load… keys below as "key=number,key=number".
	LoadHeader = "endpoint-load-metrics"
	// DecisionHeader shows a client that asked by DebugHeader why its request went where
	// it went, as JSON.
	DecisionHeader = "x-millrace-decision"
)

// Keys of UsageHeader; tokens, and milliseconds.
const (
	UsagePrompt     = "prompt"
	UsageCached     = "cached"
	UsageCompletion = "completion"
	UsagePrefill    = "prefill_ms"
	UsageDecode     = "decode_ms"
)

// LoadText begins an ORCA report in text form.
const LoadText = "TEXT "

// Keys of LoadHeader.
const (
	LoadRunning        = "named_metrics.running"
	LoadWaiting        = "named_metrics.waiting"
	LoadTokensInFlight = "named_metrics.tokens_in_flight"
	LoadKV             = "named_metrics.kv_util"
	LoadUtilization    = "application_utilization"
	LoadRate           = "rps_fractional"
)

// Namespaces and keys of Envoy's dynamic metadata.
const (
	// LBNamespace holds DestinationHeader for Envoy's override_host, and ServedKey, the
	// host that it chose.
	LBNamespace = "envoy.lb"
	ServedKey   = "x-gateway-destination-endpoint-served"
	// SubsetNamespace and SubsetKey name the endpoints that a gateway allows.
	SubsetNamespace = "envoy.lb.subset_hint"
	SubsetKey       = "x-gateway-destination-endpoint-subset"
	// TokenUsageNamespace is that of typed metadata in which Envoy's AI protocol manager says
	// what an answer has needed.
	TokenUsageNamespace = "envoy.ai.token_usage"
	// UpstreamAttribute is the attribute of an answer, "ip:port" of who gave it.
	UpstreamAttribute = "upstream.address"
	// FactsNamespace holds the Fact… keys for the access log.
	FactsNamespace = "millrace"
	// BodyNamespace holds FactModel as Envoy itself has read it from the body.
	BodyNamespace = "millrace.body"
)

// Keys of FactsNamespace.
const (
	FactModel    = "model"
	FactAsked    = "asked"
	FactSession  = "session"
	FactPriority = "priority"
	FactDecision = "decision"

	// Numbers: what was observed, and what was expected of it when the request was sent.
	// FactPromptTokens is counted by a tokenizer or by the engine, and FactPromptExpected
	// estimated where there is no tokenizer.
	FactPromptTokens   = "prompt_tokens"
	FactPromptExpected = "expected_prompt_tokens"
	FactCachedTokens   = "cached_tokens"
	FactCachedExpected = "expected_cached_tokens"
	FactOutputTokens   = "output_tokens"
	FactOutputExpected = "expected_output_tokens"
	// FactCharged is by what the tenant's budget of tokens is charged, as far as it was known
	// when the request was sent or the engine said it, and FactReserved how many tokens it was charged
	// in advance.
	FactCharged  = "charged_by"
	FactReserved = "reserved_tokens"
	// FactFirstToken is the time from a request's arrival to the first token of its
	// answer, in milliseconds: of streams of our engines.
	FactFirstToken = "ttft_ms"
	// FactProbe is whether it was a probe of the mesh's own.
	FactProbe = "probe"
)

// Facts are all keys of FactsNamespace, in the order in which a person wants to read them.
func Facts() []string {
	return []string{
		FactModel, FactAsked, FactSession, FactPriority, FactDecision, FactPromptTokens, FactPromptExpected,
		FactCachedTokens, FactCachedExpected, FactOutputTokens, FactOutputExpected, FactFirstToken, FactCharged, FactReserved,
	}
}

// Priorities of requests, the highest first.
const (
	Critical  = "critical"
	Standard  = "standard"
	Sheddable = "sheddable"
)

// Reasons for which the first endpoint of a decision was chosen.
const (
	ReasonFallback = "fallback" // nobody is ready: one that is suspect
	ReasonNew      = "new"      // nothing of the prompt is cached anywhere
	ReasonSticky   = "sticky"   // where the conversation is cached
	ReasonMoved    = "moved"    // elsewhere, because that is faster
)

// Prefixes of NodeReport.engine_error: why a node has no status of its engine.
const (
	EngineStarting    = "starting: "
	EngineSilent      = "silent: "
	EngineUnreachable = "unreachable: "
	EngineInvalid     = "invalid: "
)

// What a request has waited for in extproc, as the access log and traces name it.
const (
	QueuedForLoad = "load" // a place of its model, or its being loaded
	QueuedForRoom = "room" // room at an engine
)

// Codes of conditions that other programs look for.
const (
	ReplicaNotReady = "replica-not-ready"
	ModelDown       = "model-down"
	EndpointsDown   = "endpoints-down"
	NoMetrics       = "no-metrics"
	NoKVEvents      = "no-kv-events"
	NoUsage         = "no-usage"
	OtherModels     = "other-models"
	EndpointFiles   = "endpoint-files"
	ConfigRefused   = "configuration-refused"
)

// TypePrefix is what every type URL begins with.
const TypePrefix = "type.googleapis.com/"

// Type URLs of our xDS resources.
const (
	EndpointType = TypePrefix + "millrace.fleet.v1alpha1.EndpointState"
	ModelType    = TypePrefix + "millrace.fleet.v1alpha1.ModelState"
	PolicyType   = TypePrefix + "millrace.fleet.v1alpha1.PolicyState"
	CacheType    = TypePrefix + "millrace.fleet.v1alpha1.CacheState"
)

// Asleep is the reason of a model's condition Ready where no replica runs as nobody asks: the next
// request makes one start.
const Asleep = "Asleep"
