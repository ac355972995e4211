package scrape

import (
	"bytes"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

var vllm = Named("vllm")

func page(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestScan(t *testing.T) {
	const all = DecodeSeconds<<1 - 1
	const trt = all | KVBlocks | BlockTokens
	tests := []struct {
		file string
		typ  string
		want Sample
	}{
		{"vllm.txt", "vllm", Sample{
			Has: all | Started | Generated, Generated: 98765, Started: 1.79548e9, Running: 7, Waiting: 2, KV: 0.4375, KVTokens: 16 * 27654,
			Requests: 812, Prompt: 823000, Cached: 401234, Output: 98000, PrefillSeconds: 84.5, DecodeSeconds: 1960.5,
		}},
		{"vllm-0.32.txt", "vllm", Sample{
			Has: all | Started | Generated, Generated: 64, Started: 1.79569342251e9, KVTokens: 32 * 256,
			Requests: 8, Prompt: 1592, Cached: 384, Output: 64, PrefillSeconds: 0.2635859350011742, DecodeSeconds: 0.5712539520009159,
		}},
		{"sglang.txt", "sglang", Sample{
			Has: all, Queued: true, Running: 12, KV: 0.75, KVTokens: 400000,
			Requests: 1024, Prompt: 8128902, Cached: 5e6, Output: 100000, PrefillSeconds: 41.5, DecodeSeconds: 2000,
		}},
		{"llamacpp.txt", "llamacpp", Sample{
			Has: all &^ (KV | KVTokens | Requests), Running: 3, Waiting: 1,
			Prompt: 129, Cached: 59, Output: 56, PrefillSeconds: 0.473779, DecodeSeconds: 0.717337,
		}},
		{"vllm-0.9.txt", "vllm", Sample{
			Has: all &^ (PrefillSeconds | DecodeSeconds | KVTokens), Running: 2, Waiting: 1, KV: 0.25,
			Requests: 4, Prompt: 400, Cached: 128, Output: 80,
		}},
		{"sglang-0.5.9.txt", "sglang", Sample{
			Has: Running | Waiting | KV | KVTokens | Started, Running: 3, Waiting: 1, KV: 0.125, KVTokens: 64 * 11147, Started: 1780000000.5, Queued: true,
		}},
		{"llamacpp-b4500.txt", "llamacpp", Sample{
			Has: Running | Waiting | KV | Prompt | Output, Running: 1, KV: 0.5, Prompt: 70, Output: 12,
		}},
		{"tensorrtllm.txt", "tensorrtllm", Sample{
			Has: trt | Started, Running: 5, Waiting: 2, KV: 0.25, KVTokens: 32 * 8000, KVBlocks: 8000, BlockTokens: 32, Started: 1790000000.25,
			Requests: 14, Prompt: 42000, Cached: 16384, Output: 3600, PrefillSeconds: 1.75, DecodeSeconds: 36.5,
		}},
		{"triton.txt", "triton", Sample{
			Has: Running | Waiting | KV | KVTokens | KVBlocks | BlockTokens, Running: 6, Waiting: 3, KV: 0.0625, KVTokens: 64 * 6239, KVBlocks: 6239, BlockTokens: 64,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Named(tt.typ).Scan(page(t, tt.file))); diff != "" {
				t.Errorf("Scan() (-want +got):\n%s", diff)
			}
		})
	}
}

func TestScanOddLines(t *testing.T) {
	tests := []struct {
		name, page string
		want       Sample
	}{
		{"two engines are added up", "vllm:num_requests_running{engine=\"0\"} 1\nvllm:num_requests_running{engine=\"1\"} 2", Sample{Has: Running, Running: 3}},
		{"no new-line at the end, a time stamp", "vllm:num_requests_waiting 4 1700000000", Sample{Has: Waiting, Waiting: 4}},
		{"braces and quotes in a label", `vllm:num_requests_waiting{m="a}\"} 9"} 5`, Sample{Has: Waiting, Waiting: 5}},
		{"carriage returns", "vllm:num_requests_waiting 4\r\n", Sample{Has: Waiting, Waiting: 4}},
		{"not a number", "vllm:num_requests_waiting NaN\nvllm:num_requests_running +Inf\nvllm:num_requests_running -1\nvllm:num_requests_running", Sample{}},
		{"longer names", "vllm:num_requests_waiting_by_reason 4\nvllm:num_requests_wait 4\nvllm: 1\nvllm:", Sample{}},
		{"blocks unknown", `vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1`, Sample{}},
		{"a label whose name ends like another's", `vllm:cache_config_info{mamba_block_size="64",block_size="16",num_gpu_blocks="9"} 1`, Sample{Has: KVTokens, KVTokens: 144}},
		{"two names of a series: the first of the table counts", "vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.25\nvllm:gpu_cache_usage_perc 0.5", Sample{Has: KV, KV: 0.25}},
		{"labels without end", `vllm:num_requests_waiting{a="b" 4`, Sample{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, vllm.Scan([]byte(tt.page))); diff != "" {
				t.Errorf("Scan() (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSince(t *testing.T) {
	old := vllm.Scan(page(t, "vllm.txt"))
	s := old
	s.Requests, s.Prompt, s.Cached, s.Output = s.Requests+2, s.Prompt+300, s.Cached+100, s.Output+50
	s.PrefillSeconds, s.DecodeSeconds = s.PrefillSeconds+0.5, s.DecodeSeconds+2
	d, restarted := s.Since(&old)
	want := Since{Requests: 2, Prompt: 300, Cached: 100, Output: 50, PrefillMs: 500, DecodeMs: 2000}
	if diff := cmp.Diff(want, d); diff != "" || restarted {
		t.Errorf("Since() restarted %v (-want +got):\n%s", restarted, diff)
	}
	s.Queued = true
	if d, _ := s.Since(&old); d.PrefillMs != 0 {
		t.Errorf("SGLang: %v ms of prefill, which has a wait in it", d.PrefillMs)
	}
	if _, restarted := old.Since(&s); !restarted {
		t.Error("counters went back, and it is not a restart")
	}
	if _, restarted := (&Sample{Has: Running}).Since(&old); !restarted {
		t.Error("counters are gone, and it is not a restart")
	}
}

// TestCount says when each type of engine counts the tokens that it makes.
func TestCount(t *testing.T) {
	tests := []struct {
		name, typ, page string
		want            Count
	}{
		{"vLLM", "vllm", string(page(t, "vllm-0.32.txt")), Count{AsMade, 64, false}},
		{"vLLM without the counter", "vllm", string(page(t, "vllm-0.9.txt")), Count{IfWhole, 80, false}},
		{"SGLang", "sglang", `sglang:realtime_tokens_total{mode="decode",tp_rank="0"} 40` + "\n" + `sglang:realtime_tokens_total{mode="prefill_compute",tp_rank="0"} 900` + "\nsglang:generation_tokens_total 8\n", Count{AsMade, 40, true}},
		{"SGLang, older", "sglang", string(page(t, "sglang.txt")), Count{AsMade, 100000, true}},
		{"llama-server", "llamacpp", string(page(t, "llamacpp.txt")), Count{AtEnd, 56, false}},
		{"TensorRT-LLM", "tensorrtllm", string(page(t, "tensorrtllm.txt")), Count{IfWhole, 3600, false}},
		{"Triton does not", "triton", string(page(t, "triton.txt")), Count{}},
		{"no page of its", "vllm", "x 1\n", Count{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			typ := Named(tt.typ)
			s := typ.Scan([]byte(tt.page))
			if got := typ.Count(&s); got != tt.want {
				t.Errorf("Count() = %+v, want %+v", got, tt.want)
			}
		})
	}
}

// naive reads a page with Prometheus' own parser, which refuses a page whole.
func naive(t *Type, page []byte) (s Sample, ok bool) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(page))
	if err != nil {
		return Sample{}, false
	}
	lines := map[Field]float64{}
	add := func(f Field, v float64) {
		if v >= 0 && v <= most && (v > 0 || f&(KVTokens|KVBlocks|BlockTokens) == 0) {
			s.Has |= f
			*s.at(f) += v
			lines[f]++
		}
	}
	for _, prefix := range t.prefixes {
		if s.Has != 0 {
			break // a rarer way to write all names
		}
		seen := map[Field]bool{}
		for _, w := range t.series {
			for _, name := range []string{w.name, strings.TrimSuffix(w.name, total)} {
				if seen[w.field] {
					continue // a name that it had in another release
				}
				for _, m := range families[prefix+name].GetMetric() {
					labels := map[string]string{}
					for _, l := range m.GetLabel() {
						labels[l.GetName()] = l.GetValue()
					}
					switch {
					case w.label != "" && labels[w.label] != w.is:
					case w.size != "":
						add(w.field, blocks(labels, w.size, w.count))
					default:
						add(w.field, m.GetUntyped().GetValue())
					}
				}
				seen[w.field] = s.Has&w.field != 0
			}
		}
	}
	for _, m := range families[started].GetMetric() {
		add(Started, m.GetUntyped().GetValue())
	}
	for _, f := range []Field{KV, BlockTokens, Started} {
		*s.at(f) /= max(1, lines[f])
	}
	s.KV, s.Queued = min(1, s.KV), t.queued
	if v := s.KVBlocks * s.BlockTokens; lines[KVTokens] == 0 && lines[KVBlocks] > 0 && lines[BlockTokens] > 0 && v <= most {
		s.KVTokens = v
		s.Has |= KVTokens
	}
	if t.fresh {
		s.Prompt += s.Cached
	}
	return s, true
}

// blocks is the size of a cache by its labels; below 0: they don't say.
func blocks(labels map[string]string, size, count string) float64 {
	product := 1.0
	for _, name := range []string{size, count} {
		if name == "" {
			continue
		}
		v, err := strconv.ParseFloat(labels[name], 64)
		if err != nil || !(v >= 0 && v <= most) || len(labels[name]) > 40 {
			return -1
		}
		product *= v
	}
	return product
}

// checkScan compares what both read of a page in which all lines have the form that
// engines write.
func checkScan(t *testing.T, page []byte) (compared bool) {
	t.Helper()
	for _, typ := range types {
		got := typ.Scan(page)
		if !(got.KV >= 0 && got.KV <= 1) || got.Running < 0 {
			t.Fatalf("%q gives %+v", page, got)
		}
		if !asWritten.Match(page) {
			continue
		}
		if want, ok := naive(typ, page); ok {
			compared = true
			if diff := cmp.Diff(want, got, cmpopts.EquateApprox(1e-9, 0)); diff != "" {
				t.Errorf("%q (-twin +scan):\n%s", page, diff)
			}
		}
	}
	return compared
}

// asWritten is pages of samples alone, as engines write them.
var asWritten = regexp.MustCompile(`^([a-z_:]+(\{([a-z_]+="([^"\\\n]|\\["\\n])*",?)*\})? [0-9.eE+-]{1,40}( [0-9]{1,12})?\n)*$`)

// TestScanAgainstItsTwin writes pages of many lines that are right or nearly so.
func TestScanAgainstItsTwin(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 3))
	one := func(of ...string) string { return of[r.IntN(len(of))] }
	compared := 0
	for range 3000 {
		var b strings.Builder
		for range r.IntN(12) {
			typ := types[r.IntN(len(types))]
			w := typ.series[r.IntN(len(typ.series))]
			name := one(typ.prefixes[0], typ.prefixes[0], typ.prefixes[r.IntN(len(typ.prefixes))]) + w.name
			if r.IntN(30) == 0 {
				name = started
			}
			labels := one("", "", "{}", `{engine="0"}`, `{engine="1",}`, `{m="a}\"} 9",n="\\"}`, `{block_size="16",num_gpu_blocks="9"}`,
				`{num_gpu_blocks="1e3",x="block_size=\"7\"",block_size="8"}`, `{x="1,block_size=",block_size="16",num_gpu_blocks="None"}`, `{cpu_block_size="7",block_size="8",num_gpu_blocks="4"}`, `{page_size="4",num_pages="7"}`, `{kv_cache_size_tokens="50",block_size="8",num_gpu_blocks="4"}`)
			if w.label != "" {
				labels = one(labels, "{"+w.label+`="`+one(w.is, w.is, "other")+`",model="m"}`)
			}
			value := one("0", "7", "0.25", "1e3", "12345.5", "-1", "1e400", "4 1700000000", "1", "99999999999999999999", "+5")
			b.WriteString(name + one("", "", "", "_x") + labels + " " + value + "\n")
		}
		if checkScan(t, []byte(b.String())) {
			compared++
		}
	}
	if compared < 800 {
		t.Errorf("only %d pages were compared", compared)
	}
}

func FuzzScan(f *testing.F) {
	f.Add(page(f, "vllm-0.32.txt"))
	f.Add([]byte("vllm:num_requests_running{engine=\"0\"} 1\nvllm:num_requests_running{engine=\"1\"} 2\n"))
	f.Add([]byte("vllm:num_requests_waiting{m=\"a}\\\"} 9\"} 5\n"))
	f.Add([]byte("vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"9\"} 1\n"))
	f.Fuzz(func(t *testing.T, page []byte) { checkScan(t, page) })
}

func BenchmarkScan(b *testing.B) {
	text := page(b, "vllm.txt")
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		vllm.Scan(text)
	}
}
