package scrape

import (
	"bufio"
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

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
	tests := []struct {
		file string
		typ  *Type
		want Sample
	}{
		{"vllm.txt", VLLM, Sample{
			Has: all, Running: 7, Waiting: 2, KV: 0.4375, KVTokens: 16 * 27654,
			Requests: 812, Prompt: 823000, Cached: 401234, Output: 98000, PrefillSeconds: 84.5, DecodeSeconds: 1960.5,
		}},
		{"vllm-0.32.txt", VLLM, Sample{
			Has: all, KVTokens: 32 * 256,
			Requests: 8, Prompt: 1592, Cached: 384, Output: 64, PrefillSeconds: 0.2635859350011742, DecodeSeconds: 0.5712539520009159,
		}},
		{"sglang.txt", SGLang, Sample{
			Has: all, Running: 12, KV: 0.5, KVTokens: 400000,
			Requests: 1024, Prompt: 8128902, Cached: 5e6, Output: 100000, PrefillSeconds: 41.5, DecodeSeconds: 2000,
		}},
		{"llamacpp.txt", LlamaCpp, Sample{
			Has: all &^ (KV | KVTokens | Requests), Running: 3, Waiting: 1,
			Prompt: 129, Cached: 59, Output: 56, PrefillSeconds: 0.473779, DecodeSeconds: 0.717337,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.typ.Scan(page(t, tt.file))); diff != "" {
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
		{"labels without end", `vllm:num_requests_waiting{a="b" 4`, Sample{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, VLLM.Scan([]byte(tt.page))); diff != "" {
				t.Errorf("Scan() (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSince(t *testing.T) {
	old := VLLM.Scan(page(t, "vllm.txt"))
	s := old
	s.Requests, s.Prompt, s.Cached, s.Output = s.Requests+2, s.Prompt+300, s.Cached+100, s.Output+50
	s.PrefillSeconds, s.DecodeSeconds = s.PrefillSeconds+0.5, s.DecodeSeconds+2
	d, restarted := VLLM.Since(&s, &old)
	want := Since{Requests: 2, Prompt: 300, Cached: 100, Output: 50, PrefillMs: 500, DecodeMs: 2000}
	if diff := cmp.Diff(want, d); diff != "" || restarted {
		t.Errorf("Since() restarted %v (-want +got):\n%s", restarted, diff)
	}
	if d, _ := SGLang.Since(&s, &old); d.PrefillMs != 0 {
		t.Errorf("SGLang: %v ms of prefill, which has a wait in it", d.PrefillMs)
	}
	if _, restarted := VLLM.Since(&old, &s); !restarted {
		t.Error("counters went back, and it is not a restart")
	}
	if _, restarted := VLLM.Since(&Sample{Has: Running}, &old); !restarted {
		t.Error("counters are gone, and it is not a restart")
	}
}

// naive reads a page with Prometheus' own parser, which refuses a page whole.
func naive(t *Type, page []byte) (s Sample, ok bool) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(page))
	if err != nil {
		return Sample{}, false
	}
	for _, w := range t.series {
		if f := families[t.prefix+w.name]; f != nil && !w.blocks {
			for _, m := range f.GetMetric() {
				if v := m.GetUntyped().GetValue() + m.GetGauge().GetValue() + m.GetCounter().GetValue(); v >= 0 && v <= most {
					s.Has |= w.field
					*s.at(w.field) += v
				}
			}
		}
	}
	return s, true
}

// FuzzScan holds Scan against Prometheus' parser: what that reads of gauges and
// counters, Scan reads too.
func FuzzScan(f *testing.F) {
	f.Add(page(f, "vllm-0.32.txt"))
	f.Add([]byte("vllm:num_requests_running{engine=\"0\"} 1\nvllm:num_requests_running{engine=\"1\"} 2\n"))
	f.Add([]byte("vllm:num_requests_waiting{m=\"a}\\\"} 9\"} 5\n"))
	f.Add([]byte("vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"9\"} 1\n"))
	f.Fuzz(func(t *testing.T, page []byte) {
		for _, typ := range []*Type{VLLM, SGLang, LlamaCpp} {
			s := typ.Scan(page)
			if !(s.KV >= 0 && s.KV <= 1) || s.Running < 0 {
				t.Fatalf("%q gives %+v", page, s)
			}
		}
		if !plain(page) {
			return
		}
		want, ok := naive(VLLM, page)
		if got := VLLM.Scan(page); ok && (got.Running != want.Running || got.Waiting != want.Waiting) {
			t.Errorf("%q gives %+v, want %+v", page, got, want)
		}
	})
}

// plain tells whether all lines have the form that engines write, so that both
// parsers must agree.
func plain(page []byte) bool {
	sc := bufio.NewScanner(bytes.NewReader(page))
	for sc.Scan() {
		name, number, ok := strings.Cut(sc.Text(), " ")
		if !ok || strings.ContainsAny(name, "{}\"\\#\r\t") || strings.ContainsAny(number, " \t\r_xXpP") {
			return false
		}
	}
	return bytes.HasSuffix(page, []byte("\n"))
}

func BenchmarkScan(b *testing.B) {
	text := page(b, "vllm.txt")
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		VLLM.Scan(text)
	}
}
