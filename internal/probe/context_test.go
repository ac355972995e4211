package probe

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestContextOf(t *testing.T) {
	vllm := func(lens ...string) string {
		list := ""
		for i, n := range lens {
			list += fmt.Sprintf(`{"id":"m%d","object":"model","max_model_len":%s},`, i, n)
		}
		return `{"object":"list","data":[` + list + `{"id":"other","max_model_len":9999}]}`
	}
	tests := []struct {
		name, page string
		want       int
	}{
		{"vLLM", vllm("4096"), 4096},
		{"an adapter that does not say", vllm("4096", "null"), 4096},
		{"the shortest of several", vllm("8192", "4096"), 4096},
		{"another model's", vllm(), 0},
		{"llama-server", `{"default_generation_settings":{"n_ctx":2048,"params":{}},"total_slots":4}`, 2048},
		{"below what can be", vllm("127"), 0},
		{"beyond what can be", vllm("16777217"), 0},
		{"negative", vllm("-4096"), 0},
		{"beyond all numbers", vllm("1e300"), 0},
		{"beyond floats", vllm("1e999"), 0},
		{"no whole number", vllm("4096.5"), 0},
		{"no number", vllm("NaN"), 0},
		{"of another type", vllm(`{"a":1}`), 0},
		{"an older llama-server's list", `{"data":[{"id":"m0","meta":{"n_ctx_train":8192}}]}`, 0},
		{"no page", "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := contextOf([]byte(tt.page), []string{"m0", "m1"}); got != tt.want {
				t.Errorf("contextOf() = %d, want %d", got, tt.want)
			}
		})
	}
}

func FuzzContextOf(f *testing.F) {
	f.Add([]byte(`{"data":[{"id":"m","max_model_len":4096}]}`))
	f.Add([]byte(`{"default_generation_settings":{"n_ctx":2048}}`))
	f.Fuzz(func(t *testing.T, page []byte) {
		if n := contextOf(page, []string{"m"}); n != 0 && (n < leastContext || n > mostContext) {
			t.Errorf("a context of %d tokens", n)
		}
	})
}

// TestContextIsLearned from the engine, and again from the one that takes its place.
func TestContextIsLearned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const aboutA, aboutB = "http://" + a + "/v1/models", "http://" + b + "/props"
		start(t, Options{}, two(), func(_ *Prober, w *world) {
			w.set(func() {
				w.pages[aboutA] = `{"data":[{"id":"m","max_model_len":4096}]}`
				w.pages[pageA] += fmt.Sprintf(startedAt, 1000.0)
			})
			time.Sleep(time.Second)
			if got := w.at(a).Context; got != 4096 {
				t.Errorf("context %d, want 4096", got)
			}
			if got := w.at(b).Context; got != 0 {
				t.Errorf("context %d of one that does not say", got)
			}
			w.set(func() {
				w.pages[aboutA] = `{"data":[{"id":"m","max_model_len":8192}]}`
				w.pages[pageA] = fmt.Sprintf(vllmPage+startedAt, 0, 0, 0, 0, 0.0, 0.0, 2000.0)
				w.pages[aboutB] = `{"default_generation_settings":{"n_ctx":2048}}`
			})
			time.Sleep(20 * time.Second)
			if got := w.at(a).Context; got != 8192 {
				t.Errorf("context %d behind a restart, want 8192", got)
			}
			time.Sleep(2 * contextAgain)
			if got := w.at(b).Context; got != 2048 {
				t.Errorf("context %d, want 2048 where a restart does not show", got)
			}
			w.set(func() {
				if n := w.asked[aboutA]; n > 6 {
					t.Errorf("asked %d times in two minutes and a half", n)
				}
			})
		})
	})
}

// TestVersionIsLearned from the engine, and again from the one that takes its place.
func TestVersionIsLearned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const build = "http://" + a + "/version"
		start(t, Options{}, two(), func(_ *Prober, w *world) {
			w.set(func() {
				w.pages["http://"+a+"/v1/models"] = `{"data":[]}`
				w.pages[build] = `{"version":"0.32.0+cpu"}`
				w.pages[pageA] += fmt.Sprintf(startedAt, 1000.0)
			})
			time.Sleep(time.Second)
			if got := w.at(a).Version; got != "0.32.0+cpu" {
				t.Errorf("version %q", got)
			}
			if got := w.at(b).Version; got != "" {
				t.Errorf("version %q of one that does not say", got)
			}
			w.set(func() {
				w.pages[build] = `{"version":"0.33.0"}`
				w.pages[pageA] = fmt.Sprintf(vllmPage+startedAt, 0, 0, 0, 0, 0.0, 0.0, 2000.0)
			})
			time.Sleep(20 * time.Second)
			if got := w.at(a).Version; got != "0.33.0" {
				t.Errorf("version %q behind a restart", got)
			}
		})
	})
}

func FuzzVersionIn(f *testing.F) {
	f.Add([]byte(`{"version":"0.32.0+cpu"}`))
	f.Add([]byte(`{"version":"a\nb"}`))
	f.Fuzz(func(t *testing.T, page []byte) {
		v := versionIn(page)
		for _, c := range v {
			if c < '!' || c > '~' || len(v) > mostVersion {
				t.Fatalf("version %q", v)
			}
		}
	})
}
