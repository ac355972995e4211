package scrape

import (
	"bytes"
	"cmp"
	"net"
	"slices"
)

// Type is a kind of engine, by how it shows what it does. To know another one, or a
// series' name in another release, takes an entry here.
type Type struct {
	// name is the type's in configurations.
	name string
	// port and path are where its metrics are, as long as nobody says anything else; no
	// port: that of its API.
	port, path string
	// prefix of the names of its series.
	prefix string
	// series that are read. Of several of a field the first that is there counts: they are
	// names of different releases.
	series []series
	// fresh is whether Prompt leaves out what is cached.
	fresh bool
	// queued is whether PrefillSeconds has the wait in it.
	queued bool
	// events is whether it can publish what its KV cache holds, in the form of kvevents.
	events bool
	// adapters is the series that shows LoRA adapters; empty: none does.
	adapters string
}

// series is a name without the type's prefix, and what it means.
type series struct {
	name  string
	field Field
	// label must be there, and be is; empty: whatever labels there are. It is given with
	// what stands before its value.
	label, is string
	// size and count are labels that say together what the value does not: how many tokens
	// a block has, and how many blocks there are. They are given like label.
	size, count string
}

// types are all that are known.
var types = []*Type{
	// vLLM, from 0.6 to 0.32. What finished requests took and had lies in histograms, whose
	// sums are written together.
	{name: "vllm", prefix: "vllm:", events: true, adapters: "vllm:lora_requests_info{", series: []series{
		{name: "num_requests_running", field: Running},
		{name: "num_requests_waiting", field: Waiting},
		{name: "kv_cache_usage_perc", field: KV},
		{name: "gpu_cache_usage_perc", field: KV}, // before 0.10
		{name: "cache_config_info", field: KVTokens, size: `block_size="`, count: `num_gpu_blocks="`},
		{name: "request_prompt_tokens_sum", field: Prompt},
		{name: "request_prompt_tokens_count", field: Requests},
		{name: "prefix_cache_hits_total", field: Cached},
		{name: "gpu_prefix_cache_hits_total", field: Cached}, // before 0.10
		{name: "request_generation_tokens_sum", field: Output},
		{name: "request_prefill_time_seconds_sum", field: PrefillSeconds},
		{name: "request_decode_time_seconds_sum", field: DecodeSeconds},
	}},
	// SGLang, run with --enable-metrics. It says when the first token came, wait included,
	// and what passes between tokens.
	{name: "sglang", prefix: "sglang:", queued: true, series: []series{
		{name: "num_running_reqs", field: Running},
		{name: "num_queue_reqs", field: Waiting},
		{name: "token_usage", field: KV},
		{name: "max_total_num_tokens", field: KVTokens},
		{name: "cache_config_info", field: KVTokens, size: `page_size="`, count: `num_pages="`},
		{name: "num_requests_total", field: Requests},
		{name: "prompt_tokens_total", field: Prompt},
		{name: "cached_tokens_total", field: Cached},
		{name: "inter_token_latency_seconds_count", field: Output},
		{name: "time_to_first_token_seconds_sum", field: PrefillSeconds},
		{name: "inter_token_latency_seconds_sum", field: DecodeSeconds},
	}},
	// llama.cpp's server, run with --metrics. It counts no requests, and newer ones don't
	// say how full the cache is.
	{name: "llamacpp", prefix: "llamacpp:", fresh: true, series: []series{
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
	{name: "tensorrtllm", path: "/prometheus/metrics", prefix: "trtllm_", series: []series{
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
	{name: "triton", port: "8002", prefix: "nv_trt_llm_", series: []series{
		{name: "request_metrics", field: Running, label: `request_type="`, is: "scheduled"},
		{name: "request_metrics", field: Waiting, label: `request_type="`, is: "waiting"},
		{name: "kv_cache_block_metrics", field: KV, label: `kv_cache_block_type="`, is: "fraction"},
		{name: "kv_cache_block_metrics", field: KVBlocks, label: `kv_cache_block_type="`, is: "max"},
		{name: "kv_cache_block_metrics", field: BlockTokens, label: `kv_cache_block_type="`, is: "tokens_per"},
	}},
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
// else.
func (t *Type) URL(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil && t.port != "" {
		address = net.JoinHostPort(host, t.port)
	}
	return "http://" + address + cmp.Or(t.path, "/metrics")
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
		if url := t.URL(address); !slices.Contains(all, url) {
			all = append(all, url)
		}
	}
	return all
}

// TypeOf returns the type whose page it is; nil: none that we know.
func TypeOf(page []byte) *Type {
	for _, t := range types {
		if bytes.HasPrefix(page, []byte(t.prefix)) || bytes.Contains(page, []byte("\n"+t.prefix)) {
			return t
		}
	}
	return nil
}
