package noxds

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

const (
	// limit is a tenant's budget, in tokens of a minute, and longest what one answer may have more
	// than its request has said: the slack.
	limit, longest = 300, 400
	// closeAfter is how many bytes of an answer a client that dodges waits for.
	closeAfter = 1500
)

// TestBudgetsBeforeLlamaServers closes answers before they say what they have cost, in front of
// llama.cpp's own servers. What these have generated, by their own count, is within the
// budget and one answer. Who lets answers come to their end pays for exactly what they had.
func TestBudgetsBeforeLlamaServers(t *testing.T) {
	f := newFleetOf(t, (*fleet).startEngine, func(file string) string {
		file = strings.Replace(file, "flow: {gatewayTimeout: 60s}", fmt.Sprintf("flow: {gatewayTimeout: 60s, tenants: {tokensPerMinute: %d}}", limit), 1)
		return file + fmt.Sprintf("\nmodels:\n  - {name: %s, tokenizer: %q, contextTokens: 4096, default: true}\n", rig.Model, rig.MustCached(t, rig.Weights))
	})
	generated := func() (n float64) {
		for _, port := range f.ports.engines {
			n += rig.MustMetric(t, rig.Address(port), "llamacpp:tokens_predicted_total")
		}
		return n
	}
	settled := func() error {
		for _, port := range f.ports.engines {
			if n, err := rig.Metric(rig.Address(port), "llamacpp:requests_processing"); err != nil || n > 0 {
				return fmt.Errorf("%v requests are in an engine: %v", n, err)
			}
		}
		if n, err := rig.Metric(f.admin(), "millrace_extproc_reserved_tokens"); err != nil || n > 0 {
			return fmt.Errorf("%v tokens are reserved: %v", n, err)
		}
		return nil
	}
	source := func(name string) float64 {
		return rig.MustMetric(t, f.admin(), fmt.Sprintf("millrace_extproc_charged_tokens_total{source=%q}", name))
	}

	t.Run("honest", func(t *testing.T) {
		before, want := source("counters"), 0
		for range 3 {
			c, _, err := f.ask([]rig.Message{{Role: "user", Content: "Hello!"}}, 12, "authorization", "Bearer honest")
			if err != nil {
				t.Fatal(err)
			}
			want += c.Usage.Prompt + c.Usage.Completion
			f.await(t, "it is charged", settled)
		}
		if got := source("counters") - before; got != float64(want) {
			t.Errorf("%v tokens are charged by counters, the answers had %d", got, want)
		}
	})

	const messages = `"messages":[{"role":"user","content":"Count to a thousand."}],"stream":true`
	for i, d := range []struct {
		name, path, fields string
		clients            int
	}{
		{"the engine's limit beside the API's", rig.ChatPath, messages + `,"max_tokens":1,"n_predict":400`, 1},
		{"the engine's limit alone", rig.ChatPath, messages + `,"n_predict":400`, 1},
		{"no limit, many at a time", rig.ChatPath, messages, 8},
		{"a huge limit, many at a time", rig.ChatPath, messages + `,"max_tokens":1000000`, 8},
		{"small limits, many at a time", rig.ChatPath, messages + `,"max_tokens":40`, 8},
		{"several answers", "/v1/completions", `"prompt":["One, two,","A, b,"],"stream":true,"max_tokens":200`, 2},
		{"without a stream", rig.ChatPath, strings.TrimSuffix(messages, `,"stream":true`) + `,"max_tokens":400`, 2},
	} {
		t.Run(d.name, func(t *testing.T) {
			before, began := generated(), time.Now()
			ctx, stop := context.WithTimeout(t.Context(), 6*time.Second)
			defer stop()
			var all sync.WaitGroup
			var mu sync.Mutex
			statuses := map[int]int{} // 0: the client had left before
			for range d.clients {
				all.Go(func() {
					for ctx.Err() == nil {
						status := f.leave(ctx, t, d.path, d.fields, fmt.Sprintf("Bearer dodger-%d", i))
						mu.Lock()
						statuses[status]++
						mu.Unlock()
					}
				})
			}
			all.Wait()
			f.await(t, "the engines' work ends and is charged", settled)
			allowed := limit*(1+time.Since(began).Minutes()) + longest
			if n := generated() - before; n > allowed || statuses[200]+statuses[0] == 0 {
				t.Errorf("the engines have generated %v tokens, at most %.0f are allowed; statuses %v", n, allowed, statuses)
			} else {
				t.Logf("%v tokens of %.0f; statuses %v", n, allowed, statuses)
			}
		})
	}
	for _, by := range []string{"counters", "reserved", "unanswered"} {
		t.Logf("%v tokens by %s", source(by), by)
	}
}

// leave sends a request and closes its answer behind some bytes, or after a second where it does not come in
// pieces. It returns the status; 0: it did not wait for any.
func (f *fleet) leave(ctx context.Context, t *testing.T, path, fields, key string) int {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url(path), strings.NewReader(`{"model":"`+rig.Model+`",`+fields+`}`))
	if err != nil {
		t.Error(err)
		return 0
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", key)
	resp, err := rig.Client.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, closeAfter) // it may end before, or be cut
	return resp.StatusCode
}
