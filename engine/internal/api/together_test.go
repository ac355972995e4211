package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/admit"
	"millrace.dev/millrace/internal/wire"
)

// pooled is a backend that answers with an embedding that is an input's length; it refuses a call that has "bad"
// in it, and lets calls wait for which hold says so.
type pooled struct {
	hold  chan struct{} // each call takes one; nil: none waits
	extra int           // tokens that each input has beside its bytes
	mu    sync.Mutex
	calls [][]string
	began chan struct{}
}

func (e *pooled) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		Input json.RawMessage `json:"input"`
	}
	_ = json.NewDecoder(r.Body).Decode(&asked)
	var inputs []string
	if json.Unmarshal(asked.Input, &inputs) != nil {
		inputs = []string{strings.Trim(string(asked.Input), `"`)}
	}
	e.mu.Lock()
	e.calls = append(e.calls, inputs)
	e.mu.Unlock()
	if e.hold != nil {
		e.began <- struct{}{}
		select {
		case <-e.hold:
		case <-r.Context().Done():
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if slices.Contains(inputs, "bad") {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error":{"code":400,"message":"bad input","type":"invalid_request_error"}}`)
		return
	}
	var data []string
	sum := 0
	for i, s := range inputs {
		data = append(data, fmt.Sprintf(`{"embedding":[%d.25],"index":%d,"object":"embedding"}`, len(s), i))
		sum += len(s) + e.extra
	}
	slices.Reverse(data) // their index says which they are
	_, _ = fmt.Fprintf(w, `{"object":"list","model":"m","data":[%s],"usage":{"prompt_tokens":%d,"total_tokens":%d}}`, strings.Join(data, ","), sum, sum)
}

// sent is how many inputs each call had.
func (e *pooled) sent() (all []int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.calls {
		all = append(all, len(c))
	}
	return all
}

func newPooled(t *testing.T, e *pooled, kind enginepb.Backend_Kind) *rig {
	g := newRigOf(t, kind, e.ServeHTTP)
	g.gate.Set(admit.Limits{Slots: 1, Queue: 64})
	g.serving.Load().Assignment.Backend.Slots = 4
	return g
}

type embedded struct {
	status int
	body   string
	usage  string
}

// embed asks for the embedding of a text, which has as many tokens as bytes.
func (g *rig) embed(ctx context.Context, text string, more ...string) embedded {
	req := g.request(ctx, "/v1/embeddings", fmt.Sprintf(`{"model":"smollm2","input":%q%s}`, text, strings.Join(more, "")))
	req.Header.Set(wire.PromptTokensHeader, fmt.Sprint(len(text)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return embedded{body: err.Error()}
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return embedded{resp.StatusCode, string(b), resp.Header.Get(headerUsage)}
}

// together starts requests one after the other behind one that is in the backend, lets that go,
// and returns what came.
func (g *rig) together(t *testing.T, e *pooled, texts ...string) []embedded {
	t.Helper()
	got := make([]embedded, len(texts))
	var wg sync.WaitGroup
	wg.Go(func() { g.embed(t.Context(), "first") })
	<-e.began
	for i, text := range texts {
		wg.Go(func() { got[i] = g.embed(t.Context(), text) })
	}
	g.waits(t, e, len(texts))
	go func() {
		for range e.began { // nobody is held up any more
		}
	}()
	close(e.hold)
	wg.Wait()
	return got
}

// waits returns when n calls have joined batches.
func (g *rig) waits(t *testing.T, _ *pooled, n int) {
	t.Helper()
	until(t, func() bool { return g.server.batcher.Waiting() == n })
}

func TestEmbeddingsGoTogether(t *testing.T) {
	e := &pooled{hold: make(chan struct{}), began: make(chan struct{})}
	g := newPooled(t, e, enginepb.Backend_OPENAI)
	texts := []string{"a", "bb", "ccc", "dddd", "eeeee"}
	for i, got := range g.together(t, e, texts...) {
		n := i + 1
		want := fmt.Sprintf(`{"data":[{"embedding":[%d.25],"index":0,"object":"embedding"}],"model":"m","object":"list","usage":{"prompt_tokens":%d,"total_tokens":%d}}`, n, n, n)
		var a, b any
		_ = json.Unmarshal([]byte(got.body), &a)
		_ = json.Unmarshal([]byte(want), &b)
		if got.status != http.StatusOK || fmt.Sprint(a) != fmt.Sprint(b) || !strings.HasPrefix(got.usage, fmt.Sprintf("prompt=%d,", n)) {
			t.Errorf("%+v, want %s", got, want)
		}
	}
	sizes := e.sent()
	if slices.Sort(sizes[1:]); !slices.Equal(sizes, []int{1, 1, 4}) {
		t.Errorf("calls of %v inputs, want 1 alone, then 4 and 1", sizes)
	}
	if l := g.gate.Load(); l != (admit.Load{Slots: 1}) {
		t.Errorf("load %+v after all", l)
	}
	if total := g.meter.Totals(); total.Requests != 6 || total.Prompt != 5+15 {
		t.Errorf("%+v", total)
	}
}

// TestOneBadInputFailsAlone: what the backend refuses together is sent alone.
func TestOneBadInputFailsAlone(t *testing.T) {
	e := &pooled{hold: make(chan struct{}), began: make(chan struct{})}
	g := newPooled(t, e, enginepb.Backend_OPENAI)
	for i, got := range g.together(t, e, "a", "bad", "ccc") {
		switch want := map[bool]int{true: http.StatusBadRequest, false: http.StatusOK}[i == 1]; {
		case got.status != want:
			t.Errorf("%d: %+v, want %d", i, got, want)
		case i == 1 && !strings.Contains(got.body, "bad input"), i != 1 && !strings.Contains(got.body, fmt.Sprintf("[%d.25]", i+1)):
			t.Errorf("%d: %+v", i, got)
		}
	}
	if sizes := e.sent(); !slices.Equal(sizes, []int{1, 3, 1, 1, 1}) {
		t.Errorf("calls of %v inputs", sizes)
	}
}

// TestAccountThatIsNotTheSum is not divided: each goes alone.
func TestAccountThatIsNotTheSum(t *testing.T) {
	e := &pooled{hold: make(chan struct{}), began: make(chan struct{}), extra: 1}
	g := newPooled(t, e, enginepb.Backend_OPENAI)
	for i, got := range g.together(t, e, "a", "bb", "ccc") {
		if got.status != http.StatusOK || !strings.Contains(got.body, fmt.Sprintf(`"prompt_tokens":%d`, i+2)) {
			t.Errorf("%d: %+v", i, got)
		}
	}
	if sizes := e.sent(); !slices.Equal(sizes, []int{1, 3, 1, 1, 1}) {
		t.Errorf("calls of %v inputs", sizes)
	}
}

// TestWhoLeavesABatch is answered no more, and the others are.
func TestWhoLeavesABatch(t *testing.T) {
	e := &pooled{hold: make(chan struct{}), began: make(chan struct{})}
	g := newPooled(t, e, enginepb.Backend_OPENAI)
	var wg sync.WaitGroup
	wg.Go(func() { g.embed(t.Context(), "first") })
	<-e.began
	ctx, leave := context.WithCancel(t.Context())
	wg.Go(func() { g.embed(ctx, "leader") })
	g.waits(t, e, 1)
	wg.Go(func() {
		if got := g.embed(t.Context(), "bb"); got.status != http.StatusOK || !strings.Contains(got.body, "[2.25]") {
			t.Errorf("%+v", got)
		}
	})
	g.waits(t, e, 2)
	leave()
	g.waits(t, e, 1)
	e.hold <- struct{}{}
	<-e.began
	e.hold <- struct{}{}
	wg.Wait()
	if sizes := e.sent(); !slices.Equal(sizes, []int{1, 1}) {
		t.Errorf("calls of %v inputs", sizes)
	}
	until(t, func() bool { return g.gate.Load() == admit.Load{Slots: 1} })
}

// TestOthersFieldsGoApart: whatever else differs is another call.
func TestOthersFieldsGoApart(t *testing.T) {
	e := &pooled{hold: make(chan struct{}), began: make(chan struct{})}
	g := newPooled(t, e, enginepb.Backend_OPENAI)
	var wg sync.WaitGroup
	wg.Go(func() { g.embed(t.Context(), "first") })
	<-e.began
	for _, more := range []string{``, `,"encoding_format":"float"`, `,"encoding_format":"base64"`} {
		wg.Go(func() { g.embed(t.Context(), "a", more) })
	}
	g.waits(t, e, 3)
	go func() {
		for range e.began {
		}
	}()
	close(e.hold)
	wg.Wait()
	if sizes := e.sent(); !slices.Equal(sizes, []int{1, 1, 1, 1}) {
		t.Errorf("calls of %v inputs", sizes)
	}
}

// TestUnequalInputsAreNotInLlamaCppTogether: it would answer them wrongly. Equally long ones may be.
func TestUnequalInputsAreNotInLlamaCppTogether(t *testing.T) {
	var in, most atomic.Int32
	e := &pooled{hold: make(chan struct{}), began: make(chan struct{})}
	g := newRigOf(t, enginepb.Backend_LLAMACPP, func(w http.ResponseWriter, r *http.Request) {
		if n := in.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer in.Add(-1)
		e.ServeHTTP(w, r)
	})
	g.gate.Set(admit.Limits{Slots: 4, Queue: 64})
	g.serving.Load().Assignment.Backend.Slots = 4
	var wg sync.WaitGroup
	wg.Go(func() { g.embed(t.Context(), "first") })
	<-e.began
	// A list goes one by one, whoever sends it.
	wg.Go(func() {
		if resp, body := g.post(t, "/v1/embeddings", `{"model":"smollm2","input":["a","bb","ccc"]}`); resp.StatusCode != http.StatusOK || !strings.Contains(body, "[3.25]") {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	})
	for _, text := range []string{"dd", "eeee"} {
		wg.Go(func() { g.embed(t.Context(), text) })
	}
	until(t, func() bool { return g.gate.Load().Running == 4 })
	for _, text := range []string{"fffff", "ggggg", "hhhhh", "iiiiii"} { // wait in the queue
		wg.Go(func() {
			if got := g.embed(t.Context(), text); !strings.Contains(got.body, fmt.Sprintf("[%d.25]", len(text))) {
				t.Errorf("%+v", got)
			}
		})
	}
	g.waits(t, e, 4)
	go func() {
		for range e.began {
		}
	}()
	close(e.hold)
	wg.Wait()
	sizes := e.sent()
	if slices.Sort(sizes); !slices.Equal(sizes, []int{1, 1, 1, 1, 1, 1, 1, 3}) || most.Load() != 1 {
		t.Errorf("calls of %v inputs, %d at once; want one of three, and one at once", sizes, most.Load())
	}
}

func TestSingle(t *testing.T) {
	for input, want := range map[string]string{
		`"a"`: `"a" 0`, `["a"]`: `"a" 0`, `[1,2]`: `[1,2] 2`, `[[1,2]]`: `[1,2] 2`,
		`["a","b"]`: ``, `[[1],[2]]`: ``, `[]`: ``, `[[]]`: ``, `[[["a"]]]`: ``, `[["a"]]`: ``, `[1,"a"]`: ``, `[1.5]`: ``, `[1e3]`: ``, `[-1]`: ``, `[null]`: ``, `3`: ``, ``: ``,
	} {
		got := ""
		if one, ids, ok := single(json.RawMessage(input)); ok {
			got = fmt.Sprint(string(one), " ", ids)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", input, got, want)
		}
	}
}

func FuzzDivide(f *testing.F) {
	f.Add([]byte(`{"data":[{"index":1,"embedding":[1]},{"index":0,"embedding":"AA"}],"usage":{"prompt_tokens":5,"total_tokens":5}}`), int64(2), int64(3))
	f.Add([]byte(`{"data":[null,{"index":0}],"usage":null}`), int64(0), int64(0))
	f.Fuzz(func(t *testing.T, answer []byte, a, b int64) {
		parts, err := divide(answer, []int64{a, b})
		if err != nil {
			return
		}
		for _, p := range parts {
			var v struct {
				Data []struct{ Index int }
			}
			if err := json.Unmarshal(p, &v); err != nil || len(v.Data) != 1 {
				t.Fatalf("%s: %v", p, err)
			}
		}
	})
}
