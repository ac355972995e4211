package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// limit is a tenant's budget, in tokens of a minute.
const limit = 300

// dodge is a way to have tokens generated and not to pay for them.
type dodge struct {
	name, path, fields string
	events             int           // of the answer, behind which its client leaves; 0: it does not wait for any
	lasts              time.Duration // of the attack
}

// TestNobodyDodgesTheBudget closes each answer before it says what it has cost. What the backend
// has worked, by its own account, is what the limit allows and one answer; and what
// tenants are charged is what was generated, by the engine's report.
func TestNobodyDodgesTheBudget(t *testing.T) {
	m := own(t, "-nodes", "1", "-config", rig.Write(t, filepath.Join(t.TempDir(), "mesh.yaml"), fmt.Sprintf(`apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
---
apiVersion: millrace.dev/v1alpha1
kind: Policy
metadata: {name: default}
spec: {flow: {tenants: {tokensPerMinute: %d}}}
`, limit)))
	const messages = `"messages":[{"role":"user","content":"Count to a thousand."}],"stream":true`
	dodges := []dodge{
		{"the backend's limit beside the API's", rig.ChatPath, messages + `,"max_tokens":1,"n_predict":400`, 1, 10 * time.Second},
		{"the backend's limit alone", rig.ChatPath, messages + `,"n_predict":400`, 40, 4 * time.Second},
		{"no limit", rig.ChatPath, messages, 40, 3 * time.Second},
		{"Anthropic's", "/v1/messages", messages + `,"max_tokens":400`, 40, 3 * time.Second},
		{"of responses", "/v1/responses", `"input":"Count to a thousand.","stream":true`, 40, 3 * time.Second},
		{"several answers", "/v1/completions", `"prompt":["One, two,","A, b,"],"stream":true,"max_tokens":200`, 40, 3 * time.Second},
		{"without a stream", rig.ChatPath, strings.TrimSuffix(messages, `,"stream":true`) + `,"max_tokens":400`, 0, 3 * time.Second},
	}
	backend := m.Addr(t, "backend@node-a", "http")
	extproc := m.Addr(t, "extproc", "metrics")
	decoded := func() float64 { return rig.MustMetric(t, backend, "llamacpp:n_decode_total") }
	idle := func() error {
		running, err := rig.Metric(backend, "llamacpp:requests_processing")
		if err == nil && running > 0 {
			err = fmt.Errorf("%v requests are in the backend", running)
		}
		return err
	}
	for i, d := range dodges {
		t.Run(d.name, func(t *testing.T) {
			before, began := decoded(), time.Now()
			var sent, refused int
			for time.Since(began) < d.lasts {
				status, err := m.leave(t, d, "Bearer tenant-"+fmt.Sprint(i))
				switch {
				case err != nil:
					t.Fatal(err)
				case status == http.StatusTooManyRequests:
					refused++
				default:
					sent++
				}
			}
			rig.Wait(t, rig.BackLimit, "the backend's work ends", idle)
			took := time.Since(began)
			rig.Wait(t, rig.BackLimit, "every answer that was cut is charged by what was generated", func() error {
				reserved, err := rig.Metric(extproc, "millrace_extproc_reserved_tokens")
				if err == nil && reserved > 0 {
					err = fmt.Errorf("%v tokens are reserved", reserved)
				}
				return err
			})
			// A pass of the backend is a token of each answer, or a part of a prompt: of one
			// answer at a time they are tokens, and more.
			allowed := limit*(1+took.Minutes()) + 400
			if generated := decoded() - before; generated > allowed || sent == 0 {
				t.Errorf("the backend has generated %v tokens in %.0f s, of %d requests, and %.0f are allowed", generated, took.Seconds(), sent, allowed)
			} else {
				t.Logf("%d sent, %d refused, %v passes of the backend in %.0f s", sent, refused, generated, took.Seconds())
			}
		})
	}
}

// leave sends a request and closes its answer behind so many events. It returns the status; 0: it
// did not wait for any.
func (m *mesh) leave(t *testing.T, d dodge, key string) (int, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if d.events == 0 {
		stop := time.AfterFunc(time.Second, cancel)
		defer stop.Stop()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.URL(t, d.path), strings.NewReader(`{"model":"`+rig.Model+`",`+d.fields+`}`))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", key)
	resp, err := rig.Client.Do(req)
	if err != nil {
		if d.events == 0 && ctx.Err() != nil {
			err = nil
		}
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusTooManyRequests {
		return resp.StatusCode, nil
	}
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("status %d", resp.StatusCode)
	}
	events := 0
	buf := make([]byte, 4096)
	for events < d.events {
		n, err := resp.Body.Read(buf)
		events += strings.Count(string(buf[:n]), "\n\n")
		if err != nil {
			return resp.StatusCode, nil // it came to its end
		}
	}
	return resp.StatusCode, nil
}
