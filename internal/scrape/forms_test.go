package scrape

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestScanForms has what the text of Prometheus and of OpenMetrics allows beside what
// engines mostly write, and what stands in pages though nothing allows it: a line that
// makes no sense takes away itself alone.
func TestScanForms(t *testing.T) {
	running := func(v float64) Sample { return Sample{Has: Running, Running: v} }
	tests := []struct {
		name, page string
		want       Sample
	}{
		{"lines that end as on Windows, and the last without end", "# TYPE x gauge\r\nvllm:num_requests_running 4\r\nvllm:num_requests_waiting 2", Sample{Has: Running | Waiting, Running: 4, Waiting: 2}},
		{"nothing behind # EOF", "vllm:num_requests_running 4\n# EOF\nvllm:num_requests_running 5\n", running(4)},
		{"a comment that only begins like it", "# EOFx\n#EOF\nvllm:num_requests_running 4\n", running(4)},
		{"an exemplar", `vllm:num_requests_running{engine="0"} 4 # {trace_id="a 9"} 7 1.7e9`, running(4)},
		{"a time before 1970, a time with a fraction", "vllm:num_requests_running 4 -5\nvllm:num_requests_running 1 1700000000.25\n", running(5)},
		{"blanks and tabs before, between and behind", " \tvllm:num_requests_running \t { engine = \"0\" , } \t 4 \t\n", running(4)},
		{"a tab before the value", "vllm:num_requests_running\t4\n", running(4)},
		{"an order mark", "\ufeffvllm:num_requests_running 4\n", running(4)},
		{"a name in quotes", `{"vllm:num_requests_running",engine="0"} 4`, running(4)},
		{"a name in quotes alone", `{"vllm:num_requests_running"} 4`, running(4)},
		{"a name in quotes, labels in quotes", `{ "vllm:cache_config_info", "a b"="c", "block_size"="16", "num_gpu_blocks"="9" } 1`, Sample{Has: KVTokens, KVTokens: 144}},
		{"another name in quotes", `{"my vllm:num_requests_running",engine="0"} 4` + "\n" + `{engine="0"} 5`, Sample{}},
		{"forms of numbers", "vllm:num_requests_running 0x1p2\nvllm:num_requests_waiting 2.5E1\n", Sample{Has: Running | Waiting, Running: 4, Waiting: 25}},
		{"what is no number takes away its line", "vllm:num_requests_running -Inf\nvllm:num_requests_running nan\nvllm:num_requests_running 4x\nvllm:num_requests_running 3\n", running(3)},
		{"a label twice, and one without a value", `vllm:num_requests_running{a="b",a="b"} 4` + "\n" + `vllm:num_requests_running{a} 1` + "\n" + `vllm:num_requests_running{a=b} 1`, running(4)},
		{"escapes and commas in a label", `vllm:cache_config_info{x="\\",y="},block_size=\"1\"",block_size="16",num_gpu_blocks="9"} 1`, Sample{Has: KVTokens, KVTokens: 144}},
		{"when a counter was made", "vllm:request_prompt_tokens_created 1.7e9\nvllm:request_prompt_tokens_sum 9\n", Sample{Has: Prompt, Prompt: 9}},
		{"a counter without _total", "vllm:prefix_cache_hits 9\n", Sample{Has: Cached, Cached: 9}},
		{"a counter in both forms", "vllm:prefix_cache_hits 9\nvllm:prefix_cache_hits_total 9\n", Sample{Has: Cached, Cached: 9}},
		{"a histogram and a summary of the name", "vllm:num_requests_running_bucket{le=\"1\"} 7\nvllm:num_requests_running{quantile=\"0.5\"} 4\n", running(4)},
		{"bytes that are no text", "vllm:num_requests_waiting{a=\"\xff\x00\"} 4\n\x00\xff\nvllm:num_requests_running 4\n", Sample{Has: Running | Waiting, Running: 4, Waiting: 4}},
		{"a page of the web", "<html><body>vllm:num_requests_running 4</body></html>\n", Sample{}},
		{"another program's line that has the name in it", "router_vllm:num_requests_running 4\nvllm:num_requests_running_max 5\nxvllm_num_requests_running 3\n", Sample{}},
		{"underscores", "vllm_num_requests_running 3\nvllm_kv_cache_usage_perc 0.25\n", Sample{Has: Running | KV, Running: 3, KV: 0.25}},
		{"Ray", `ray_vllm_num_requests_running{Component="core_worker",ReplicaId="r",WorkerId="w",engine="0"} 3` + "\n" + `ray_vllm_prefix_cache_hits_total 7`, Sample{Has: Running | Cached, Running: 3, Cached: 7}},
		{"Ray with a colon", "ray_vllm:num_requests_running 3\n", running(3)},
		{"NIM has no prefix", "num_requests_running 3\nnum_requests_waiting 1\ngpu_cache_usage_perc 0.5\n", Sample{Has: Running | Waiting | KV, Running: 3, Waiting: 1, KV: 0.5}},
		{"two forms on one page are one engine", "vllm_num_requests_running 3\nvllm:num_requests_running 3\nray_vllm_num_requests_running 3\n", running(3)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, vllm.Scan([]byte(tt.page))); diff != "" {
				t.Errorf("Scan() (-want +got):\n%s", diff)
			}
		})
	}
}

// TestScanEngines has the names that engines have by release and by how they are deployed,
// and what their figures mean.
func TestScanEngines(t *testing.T) {
	tests := []struct {
		name, typ, page string
		want            Sample
	}{
		{
			"SGLang with underscores", "sglang", "sglang_num_running_reqs 3\nsglang_num_queue_reqs 1\nsglang_token_usage 0.5\nsglang_max_total_num_tokens 4096\n",
			Sample{Has: Running | Waiting | KV | KVTokens, Running: 3, Waiting: 1, KV: 0.5, KVTokens: 4096, Queued: true},
		},
		{
			"SGLang's ranks of tensor parallelism all show the same", "sglang",
			`sglang:num_running_reqs{tp_rank="0",pp_rank="0",moe_ep_rank="0"} 3` + "\n" + `sglang:num_running_reqs{tp_rank="1",pp_rank="0",moe_ep_rank="0"} 3` + "\n" +
				`sglang:max_total_num_tokens{tp_rank="0",pp_rank="0"} 4096` + "\n" + `sglang:max_total_num_tokens{tp_rank="0",pp_rank="1"} 4096` + "\n",
			Sample{Has: Running | KVTokens, Running: 3, KVTokens: 4096, Queued: true},
		},
		{
			"SGLang's ranks of data parallelism are added up", "sglang",
			`sglang:num_running_reqs{dp_rank="0",tp_rank="0"} 3` + "\n" + `sglang:num_running_reqs{dp_rank="1",tp_rank="4"} 2` + "\n" +
				`sglang:num_running_reqs{dp_rank="0",tp_rank="1"} 3` + "\n" + `sglang:token_usage{dp_rank="0",tp_rank="0"} 0.5` + "\n" + `sglang:token_usage{dp_rank="1",tp_rank="4"} 0.25` + "\n",
			Sample{Has: Running | KV, Running: 5, KV: 0.375, Queued: true},
		},
		{"TensorRT-LLM behind Dynamo", "tensorrtllm", "trtllm:num_requests_running 3\n", Sample{Has: Running, Running: 3}},
		{
			"TensorRT-LLM's size", "tensorrtllm", "trtllm_kv_cache_max_blocks 100\ntrtllm_kv_cache_tokens_per_block 32\n",
			Sample{Has: KVBlocks | BlockTokens | KVTokens, KVBlocks: 100, BlockTokens: 32, KVTokens: 3200},
		},
		{"llama.cpp with underscores", "llamacpp", "llamacpp_requests_processing 3\n", Sample{Has: Running, Running: 3}},
		{
			"TGI", "tgi", "tgi_batch_current_size 4\ntgi_queue_size 7\ntgi_request_input_length_sum 100\ntgi_request_input_length_count 5\ntgi_request_generated_tokens_sum 50\ntgi_batch_current_max_tokens 2048\n",
			Sample{Has: Running | Waiting | Prompt | Requests | Output, Running: 4, Waiting: 7, Prompt: 100, Requests: 5, Output: 50},
		},
		{
			"LMDeploy", "lmdeploy", `lmdeploy:num_requests_running{engine="0"} 4` + "\n" + `lmdeploy:num_requests_running{engine="1"} 1` + "\nlmdeploy:gpu_cache_usage_perc 0.5\nlmdeploy:request_generation_tokens_sum 8\nlmdeploy:generation_tokens_total 16\n",
			Sample{Has: Running | KV | Output, Running: 5, KV: 0.5, Output: 8},
		},
		{
			"vLLM's size of a hybrid model", "vllm", `vllm:cache_config_info{block_size="8",num_gpu_blocks="336",kv_cache_size_tokens="470016"} 1`,
			Sample{Has: KVTokens, KVTokens: 470016},
		},
		{
			"vLLM's ranks have caches of their own", "vllm", `vllm:cache_config_info{engine="0",block_size="8",num_gpu_blocks="336",kv_cache_size_tokens="1000"} 1` + "\n" +
				`vllm:cache_config_info{engine="1",block_size="8",num_gpu_blocks="336",kv_cache_size_tokens="1000"} 1`,
			Sample{Has: KVTokens, KVTokens: 2000},
		},
		{"a size that is not told", "vllm", `vllm:cache_config_info{block_size="8",num_gpu_blocks="3",kv_cache_size_tokens="None"} 1`, Sample{Has: KVTokens, KVTokens: 24}},
		{"sizes of nothing", "vllm", `vllm:cache_config_info{block_size="8",num_gpu_blocks="0",kv_cache_size_tokens="0"} 1`, Sample{}},
		{"a size of nothing", "sglang", "sglang:max_total_num_tokens 0\n", Sample{Queued: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			typ := Named(tt.typ)
			if typ == nil {
				t.Fatalf("there is no type %s", tt.typ)
			}
			if diff := cmp.Diff(tt.want, typ.Scan([]byte(tt.page))); diff != "" {
				t.Errorf("Scan() (-want +got):\n%s", diff)
			}
			if got := TypeOf([]byte(tt.page)); got == nil || got != typ {
				t.Errorf("TypeOf() = %v", got)
			}
		})
	}
}
