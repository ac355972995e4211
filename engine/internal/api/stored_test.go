package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/conversation"
	"millrace.dev/millrace/engine/internal/record"
	"millrace.dev/millrace/internal/wire"
)

// memory is a store that can be down.
type memory struct {
	mu   sync.Mutex
	all  map[record.Key]record.Record
	down atomic.Bool
}

func (m *memory) Get(_ context.Context, k record.Key) (record.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.all[k]
	switch {
	case m.down.Load():
		return r, record.ErrUnavailable
	case !ok:
		return r, record.ErrNotFound
	}
	return r, nil
}

func (m *memory) Put(_ context.Context, r record.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.down.Load():
		return record.ErrUnavailable
	case r.Version != m.all[r.Key].Version+1:
		return record.ErrConflict
	}
	m.all[r.Key] = r
	return nil
}

func (m *memory) Delete(_ context.Context, k record.Key) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down.Load() {
		return record.ErrUnavailable
	}
	delete(m.all, k)
	return nil
}

// storing is a rig that stores; sent is what its backend was sent last.
type storing struct {
	*rig
	store *memory
	sent  atomic.Value
	// before is called before the last event of a stream.
	before func()
}

func newStoring(t *testing.T, kind enginepb.Backend_Kind) *storing {
	t.Helper()
	s := &storing{store: &memory{all: map[record.Key]record.Record{}}, before: func() {}}
	turn := 0
	s.rig = newRigOf(t, kind, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		s.sent.Store(string(b))
		turn++
		if !strings.Contains(string(b), `"stream":true`) {
			w.Header().Set("Content-Type", "application/json")
			if kind == enginepb.Backend_OPENAI {
				fmt.Fprintf(w, `{"id":"resp_theirs","object":"response","status":"completed","store":true,"output":[{"type":"message","id":"msg_theirs","role":"assistant","content":[{"type":"output_text","text":"said %d","annotations":[]}]}]}`, turn)
				return
			}
			fmt.Fprintf(w, `{"choices":[{"index":0,"message":{"role":"assistant","content":"said %d"},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":2}}`, turn)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"said %d\"}}]}\n\n", turn)
		_ = http.NewResponseController(w).Flush()
		s.before()
		_, _ = io.WriteString(w, `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`+"\n\n"+someUsage+someEnd)
	}, func(c *Config) { c.Conversations = conversation.New(s.store, "AAAAAAAA") })
	return s
}

// as asks as a tenant, and returns status and answer.
func (s *storing) as(t *testing.T, tenant, method, path, body string) (int, map[string]any, string) {
	t.Helper()
	req := s.request(t.Context(), path, body)
	req.Method = method
	req.Header.Set(wire.TenantHeader, tenant)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	_ = json.Unmarshal(b, &v) // a stream is none
	return resp.StatusCode, v, string(b)
}

func idOf(t *testing.T, v map[string]any) string {
	t.Helper()
	id, _ := v["id"].(string)
	if id == "" {
		t.Fatalf("no id in %v", v)
	}
	return id
}

func TestPreviousResponse(t *testing.T) {
	for _, kind := range []enginepb.Backend_Kind{enginepb.Backend_LLAMACPP, enginepb.Backend_VLLM, enginepb.Backend_OPENAI} {
		s := newStoring(t, kind)
		_, one, _ := s.as(t, "", "POST", "/v1/responses", `{"model":"smollm2","input":"first","instructions":"Be kind."}`)
		first := idOf(t, one)
		if one["store"] != true || !strings.HasPrefix(first, "resp_AAAAAAAA") || one["previous_response_id"] != nil {
			t.Errorf("%v: %v", kind, one)
		}
		status, two, body := s.as(t, "", "POST", "/v1/responses", `{"model":"smollm2","input":"second","previous_response_id":"`+first+`"}`)
		if status != 200 || two["previous_response_id"] != first {
			t.Errorf("%v: %d %s", kind, status, body)
		}
		sent := s.sent.Load().(string)
		at := -1
		for _, want := range []string{"first", "said 1", "second"} {
			i := strings.Index(sent, want)
			if i <= at {
				t.Errorf("%v: the backend got %s, want %s behind what is before it", kind, sent, want)
			}
			at = i
		}
		if strings.Contains(sent, "Be kind") || strings.Contains(sent, "previous_response_id") {
			t.Errorf("%v: the backend got %s", kind, sent)
		}
		if status, got, body := s.as(t, "", "GET", "/v1/responses/"+first, ""); status != 200 || got["id"] != first || got["status"] != "completed" {
			t.Errorf("%v: %d %s", kind, status, body)
		}
		if _, _, body := s.as(t, "", "GET", "/v1/responses/"+idOf(t, two)+"/input_items?order=asc&limit=2", ""); !strings.Contains(body, `"text":"first"`) || strings.Contains(body, "second") || !strings.Contains(body, `"has_more":true`) {
			t.Errorf("%v: its input was %s", kind, body)
		}
		if status, _, body := s.as(t, "", "DELETE", "/v1/responses/"+first, ""); status != 200 || !strings.Contains(body, `"deleted":true`) {
			t.Errorf("%v: %d %s", kind, status, body)
		}
		if status, _, body := s.as(t, "", "GET", "/v1/responses/"+first, ""); status != 404 || !strings.Contains(body, "not found") {
			t.Errorf("%v: of what is deleted: %d %s", kind, status, body)
		}
		if status, _, body := s.as(t, "", "POST", "/v1/responses", `{"model":"smollm2","input":"third","previous_response_id":"`+idOf(t, two)+`"}`); status != 400 || !strings.Contains(body, `"previous_response_not_found"`) {
			t.Errorf("%v: behind what is deleted: %d %s", kind, status, body)
		}
	}
}

// TestStoredBeforeTheEnd has a stream's response be there when its last event comes.
func TestStoredBeforeTheEnd(t *testing.T) {
	s := newStoring(t, enginepb.Backend_LLAMACPP)
	_, _, body := s.as(t, "", "POST", "/v1/responses", `{"model":"smollm2","input":"first","stream":true}`)
	if !strings.Contains(body, "event: response.completed\n") || strings.Count(body, `"store":true`) != 3 {
		t.Errorf("%s", body)
	}
	if len(s.store.all) != 1 {
		t.Errorf("%d records", len(s.store.all))
	}
	s.before = func() { s.store.down.Store(true) }
	_, _, body = s.as(t, "", "POST", "/v1/responses", `{"model":"smollm2","input":"a","stream":true}`)
	if !strings.Contains(body, "event: response.completed\n") || strings.Count(body, `"store":true`) != 2 || !strings.Contains(body, `"store":false`) {
		t.Errorf("with a store that has gone: %s", body)
	}
	_, _, body = s.as(t, "", "POST", "/v1/responses", `{"model":"smollm2","input":"a","stream":true,"store":true}`)
	if !strings.Contains(body, "event: response.failed\n") || strings.Contains(body, "response.completed") || !strings.Contains(body, "not stored") {
		t.Errorf("of one that must be stored: %s", body)
	}
	if status, v, body := s.as(t, "", "POST", "/v1/responses", `{"model":"smollm2","input":"a"}`); status != 200 || v["store"] != false {
		t.Errorf("whole: %d %s", status, body)
	}
	if status, _, body := s.as(t, "", "POST", "/v1/responses", `{"model":"smollm2","input":"a","store":true}`); status != 500 || !strings.Contains(body, `"store_failed"`) {
		t.Errorf("whole, of one that must be stored: %d %s", status, body)
	}
	if status, _, body := s.as(t, "", "POST", "/v1/responses", `{"model":"smollm2","input":"a","previous_response_id":"resp_x"}`); status != 503 || !strings.Contains(body, `"store_unavailable"`) {
		t.Errorf("of one that continues: %d %s", status, body)
	}
	if status, _, body := s.as(t, "", "POST", "/v1/responses", `{"model":"smollm2","input":"a","store":false}`); status != 200 {
		t.Errorf("of one that needs no store: %d %s", status, body)
	}
}

// TestTenantsAreApart shows nothing of a tenant's to another.
func TestTenantsAreApart(t *testing.T) {
	s := newStoring(t, enginepb.Backend_LLAMACPP)
	_, r, _ := s.as(t, "a", "POST", "/v1/responses", `{"model":"smollm2","input":"secret"}`)
	_, c, _ := s.as(t, "a", "POST", "/v1/conversations", `{"items":[{"role":"user","content":"secret"}]}`)
	response, talk := idOf(t, r), idOf(t, c)
	for _, ask := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/v1/responses/" + response, "", 404}, {"DELETE", "/v1/responses/" + response, "", 404},
		{"GET", "/v1/responses/" + response + "/input_items", "", 404}, {"POST", "/v1/responses/" + response + "/cancel", "", 404},
		{"GET", "/v1/conversations/" + talk, "", 404}, {"GET", "/v1/conversations/" + talk + "/items", "", 404},
		{"POST", "/v1/conversations/" + talk, `{"metadata":{}}`, 404}, {"DELETE", "/v1/conversations/" + talk, "", 404},
		{"POST", "/v1/conversations/" + talk + "/items", `{"items":[]}`, 404},
		{"POST", "/v1/responses", `{"model":"smollm2","input":"a","conversation":"` + talk + `"}`, 404},
		{"POST", "/v1/responses", `{"model":"smollm2","input":"a","previous_response_id":"` + response + `"}`, 400},
	} {
		for _, tenant := range []string{"b", ""} {
			if status, _, body := s.as(t, tenant, ask.method, ask.path, ask.body); status != ask.status || strings.Contains(body, "secret") {
				t.Errorf("%s %s as %q: %d %s", ask.method, ask.path, tenant, status, body)
			}
		}
	}
	if status, _, _ := s.as(t, "a", "GET", "/v1/responses/"+response, ""); status != 200 {
		t.Errorf("as its own tenant: %d", status)
	}
	if status, _, _ := s.as(t, "A/../b", "GET", "/v1/responses/"+response, ""); status != 400 {
		t.Errorf("as no tenant that can be: %d", status)
	}
}

func TestConversations(t *testing.T) {
	s := newStoring(t, enginepb.Backend_LLAMACPP)
	_, c, body := s.as(t, "", "POST", "/v1/conversations", `{"metadata":{"topic":"x"},"items":[{"type":"message","role":"developer","content":"Be brief."}]}`)
	talk := idOf(t, c)
	if c["object"] != "conversation" || !strings.Contains(body, `"topic":"x"`) {
		t.Errorf("%s", body)
	}
	for i, named := range []string{`"` + talk + `"`, `{"id":"` + talk + `"}`} {
		status, r, body := s.as(t, "", "POST", "/v1/responses", fmt.Sprintf(`{"model":"smollm2","input":"turn %d","conversation":%s}`, i+1, named))
		if status != 200 || fmt.Sprint(r["conversation"]) != "map[id:"+talk+"]" {
			t.Errorf("%d %s", status, body)
		}
	}
	if sent := s.sent.Load().(string); !strings.Contains(sent, "Be brief.") || !strings.Contains(sent, "said 1") || !strings.Contains(sent, "turn 2") {
		t.Errorf("the backend got %s", sent)
	}
	_, items, body := s.as(t, "", "GET", "/v1/conversations/"+talk+"/items?order=asc", "")
	list, _ := items["data"].([]any)
	if len(list) != 5 {
		t.Fatalf("%s", body)
	}
	item := idOf(t, list[1].(map[string]any))
	if status, v, body := s.as(t, "", "GET", "/v1/conversations/"+talk+"/items/"+item, ""); status != 200 || v["role"] != "user" {
		t.Errorf("%d %s", status, body)
	}
	if status, v, body := s.as(t, "", "DELETE", "/v1/conversations/"+talk+"/items/"+item, ""); status != 200 || v["id"] != talk {
		t.Errorf("%d %s", status, body)
	}
	if status, _, _ := s.as(t, "", "GET", "/v1/conversations/"+talk+"/items/"+item, ""); status != 404 {
		t.Errorf("of an item that is deleted: %d", status)
	}
	if status, v, body := s.as(t, "", "POST", "/v1/conversations/"+talk+"/items", `{"items":[{"role":"user","content":"more"}]}`); status != 200 || v["object"] != "list" || !strings.Contains(body, `"input_text"`) {
		t.Errorf("%d %s", status, body)
	}
	if status, _, body := s.as(t, "", "POST", "/v1/conversations/"+talk, `{"metadata":{"topic":"y"}}`); status != 200 || !strings.Contains(body, `"topic":"y"`) {
		t.Errorf("%d %s", status, body)
	}
	if status, _, body := s.as(t, "", "POST", "/v1/responses", `{"model":"smollm2","input":"a","conversation":"`+talk+`","previous_response_id":"resp_1"}`); status != 400 {
		t.Errorf("both: %d %s", status, body)
	}
	if status, _, body := s.as(t, "", "DELETE", "/v1/conversations/"+talk, ""); status != 200 || !strings.Contains(body, `"conversation.deleted"`) {
		t.Errorf("%d %s", status, body)
	}
	if status, _, _ := s.as(t, "", "GET", "/v1/conversations/"+talk, ""); status != 404 {
		t.Errorf("of one that is deleted: %d", status)
	}
}

func TestStoredIsRefusedByName(t *testing.T) {
	s := newStoring(t, enginepb.Backend_LLAMACPP)
	_, r, _ := s.as(t, "", "POST", "/v1/responses", `{"model":"smollm2","input":"a"}`)
	id := idOf(t, r)
	for _, ask := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/v1/responses/" + id + "?stream=true", "", 400, `"param":"stream"`},
		{"GET", "/v1/responses/" + id + "/input_items?limit=0", "", 400, `"param":"limit"`},
		{"GET", "/v1/responses/" + id + "/input_items?order=up", "", 400, `"param":"order"`},
		{"GET", "/v1/responses/" + id + "/input_items?after=x", "", 400, `"param":"after"`},
		{"POST", "/v1/responses/" + id + "/cancel", "", 400, "Cannot cancel a synchronous response."},
		{"PUT", "/v1/responses/" + id, "", 405, "not allowed"},
		{"GET", "/v1/conversations", "", 405, "not allowed"},
		{"POST", "/v1/conversations", `{"items":7}`, 400, `"param":"items"`},
		{"POST", "/v1/conversations", `{"metadata":{"a":7}}`, 400, `"param":"metadata"`},
		{"POST", "/v1/conversations", `[]`, 400, "not a JSON object"},
		{"POST", "/v1/responses", `{"model":"smollm2","input":"a","conversation":7}`, 400, `"param":"conversation"`},
		{"POST", "/v1/responses", `{"model":"smollm2","input":[7]}`, 400, `"param":"input"`},
		{"POST", "/v1/responses", `{"model":"smollm2","input":"a","previous_response_id":7}`, 400, `"param":"previous_response_id"`},
	} {
		if status, _, body := s.as(t, "", ask.method, ask.path, ask.body); status != ask.status || !strings.Contains(body, ask.want) {
			t.Errorf("%s %s %s: %d %s", ask.method, ask.path, ask.body, status, body)
		}
	}
}
