package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// newKey makes a key as its users do, and returns it with its line.
func newKey(t *testing.T, tenant string) (key, line string) {
	t.Helper()
	r := rig.Millrace(t, "", "key", "-tenant", tenant)
	for l := range strings.Lines(r.Stderr) {
		if strings.HasPrefix(l, "sk-") {
			key = strings.TrimSpace(l)
		}
	}
	if r.Code != 0 || key == "" || !strings.HasPrefix(r.Stdout, "sha256:") {
		t.Fatalf("millrace key: %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	return key, r.Stdout
}

// TestAPIKeys holds that no request without a key is answered, whatever the state of extproc,
// that budgets are by the tenant that the key belongs to, and that the file is followed.
func TestAPIKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	replace := func(lines ...string) {
		t.Helper()
		rig.Write(t, path+".new", strings.Join(lines, ""))
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	first, firstLine := newKey(t, "team-a")
	second, secondLine := newKey(t, "team-a")
	replace(firstLine)
	m := own(t, "-nodes", "1", "-api-keys", path, "-config", rig.Write(t, filepath.Join(t.TempDir(), "mesh.yaml"), `apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
---
apiVersion: millrace.dev/v1alpha1
kind: Policy
metadata: {name: default}
spec: {flow: {tenants: {requestsPerMinute: 6}}}
`))
	ask := func(path string, header ...string) rig.Answer {
		t.Helper()
		a, err := rig.Post(t.Context(), m.URL(t, path), map[string]any{
			"model": rig.Model, "max_tokens": 1, "messages": []map[string]string{{"role": "user", "content": "Hi"}},
		}, header...)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for name, header := range map[string][]string{
		"none": nil, "another": {"Authorization", "Bearer " + second}, "the hash": {"Authorization", "Bearer " + strings.Fields(firstLine)[0]}, "empty": {"x-api-key", ""},
	} {
		if a := ask(rig.ChatPath, header...); a.Status != http.StatusUnauthorized || !strings.Contains(string(a.Body), `"invalid_api_key"`) {
			t.Errorf("key %s: %d %s", name, a.Status, a.Body)
		}
		if a := ask("/v1/messages", header...); a.Status != http.StatusUnauthorized || !strings.Contains(string(a.Body), `"authentication_error"`) {
			t.Errorf("key %s at /v1/messages: %d %s", name, a.Status, a.Body)
		}
	}
	for _, header := range [][]string{{"Authorization", "Bearer " + first}, {"x-api-key", first}} {
		if a := ask(rig.ChatPath, header...); a.Status != http.StatusOK {
			t.Errorf("%s: %d %s", header[0], a.Status, a.Body)
		}
	}
	if r := rig.Millrace(t, "", "chat", "-dir", m.Dir, "-ask", "Hi"); r.Code != 0 {
		t.Errorf("millrace chat: %d %s", r.Code, r.Stderr)
	}

	replace(firstLine, secondLine)
	rig.Wait(t, rig.BackLimit, "the second key is taken", func() error {
		if a := ask(rig.ChatPath, "x-api-key", second); a.Status == http.StatusUnauthorized {
			return fmt.Errorf("%d %s", a.Status, a.Body)
		}
		return nil
	})
	limited := 0
	for range 8 { // both are the tenant's
		for _, key := range []string{first, second} {
			if ask(rig.ChatPath, "x-api-key", key).Status == http.StatusTooManyRequests {
				limited++
			}
		}
	}
	if limited < 8 {
		t.Errorf("%d of 16 requests of a tenant of 6 a minute were refused", limited)
	}

	pid := m.State(t).Find("extproc").PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	if a := ask(rig.ChatPath); a.Status < 500 {
		t.Errorf("while extproc hangs, a request without a key gets %d %s", a.Status, a.Body)
	}
}
