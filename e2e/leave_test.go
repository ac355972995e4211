package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// stopsWithin is how long a backend may continue with what nobody waits for any more. Each request
// of TestWorkEndsWithItsClient would be worked on for much longer.
const stopsWithin = 10 * time.Second

// TestWorkEndsWithItsClient leaves each kind of request while backends work on it.
func TestWorkEndsWithItsClient(t *testing.T) {
	m := shared(t)
	r := m.Replicas(t)
	backends := []string{m.Addr(t, "backend@"+r.Head, "http"), m.Addr(t, "backend@"+r.Whole, "http")}
	working := func() (float64, error) {
		sum := 0.0
		for _, b := range backends {
			n, err := rig.Metric(b, "llamacpp:requests_processing")
			if err != nil {
				return 0, err
			}
			sum += n
		}
		return sum, nil
	}
	const (
		long     = `,"max_tokens":3000,"ignore_eos":true`
		messages = `"messages":[{"role":"user","content":"Count to a hundred."}]`
	)
	text := `"` + strings.Repeat("All work and no play makes Jack a dull boy. ", 10) + `"`
	tests := []struct{ name, path, fields string }{
		{"chat", rig.ChatPath, messages + long},
		{"chat, streamed", rig.ChatPath, messages + long + `,"stream":true`},
		{"chat of two choices, streamed", rig.ChatPath, messages + long + `,"n":2,"stream":true`},
		{"completion", "/v1/completions", `"prompt":"One, two,"` + long},
		{"completion, streamed", "/v1/completions", `"prompt":"One, two,"` + long + `,"stream":true`},
		{"responses", "/v1/responses", `"input":"Count to a hundred.","max_output_tokens":3000,"ignore_eos":true`},
		{"responses, streamed", "/v1/responses", `"input":"Count to a hundred.","max_output_tokens":3000,"ignore_eos":true,"stream":true`},
		{"messages", "/v1/messages", messages + long},
		{"messages, streamed", "/v1/messages", messages + long + `,"stream":true`},
		{"embeddings of many texts", rig.EmbeddingPath, `"input":[` + text + strings.Repeat(","+text, 400) + `]`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rig.Wait(t, rig.BackLimit, "backends are idle", func() error {
				n, err := working()
				if err == nil && n > 0 {
					err = fmt.Errorf("%v requests", n)
				}
				return err
			})
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.URL(t, tt.path), strings.NewReader(`{"model":"`+rig.Model+`",`+tt.fields+`}`))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			ended := make(chan string, 1)
			go func() {
				resp, err := rig.Client.Do(req)
				if err != nil {
					ended <- err.Error()
					return
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				ended <- fmt.Sprintf("status %d, %v: %.300s", resp.StatusCode, err, b)
			}()
			rig.Wait(t, rig.BackLimit, "a backend works on it", func() error {
				select {
				case how := <-ended:
					return rig.Final(fmt.Errorf("it has ended: %s", how))
				default:
				}
				n, err := working()
				if err == nil && n == 0 {
					err = fmt.Errorf("nobody does")
				}
				return err
			})
			left := time.Now()
			leave()
			rig.Wait(t, stopsWithin, "its work ends", func() error {
				n, err := working()
				if err == nil && n > 0 {
					err = fmt.Errorf("%v requests", n)
				}
				return err
			})
			t.Logf("%v behind its client", time.Since(left).Round(time.Millisecond))
		})
	}
}
