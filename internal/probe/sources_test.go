package probe

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/internal/scrape"
	"millrace.dev/millrace/internal/secret"
)

const healthA = "http://" + a + "/health"

// TestSources has one source of an endpoint fail, which takes away what it alone says.
func TestSources(t *testing.T) {
	good := fmt.Sprintf(vllmPage, 3, 1, 100, 10, 1.0, 1.0)
	gone := fmt.Errorf("%w: refused", scrape.ErrGone)
	tests := []struct {
		name           string
		page, health   error
		text           string // of the page; empty: a good one
		elsewhere      bool   // whether the page is at another address
		want           State
		figures, fault bool // whether there is a sample, and a reason for none
	}{
		{name: "all is well", want: Ready, figures: true},
		{name: "metrics are silent", page: scrape.ErrSilent, want: Ready, fault: true},
		{name: "metrics elsewhere are silent", page: scrape.ErrSilent, elsewhere: true, want: Ready, fault: true},
		{name: "the connection for metrics is cut", page: gone, want: Ready, fault: true},
		{name: "metrics elsewhere are gone", page: gone, elsewhere: true, want: Ready, fault: true},
		{name: "metrics want a key", page: scrape.StatusError(401), want: Ready, fault: true},
		{name: "metrics say 500", page: scrape.StatusError(500), want: Ready, fault: true},
		{name: "metrics are elsewhere now", page: scrape.StatusError(302), want: Ready, fault: true},
		{name: "metrics of something else", text: "<html>", want: Ready, fault: true},
		{name: "metrics that make no sense", text: "vllm:num_requests_running NaN\n", want: Ready, fault: true},
		{name: "health says that it is not well, metrics come", health: scrape.StatusError(503), want: NotReady, figures: true},
		{name: "health is silent, metrics come from elsewhere", health: scrape.ErrSilent, elsewhere: true, want: NotReady, figures: true},
		{name: "health is gone, metrics come from elsewhere", health: gone, elsewhere: true, want: NotReady, figures: true},
		{name: "health is not known there", health: scrape.StatusError(404), want: Ready, figures: true},
		{name: "health wants a key", health: scrape.StatusError(401), want: Ready, figures: true},
		{name: "both are silent", page: scrape.ErrSilent, health: scrape.ErrSilent, want: NotReady, fault: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all, page := two()[:1], pageA
				if tt.elsewhere {
					page = "http://10.0.0.9:8002/metrics"
					all[0].Metrics = secret.URL(page)
				}
				start(t, Options{Working: func(string) bool { return true }}, all, func(p *Prober, w *world) {
					w.set(func() { w.pages[page] = good })
					time.Sleep(5 * time.Second)
					if o := w.at(a); o.State != Ready || o.Sample == nil || o.MetricsErr != nil {
						t.Fatalf("before: %+v", o)
					}
					w.set(func() {
						if tt.text != "" {
							w.pages[page] = tt.text
						}
						if tt.page != nil {
							w.errs[page] = tt.page
						}
						if tt.health != nil {
							w.errs[healthA] = tt.health
						}
					})
					time.Sleep(40 * time.Second)
					if o := w.at(a); o.State != tt.want || (o.Sample != nil) != tt.figures || (o.MetricsErr != nil) != tt.fault {
						t.Errorf("state %v (%v), sample %v, metrics: %v", o.State, o.Err, o.Sample, o.MetricsErr)
					}
					w.set(func() { clear(w.errs); w.pages[page] = good })
					time.Sleep(40 * time.Second)
					if o := w.at(a); o.State != Ready || o.Sample == nil || o.MetricsErr != nil {
						t.Errorf("after: %v (%v), sample %v, metrics: %v", o.State, o.Err, o.Sample, o.MetricsErr)
					}
				})
			})
		})
	}
}

// TestCacheSizes believes no size below what was seen to be cached at a time.
func TestCacheSizes(t *testing.T) {
	const size = `vllm:cache_config_info{block_size="8",num_gpu_blocks="336"} 1` + "\n" // 2688 tokens
	page := func(requests, prompt, hits int) string {
		return fmt.Sprintf("vllm:num_requests_running 0\nvllm:request_prompt_tokens_count %d\nvllm:request_prompt_tokens_sum %d\nvllm:prefix_cache_hits_total %d\n", requests, prompt, hits)
	}
	tests := []struct {
		name  string
		pages []string
		want  float64
	}{
		{"as it says", []string{size + page(0, 0, 0), size + page(10, 20000, 15000)}, 2688},
		{"a hybrid model: prompts are longer", []string{size + page(0, 0, 0), size + page(1, 3000, 0)}, 0},
		{"more is found than there is room for", []string{size + page(0, 0, 0), size + page(2, 0, 6000)}, 0},
		{"since its start", []string{size + page(100, 400000, 0)}, 0},
		{"what was disproved stays so", []string{size + page(0, 0, 0), size + page(1, 3000, 0), size + page(9000, 3000, 0)}, 0},
		{"another size than the one that was disproved", []string{size + page(1, 3000, 0), "vllm:cache_config_info{kv_cache_size_tokens=\"470016\"} 1\n" + page(2, 6000, 0)}, 470016},
		{"no size", []string{page(0, 0, 0)}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start(t, Options{Working: func(string) bool { return true }}, two()[:1], func(p *Prober, w *world) {
					for _, text := range tt.pages {
						w.set(func() { w.pages[pageA] = text })
						time.Sleep(3 * time.Second)
					}
					if o := w.at(a); o.KVTokens != tt.want || o.Sample.KVTokens != tt.want {
						t.Errorf("%v tokens, in the sample %v; want %v", o.KVTokens, o.Sample.KVTokens, tt.want)
					}
				})
			})
		})
	}
}

// TestDiscoverWithoutMetrics asks an endpoint whose metrics say nothing for its models.
func TestDiscoverWithoutMetrics(t *testing.T) {
	for _, fault := range []error{scrape.ErrSilent, scrape.ErrGone, scrape.StatusError(401)} {
		get := func(_ context.Context, r *http.Request, buf []byte) ([]byte, error) {
			if r.URL.Path == "/v1/models" {
				return append(buf[:0], `{"data":[{"id":"m"}]}`...), nil
			}
			return buf[:0], fault
		}
		got, err := Discover(t.Context(), get, a, nil)
		if diff := cmp.Diff(Discovered{Models: []string{"m"}}, got); diff != "" || err != nil {
			t.Errorf("%v: %v (-want +got):\n%s", fault, err, diff)
		}
	}
	all := errors.Join(scrape.ErrGone)
	get := func(_ context.Context, _ *http.Request, buf []byte) ([]byte, error) { return buf[:0], all }
	if _, err := Discover(t.Context(), get, a, nil); err == nil {
		t.Error("nobody is there, and it is no error")
	}
}
