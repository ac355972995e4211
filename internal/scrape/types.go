package scrape

import (
	"cmp"
	"net"
	"slices"
	"strings"
)

// Type is a kind of engine, by how it shows what it does. To know another one, or a
// series' name in another release, takes an entry here.
type Type struct {
	// name is the type's in configurations.
	name string
	// port and path are where its metrics are, as long as nobody says anything else; no
	// port: that of its API.
	port, path string
	// base is what the names of its series begin with, without the ":" or "_" behind it;
	// bare is whether they may also begin with nothing. prefixes is what they begin with as
	// engines are deployed, the most usual first.
	base     string
	bare     bool
	prefixes []string
	// series that are read. Of several of a field the first that is there counts: they are
	// names of different releases.
	series []series
	// counts is how the tokens of Output are counted; those of Generated are, as they are
	// made. prefilled is whether the first token of each answer is left out.
	counts    Counting
	prefilled bool
	// fresh is whether Prompt leaves out what is cached.
	fresh bool
	// queued is whether PrefillSeconds has the wait in it.
	queued bool
	// events is whether it can publish what its KV cache holds, in the form of kvevents.
	events bool
	// adapters is the series that shows LoRA adapters; empty: none does.
	adapters string
	// replicas are labels by which ranks differ that work on the same requests: they say
	// the same, and it counts once. Ranks that differ by others have requests and caches of
	// their own, which are added up.
	replicas []string
}

// Counting is when an engine counts the tokens that it generates.
type Counting uint8

const (
	// Uncounted tokens are not counted.
	Uncounted Counting = iota
	// AsMade ones are counted as they are generated.
	AsMade
	// AtEnd ones are counted at the end of an answer, whether it is whole or was cut.
	AtEnd
	// IfWhole ones are counted at the end of an answer that is whole; if it is cut, never.
	IfWhole
)

// Count is how many tokens an engine has generated since its start.
type Count struct {
	How    Counting
	Tokens float64
	// Prefilled is whether the first token of each answer is left out.
	Prefilled bool
}

// Count returns what a sample of the type's says of generated tokens. t may be nil.
func (t *Type) Count(s *Sample) Count {
	switch {
	case t == nil:
	case s.Has&Generated != 0:
		return Count{AsMade, s.Generated, t.prefilled}
	case s.Has&Output != 0 && t.counts != Uncounted:
		return Count{t.counts, s.Output, t.prefilled}
	}
	return Count{}
}

// series is a name without the type's prefix, and what it means.
type series struct {
	name  string
	field Field
	// label must be there, and be is; empty: whatever labels there are.
	label, is string
	// size and count are labels that say together what the value does not: how many tokens
	// a block has, and how many blocks there are; without count, size says all.
	size, count string
	// counter is whether the name ends in _total, which may be left out.
	counter bool
}

// total is what counters end in.
const total = "_total"

// deployments are what those who run engines put before the names of their series: Ray
// Serve does.
var deployments = []string{"", "ray_"}

// known is what is known of each type.
var known = []*Type{
	// vLLM, from 0.6 to 0.32. What finished requests took and had lies in histograms, whose
	// sums are written together. NVIDIA's NIM shows its series without a prefix.
	{name: "vllm", base: "vllm", bare: true, counts: IfWhole, events: true, adapters: "lora_requests_info", series: []series{
		{name: "num_requests_running", field: Running},
		{name: "num_requests_waiting", field: Waiting},
		{name: "kv_cache_usage_perc", field: KV},
		{name: "gpu_cache_usage_perc", field: KV}, // before 0.10
		// Blocks of a hybrid model's groups are of one pool: their number says nothing of tokens.
		{name: "cache_config_info", field: KVTokens, size: "kv_cache_size_tokens"},
		{name: "cache_config_info", field: KVTokens, size: "block_size", count: "num_gpu_blocks"}, // before 0.20
		{name: "request_prompt_tokens_sum", field: Prompt},
		{name: "request_prompt_tokens_count", field: Requests},
		{name: "prefix_cache_hits_total", field: Cached},
		{name: "gpu_prefix_cache_hits_total", field: Cached}, // before 0.10
		{name: "request_generation_tokens_sum", field: Output},
		{name: "generation_tokens_total", field: Generated},
		{name: "request_prefill_time_seconds_sum", field: PrefillSeconds},
		{name: "request_decode_time_seconds_sum", field: DecodeSeconds},
	}},
	// SGLang, run with --enable-metrics. It says when the first token came, wait included,
	// and what passes between tokens.
	{name: "sglang", base: "sglang", queued: true, counts: AsMade, prefilled: true, replicas: []string{"tp_rank", "pp_rank", "moe_ep_rank"}, series: []series{
		{name: "num_running_reqs", field: Running},
		{name: "num_queue_reqs", field: Waiting},
		{name: "token_usage", field: KV},
		{name: "max_total_num_tokens", field: KVTokens},
		{name: "cache_config_info", field: KVTokens, size: "page_size", count: "num_pages"},
		{name: "num_requests_total", field: Requests},
		{name: "prompt_tokens_total", field: Prompt},
		{name: "cached_tokens_total", field: Cached},
		{name: "realtime_tokens_total", field: Generated, label: "mode", is: "decode"},
		{name: "inter_token_latency_seconds_count", field: Output},
		{name: "generation_tokens_total", field: Output},
		{name: "time_to_first_token_seconds_sum", field: PrefillSeconds},
		{name: "inter_token_latency_seconds_sum", field: DecodeSeconds},
	}},
	// llama.cpp's server, run with --metrics. It counts no requests, and newer ones don't
	// say how full the cache is. Its numbers have six digits: from a million on tokens come
	// in steps.
	{name: "llamacpp", base: "llamacpp", counts: AtEnd, fresh: true, series: []series{
		{name: "requests_processing", field: Running},
		{name: "requests_deferred", field: Waiting},
		{name: "kv_cache_usage_ratio", field: KV}, // before b5800
		{name: "prompt_tokens_total", field: Prompt},
		{name: "prompt_tokens_cached_total", field: Cached},
		{name: "tokens_predicted_total", field: Output},
		{name: "prompt_seconds_total", field: PrefillSeconds},
		{name: "tokens_predicted_seconds_total", field: DecodeSeconds},
	}},
	// trtllm-serve of TensorRT-LLM 1.2 and later, run with return_perf_metrics and
	// enable_iter_perf_stats.
	{name: "tensorrtllm", path: "/prometheus/metrics", base: "trtllm", counts: IfWhole, series: []series{
		{name: "num_requests_running", field: Running},
		{name: "num_requests_waiting", field: Waiting},
		{name: "kv_cache_utilization", field: KV},
		{name: "kv_cache_max_blocks", field: KVBlocks},
		{name: "kv_cache_tokens_per_block", field: BlockTokens},
		{name: "request_success_total", field: Requests},
		{name: "prompt_tokens_total", field: Prompt},
		{name: "prompt_cached_tokens_total", field: Cached},
		{name: "generation_tokens_total", field: Output},
		{name: "request_prefill_time_seconds_sum", field: PrefillSeconds},
		{name: "request_decode_time_seconds_sum", field: DecodeSeconds},
	}},
	// Triton with the backend of TensorRT-LLM: its kinds of requests and blocks are labels.
	// What it counts since its start is not split by the parts of an ensemble.
	{name: "triton", port: "8002", base: "nv_trt_llm", series: []series{
		{name: "request_metrics", field: Running, label: "request_type", is: "scheduled"},
		{name: "request_metrics", field: Waiting, label: "request_type", is: "waiting"},
		{name: "kv_cache_block_metrics", field: KV, label: "kv_cache_block_type", is: "fraction"},
		{name: "kv_cache_block_metrics", field: KVBlocks, label: "kv_cache_block_type", is: "max"},
		{name: "kv_cache_block_metrics", field: BlockTokens, label: "kv_cache_block_type", is: "tokens_per"},
	}},
	// Text Generation Inference. What a batch took is not split by requests.
	{name: "tgi", base: "tgi", counts: IfWhole, series: []series{
		{name: "batch_current_size", field: Running},
		{name: "queue_size", field: Waiting},
		{name: "request_input_length_count", field: Requests},
		{name: "request_input_length_sum", field: Prompt},
		{name: "request_generated_tokens_sum", field: Output},
	}},
	// LMDeploy, run with --enable-metrics. Its generation_tokens_total counts twice in some
	// releases.
	{name: "lmdeploy", base: "lmdeploy", counts: IfWhole, series: []series{
		{name: "num_requests_running", field: Running},
		{name: "num_requests_waiting", field: Waiting},
		{name: "gpu_cache_usage_perc", field: KV},
		{name: "request_prompt_tokens_count", field: Requests},
		{name: "request_prompt_tokens_sum", field: Prompt},
		{name: "request_generation_tokens_sum", field: Output},
		{name: "request_prefill_time_seconds_sum", field: PrefillSeconds},
		{name: "request_decode_time_seconds_sum", field: DecodeSeconds},
	}},
}

// types are all that are known.
var types = complete(known)

// complete fills in what follows from the rest of the entries.
func complete(all []*Type) []*Type {
	for _, t := range all {
		for _, by := range deployments {
			t.prefixes = append(t.prefixes, by+t.base+":", by+t.base+"_")
		}
		if t.bare {
			t.prefixes = append(t.prefixes, "")
		}
		for i := range t.series {
			t.series[i].counter = strings.HasSuffix(t.series[i].name, total)
		}
	}
	return all
}

// replicates reports whether a label distinguishes ranks that say the same.
func (t *Type) replicates(label []byte) bool {
	for _, name := range t.replicas {
		if string(label) == name {
			return true
		}
	}
	return false
}

// Names returns the names of all types.
func Names() []string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = t.name
	}
	return names
}

// Named returns the type of a name; nil: it is none that shows metrics.
func Named(name string) *Type {
	if i := slices.IndexFunc(types, func(t *Type) bool { return t.name == name }); i >= 0 {
		return types[i]
	}
	return nil
}

// URL is where an engine at "ip:port" shows its metrics, as long as nobody says anything
// else. scheme is http:// or https://.
func (t *Type) URL(scheme, address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil && t.port != "" {
		address = net.JoinHostPort(host, t.port)
	}
	return scheme + address + cmp.Or(t.path, "/metrics")
}

// Events reports whether engines of the type can publish what their KV caches hold. t may
// be nil.
func (t *Type) Events() bool { return t != nil && t.events }

// Adapters reports whether engines of the type show LoRA adapters. t may be nil.
func (t *Type) Adapters() bool { return t != nil && t.adapters != "" }

// Name returns the type's name in configurations.
func (t *Type) Name() string { return t.name }

// Pages returns where engines of the types that we know show their metrics at "ip:port",
// the most usual place first.
func Pages(address string) []string {
	var all []string
	for _, t := range types {
		if url := t.URL("http://", address); !slices.Contains(all, url) {
			all = append(all, url)
		}
	}
	return all
}

// TypeOf returns the type whose page it is; nil: none that we know. Names without a prefix say
// nothing of it.
func TypeOf(page []byte) *Type {
	for _, t := range types {
		for _, prefix := range t.prefixes {
			for l := samplesOf(page, prefix); prefix != "" && l.next(); {
				if !l.started {
					return t
				}
			}
		}
	}
	return nil
}
