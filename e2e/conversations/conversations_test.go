// Package conversations holds conversations that a mesh stores: they continue when the engine that
// has them is killed, when the server that has them is down for a while, and for nobody else.
package conversations

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/proc"
	"millrace.dev/millrace/internal/wire"
)

func TestMain(m *testing.M) { os.Exit(rig.Main(m)) }

// response is what the tests read of a response, or of what there is instead.
type response struct {
	ID    string `json:"id"`
	Store bool   `json:"store"`
	Usage struct {
		Input int `json:"input_tokens"`
	} `json:"usage"`
	Error struct {
		Code string `json:"code"`
	} `json:"error"`
	status int
	node   string
}

// ask sends a request for what is stored, or to be.
func ask(t *testing.T, method, url string, body any, header ...string) response {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	a, err := rig.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	var r response
	if err := json.Unmarshal(a.Body, &r); err != nil {
		t.Fatalf("%s %s: %d %.300s", method, url, a.Status, a.Body)
	}
	if r.status, r.node = a.Status, a.Header.Get(wire.NodeHeader); a.Status != 200 {
		t.Logf("%s %s: %d %.300s", method, url, a.Status, a.Body)
	}
	return r
}

// turn continues a conversation.
func turn(previous, text string, more ...any) map[string]any {
	q := map[string]any{"model": "smollm2", "input": text, "max_output_tokens": 8}
	if previous != "" {
		q["previous_response_id"] = previous
	}
	for i := 0; i+1 < len(more); i += 2 {
		q[more[i].(string)] = more[i+1]
	}
	return q
}

// TestEnginesAreKilled holds a conversation of ten turns. Every third time the engine that made
// the last response, and has it on its disk, is killed before the next turn is asked.
func TestEnginesAreKilled(t *testing.T) {
	m := rig.OwnMesh(t)
	url := m.URL(t, "/v1/responses")
	var turns []response
	var nodes []string
	previous := ""
	for n := range 10 {
		r := ask(t, http.MethodPost, url, turn(previous, fmt.Sprintf("Question %d: name one more colour.", n)))
		if r.status != 200 || !r.Store {
			t.Fatalf("turn %d: %+v", n+1, r)
		}
		if n > 0 && r.Usage.Input <= turns[n-1].Usage.Input {
			t.Errorf("turn %d had a prompt of %d tokens, the one before of %d", n+1, r.Usage.Input, turns[n-1].Usage.Input)
		}
		turns, nodes, previous = append(turns, r), append(nodes, r.node), r.ID
		switch n % 3 {
		case 1:
			m.AwaitWhole(t) // what was killed before is there again
		case 2:
			rig.Kill(t, m.Process(t, "engine@"+r.node).PID)
		}
	}
	t.Logf("nodes: %v", nodes)
	if len(slices.Compact(slices.Sorted(slices.Values(nodes)))) < 2 {
		t.Errorf("all turns were made on %s: nothing was continued elsewhere", nodes[0])
	}
	m.AwaitWhole(t)

	// Every engine has every turn, those too that are shards, until it is deleted.
	gone := turns[4].ID
	for _, p := range m.State(t).Processes {
		if p.Role != "engine" {
			continue
		}
		for _, r := range turns {
			if got := ask(t, http.MethodGet, "http://"+p.Addrs["http"]+"/v1/responses/"+r.ID, nil); got.ID != r.ID {
				t.Errorf("%s: %s is %d", p.Name, r.ID, got.status)
			}
		}
	}
	rig.Kill(t, m.Process(t, "engine@"+turns[4].node).PID) // it may be away while its response is deleted
	if got := ask(t, http.MethodDelete, url+"/"+gone, nil); got.status != 200 {
		t.Errorf("deleted: %+v", got)
	}
	m.AwaitWhole(t)
	for _, p := range m.State(t).Processes {
		if p.Role != "engine" {
			continue
		}
		rig.Wait(t, rig.BackLimit, p.Name+" has no more of what was deleted", func() error {
			if got := ask(t, http.MethodGet, "http://"+p.Addrs["http"]+"/v1/responses/"+gone, nil); got.status != 404 {
				return fmt.Errorf("%d", got.status)
			}
			return nil
		})
	}
	if got := ask(t, http.MethodPost, url, turn(previous, "More.")); got.status != 400 || got.Error.Code != "previous_response_not_found" {
		t.Errorf("behind what is deleted: %+v", got)
	}
	t.Run("with what they have in the KV cache", func(t *testing.T) { outlives(t, m) })
}

// serve starts a real Redis at a port until the test ends.
func serve(t *testing.T, port int) *rig.Process {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(rig.MustCached(t, "redis-*/redis-server"), "--port", fmt.Sprint(port), "--bind", "127.0.0.1", "--dir", dir, "--appendonly", "no", "--save", "")
	return rig.Start(t, "redis", cmd)
}

// key makes an API key of a tenant, and the line for the file of keys.
func key(t *testing.T, tenant string) (key, line string) {
	t.Helper()
	r := rig.Millrace(t, "", "key", "-tenant", tenant)
	for l := range strings.Lines(r.Stderr) {
		if strings.HasPrefix(l, "sk-") {
			key = strings.TrimSpace(l)
		}
	}
	if r.Code != 0 || key == "" {
		t.Fatalf("millrace key: %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	return key, strings.TrimSpace(r.Stdout)
}

// TestSharedServer has a mesh store in a Redis, sealed, for tenants with API keys: it serves on
// while that is down, says what was not stored, and stores again when it is back.
func TestSharedServer(t *testing.T) {
	ports, err := proc.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	redis := serve(t, ports[0])
	dir := t.TempDir()
	a, lineA := key(t, "a")
	b, lineB := key(t, "b")
	m := rig.OwnMesh(t, "-nodes", "2", "-records", fmt.Sprintf("redis://127.0.0.1:%d/0", ports[0]),
		"-records-key-file", rig.Write(t, filepath.Join(dir, "key"), "a key of 16 bytes and more\n"),
		"-api-keys", rig.Write(t, filepath.Join(dir, "keys"), lineA+"\n"+lineB+"\n"))
	url := m.URL(t, "/v1/responses")
	as := func(key string) []string { return []string{"authorization", "Bearer " + key} }

	first := ask(t, http.MethodPost, url, turn("", "Name a colour."), as(a)...)
	second := ask(t, http.MethodPost, url, turn(first.ID, "One more."), as(a)...)
	if first.status != 200 || second.status != 200 || second.Usage.Input <= first.Usage.Input {
		t.Errorf("two turns: %+v, %+v", first, second)
	}
	if got := ask(t, http.MethodGet, url+"/"+first.ID, nil, as(b)...); got.status != 404 {
		t.Errorf("another tenant's key gets %+v", got)
	}
	if got := ask(t, http.MethodGet, url+"/"+first.ID, nil, append(as(b), wire.TenantHeader, "a")...); got.status != 404 {
		t.Errorf("another tenant that names itself gets %+v", got)
	}
	if got := ask(t, http.MethodGet, url+"/"+first.ID, nil, as(a)...); got.ID != first.ID {
		t.Errorf("its own tenant gets %+v", got)
	}

	redis.KillAndWait()
	if got := ask(t, http.MethodPost, url, turn("", "Name a colour."), as(a)...); got.status != 200 || got.Store {
		t.Errorf("while the server is down: %+v", got)
	}
	if got := ask(t, http.MethodPost, url, turn(second.ID, "One more."), as(a)...); got.status != 503 || got.Error.Code != "store_unavailable" {
		t.Errorf("what continues: %+v", got)
	}
	serve(t, ports[0])
	rig.Wait(t, rig.BackLimit, "the server is used again", func() error {
		if got := ask(t, http.MethodPost, url, turn("", "Name a colour."), as(a)...); got.status != 200 || !got.Store {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
}
