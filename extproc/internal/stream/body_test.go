package stream

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/extproc/internal/session"
)

func encodedBy(e string) func(*RequestHead) {
	return func(h *RequestHead) { h.ContentEncoding = e }
}

func TestEncodedBodiesAreDecoded(t *testing.T) {
	f := newFleet(3)
	long := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("a", 90000) + `"}]}`
	for _, text := range []string{hello, long} {
		b := gzipped(text)
		out := run(f.core.Begin(), post(encodedBy("gzip")), Event{Kind: RequestBody, Body: b, End: true, At: epoch})
		r := out[1]
		if r.Decision == nil || !r.Decision.Exact || !r.Replace || string(r.Chunk) != text || r.Length != len(text) || !slices.Contains(r.Remove, "content-encoding") {
			t.Errorf("buffered: %+v", r)
		}
		out = run(f.core.Begin(), post(encodedBy("gzip"), by(Duplex)),
			Event{Kind: RequestBody, Body: b[:9], At: epoch}, Event{Kind: RequestBody, Body: b[9:], End: true, At: epoch})
		var got []byte
		for _, r := range out[1:] {
			got = append(got, r.Chunk...)
		}
		if h := out[0]; h.Decision == nil || h.Length != len(text) || !slices.Contains(h.Remove, "content-encoding") || string(got) != text || !out[len(out)-1].End {
			t.Errorf("duplex: %+v, %d bytes", h, len(got))
		}
	}
}

func TestPackedBodiesRefused(t *testing.T) {
	f := newFleet(3)
	bomb := gzipped(strings.Repeat(" ", 1<<24))
	for _, tt := range []struct {
		name, encoding string
		body           []byte
		want           int // status; 0: none
	}{
		{"a bomb", "gzip", bomb, 413},
		{"not gzip", "gzip", []byte(hello), 400},
		{"cut", "gzip", gzipped(hello)[:20], 400},
		{"not JSON inside", "gzip", gzipped("x"), 400},
		{"nothing inside", "gzip", gzipped(""), 400},
		{"an unknown encoding", "br", []byte("x"), 415},
		{"two encodings", "gzip, gzip", []byte("x"), 415},
		{"no encoding by name", "identity", []byte(hello), 0},
	} {
		for _, m := range []Mode{Buffered, Duplex} {
			out := run(f.core.Begin(), post(encodedBy(tt.encoding), by(m)), Event{Kind: RequestBody, Body: tt.body, End: true, At: epoch})
			last := out[len(out)-1]
			if got := last.Error; tt.want == 0 && got != nil || tt.want != 0 && (got == nil || got.Status != tt.want) {
				t.Errorf("%s, mode %d: %+v, want status %d", tt.name, m, last, tt.want)
			}
		}
	}
}

func TestUnseenAndUnknownBodiesPassPacked(t *testing.T) {
	f := newFleet(3)
	b := gzipped(hello)
	for name, evs := range map[string][]Event{
		"streamed":     {post(encodedBy("br"), by(Streamed))},
		"headers only": {post(encodedBy("br"), by(Unseen))},
		"half of it":   {post(encodedBy("gzip")), {Kind: RequestBody, Body: b[:20], At: epoch}},
		"unknown path": {post(encodedBy("br"), func(h *RequestHead) { h.Path = "/v1/anything" }), {Kind: RequestBody, Body: b, End: true, At: epoch}},
	} {
		out := run(f.core.Begin(), evs...)
		last := out[len(out)-1]
		if last.Error != nil || last.Replace || last.Length != 0 || last.Decision == nil || last.Decision.Exact {
			t.Errorf("%s: %+v, want it to go on as it came", name, last)
		}
	}
}

func TestPassthrough(t *testing.T) {
	f := newFleet(3, func(t *pick.Table) {
		other := &pick.Model{Name: "other", Learned: new(pick.Learned), Endpoints: t.Models["m"].Endpoints}
		t.Models["other"] = other
	})
	for _, tt := range []struct {
		name, method, path, kind, body, model string
		most                                  int // tokens
	}{
		{"rerank", "POST", "/v1/rerank", "application/json", `{"model":"other","query":"x","documents":["y"]}`, "other", 20},
		{"a sound", "POST", "/v1/audio/effects", "multipart/form-data; boundary=x", strings.Repeat("--x\r\n", 10000), "m", upload},
		{"no JSON", "POST", "/v1/anything", "application/json", `[`, "m", 1},
		{"a body without a type", "PUT", "/v1/files/1", "", "abc", "m", 1},
	} {
		head := post(func(h *RequestHead) { h.Method, h.Path, h.ContentType = tt.method, tt.path, tt.kind })
		out := run(f.core.Begin(), head, bodyOf(tt.body))
		d := out[1].Decision
		if d == nil || d.Model != tt.model || d.Exact || d.PromptTokens > tt.most {
			t.Errorf("%s: %+v, want %s and at most %d tokens", tt.name, out[1], tt.model, tt.most)
		}
	}
	out := run(f.core.Begin(), Event{Kind: RequestHeaders, End: true, At: epoch, Request: RequestHead{Method: "GET", Path: "/v1/anything", Length: -1}})
	if d := out[0].Decision; d == nil || d.OutputTokens != 0 || d.PromptTokens != 1 {
		t.Errorf("a GET: %+v, want a decision for nothing to do", out[0])
	}
}

// canary serves requests for "chat" by m and other, each by half.
func canary(t *pick.Table) {
	m := t.Models["m"]
	other := &pick.Model{Name: "other", Seed: session.Seed("other"), Learned: new(pick.Learned), Endpoints: m.Endpoints}
	t.Models["other"] = other
	t.Policy.Rewrites = map[string]*pick.Rewrite{
		"chat": {Model: "chat", To: []pick.Target{{Model: "m", Weight: 1}, {Model: "other", Weight: 1}}},
		"m":    {Model: "m", To: []pick.Target{{Model: "m", Weight: 1}}},
		"none": {Model: "none", To: []pick.Target{{Model: "gone", Weight: 1}}},
	}
}

// turns is a conversation of n turns, each a body.
func turns(n, id int) []string {
	var all []string
	messages := fmt.Sprintf(`{"role":"user","content":"talk %d"}`, id)
	for i := range n {
		all = append(all, `{"messages":[`+messages+`],"model":"chat"}`)
		messages += fmt.Sprintf(`,{"role":"assistant","content":"a%d"},{"role":"user","content":"q%d"}`, i, i)
	}
	return all
}

func TestModelIsRewritten(t *testing.T) {
	f := newFleet(3, canary)
	served := map[string]int{}
	for id := range 200 {
		models := map[string]bool{}
		cookie := ""
		for _, body := range turns(4, id) {
			x := f.core.Begin()
			out := run(x, post(func(h *RequestHead) { h.Cookie = cookie }), bodyOf(body), answerBy("127.0.0.1:20000", 20))
			r := out[1]
			if r.Decision == nil || r.Decision.Asked != "chat" || !r.Replace || r.Length != len(r.Chunk) {
				t.Fatalf("%+v, want a body with another model", r)
			}
			var got struct{ Model string }
			if err := json.Unmarshal(r.Chunk, &got); err != nil || got.Model != r.Decision.Model {
				t.Fatalf("%s: %v, want the model %s", r.Chunk, err, r.Decision.Model)
			}
			cookie, _, _ = strings.Cut(out[2].Cookie, ";")
			models[got.Model] = true
			f.core.Finish(x)
		}
		if len(models) != 1 {
			t.Fatalf("conversation %d was served by %v", id, models)
		}
		for name := range models {
			served[name]++
		}
	}
	if served["m"] < 70 || served["other"] < 70 {
		t.Errorf("conversations were served by %v, want about 100 each", served)
	}
}

func TestRewriteOfNamedSessions(t *testing.T) {
	f := newFleet(3, canary)
	for id := range 50 {
		models := map[string]bool{}
		for turn := range 4 {
			body := fmt.Sprintf(`{"model":"chat","messages":[{"role":"user","content":"%d"}]}`, turn)
			out := run(f.core.Begin(), post(by(Duplex), func(h *RequestHead) { h.Session = fmt.Sprint("s", id) }), bodyOf(body))
			models[out[0].Decision.Model] = true
			if out[0].Length == 0 || len(out[1].Chunk) != out[0].Length {
				t.Fatalf("%+v, want a length of %d", out[0], len(out[1].Chunk))
			}
		}
		if len(models) != 1 {
			t.Fatalf("session %d was served by %v", id, models)
		}
	}
}

// TestRewriteByWhoAsks is about what has no conversation: completions of one user,
// or of one client, stay with a model.
func TestRewriteByWhoAsks(t *testing.T) {
	f := newFleet(3, canary)
	completions := func(cookie string) Event {
		return post(func(h *RequestHead) { h.Path, h.Cookie = "/v1/completions", cookie })
	}
	first := run(f.core.Begin(), completions(""), bodyOf(`{"model":"chat","prompt":"x"}`), answerBy("127.0.0.1:20000", 20))
	cookie, _, _ := strings.Cut(first[2].Cookie, ";")
	users, clients, texts := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for i := range 40 {
		body := fmt.Sprintf(`{"model":"chat","prompt":"%d"}`, i)
		texts[run(f.core.Begin(), completions(""), bodyOf(body))[1].Decision.Model] = true
		clients[run(f.core.Begin(), completions(cookie), bodyOf(body))[1].Decision.Model] = true
		body = fmt.Sprintf(`{"model":"chat","prompt":"%d","user":"u"}`, i)
		users[run(f.core.Begin(), completions(""), bodyOf(body))[1].Decision.Model] = true
	}
	if len(users) != 1 || len(clients) != 1 || len(texts) != 2 {
		t.Errorf("one user is served by %v, one client by %v, anybody by %v", users, clients, texts)
	}
}

func TestWhatIsNotRewritten(t *testing.T) {
	f := newFleet(3, canary)
	out := run(f.core.Begin(), post(), bodyOf(hello))
	if r := out[1]; r.Replace || r.Decision.Asked != "" {
		t.Errorf("a model that serves itself: %+v", r)
	}
	out = run(f.core.Begin(), post(), bodyOf(`{"model":"none","messages":[]}`))
	if r := out[1]; r.Error == nil || r.Error.Status != 404 {
		t.Errorf("a name for a model that isn't there: %+v", r)
	}
	out = run(f.core.Begin(), post(by(Unseen)))
	if r := out[0]; r.Decision == nil || r.Decision.Model != "m" || testutil.ToFloat64(f.core.metrics.unseen) != 1 {
		t.Errorf("an unseen body: %+v", r)
	}
	out = run(f.core.Begin(), post(func(h *RequestHead) { h.Path = "/v1/rerank" }), bodyOf(`{"model":"chat"}`))
	if r := out[1]; r.Decision.Asked != "chat" || !r.Replace {
		t.Errorf("an operation that we don't know: %+v", r)
	}
}

func TestRewriteOfPacked(t *testing.T) {
	f := newFleet(3, canary)
	out := run(f.core.Begin(), post(encodedBy("gzip")), Event{Kind: RequestBody, End: true, At: epoch, Body: gzipped(turns(1, 1)[0])})
	if r := out[1]; !strings.Contains(string(r.Chunk), `"model":"`+r.Decision.Model+`"`) || !slices.Contains(r.Remove, "content-encoding") {
		t.Errorf("%+v, want a plain body with another model", r)
	}
}

func TestOutputByHints(t *testing.T) {
	f := newFleet(1)
	for hints, want := range map[string]int{
		``:                                    128,
		`,"max_tokens":5`:                     5,
		`,"max_tokens":500`:                   128,
		`,"max_tokens":500,"ignore_eos":true`: 500,
		`,"max_tokens":500,"ignore_eos":true,"stop":["x"]`: 128,
		`,"min_tokens":300`:                  300,
		`,"min_tokens":300,"max_tokens":200`: 200,
		`,"n":3`:                             384,
	} {
		out := run(f.core.Begin(), post(), bodyOf(`{"model":"m","messages":[]`+hints+`}`))
		if got := out[1].Decision.OutputTokens; got != want {
			t.Errorf("%s: %d tokens are expected, want %d", hints, got, want)
		}
	}
	out := run(f.core.Begin(), post(func(h *RequestHead) { h.Path = "/v1/messages/count_tokens" }), bodyOf(hello))
	if got := out[1].Decision.OutputTokens; got != 0 {
		t.Errorf("to count tokens %d tokens are expected, want 0", got)
	}
}

func TestEstimateIsLearned(t *testing.T) {
	f := newFleet(1)
	f.model.SetCounter(nil)
	at := func(usage int) int {
		x := f.core.Begin()
		defer f.core.Finish(x)
		out := run(x, post(), bodyOf(`{"model":"m","messages":[{"role":"user","content":"`+strings.Repeat("word ", 400)+`"}]}`))
		if usage > 0 {
			run(x, answerBy("127.0.0.1:20000", usage))
		}
		if out[1].Decision.Exact {
			t.Error("an estimate says that it is exact")
		}
		return out[1].Decision.PromptTokens
	}
	if n := at(900); n != 504 {
		t.Errorf("at first %d tokens, want a quarter of the bytes and 4", n)
	}
	for range 60 {
		at(900)
	}
	if n := at(0); n < 880 || n > 920 {
		t.Errorf("%d tokens are estimated, want 900", n)
	}
}

func TestContinuesResponse(t *testing.T) {
	for name, answer := range map[string]func(*Event) []Event{
		"header": func(ev *Event) []Event { ev.Answer.Response = "resp_1"; return []Event{*ev} },
		"trailer": func(ev *Event) []Event {
			return []Event{*ev, {Kind: ResponseTrailers, At: ev.At, Answer: AnswerHead{Response: "resp_1"}}}
		},
		"body": func(ev *Event) []Event {
			return []Event{*ev, {Kind: ResponseBody, At: ev.At, Body: []byte(`{"created_at":1,"id": "resp_1","output":[]}`)}}
		},
	} {
		f := newFleet(6, canary)
		responses := func(h *RequestHead) { h.Path = "/v1/responses" }
		x := f.core.Begin()
		out := run(x, post(responses), bodyOf(`{"model":"chat","input":"`+strings.Repeat("long ", 1000)+`"}`))
		model := out[1].Decision.Model
		by := "127.0.0.1:20004" // not the first choice
		ev := answerBy(by, 1300)
		run(x, answer(&ev)...)
		f.core.Finish(x)
		next := post(responses)
		next.At = epoch.Add(2 * time.Second)
		body := bodyOf(`{"model":"chat","input":"and?","previous_response_id":"resp_1"}`)
		body.At = next.At
		d := run(f.core.Begin(), next, body)[1].Decision
		if d.Choice.List[0].Address != by || d.Model != model || d.PromptTokens < 1300 || d.Session != "resp_1" || d.Choice.List[0].Cached < 1000 {
			t.Errorf("%s: %+v of model %s at %s; want it to go on with %s at %s", name, d, d.Model, d.Choice.List[0].Address, model, by)
		}
		unknown := bodyOf(`{"model":"m","input":"and?","previous_response_id":"resp_2"}`)
		if d := run(f.core.Begin(), post(responses), unknown)[1].Decision; d == nil || d.PromptTokens > 50 {
			t.Errorf("%s: going on from what isn't known: %+v", name, d)
		}
	}
}

func TestResponseID(t *testing.T) {
	for body, want := range map[string]string{
		`{"id":"resp_a1","object":"response"}`: "resp_a1",
		"event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_Z-9\"}}\n\n": "resp_Z-9",
		`{"output":[{"id":"msg_1","text":"\"id\":\"resp_no\""}],"id":  "resp_2"}`:                               "resp_2",
		`{"id":"chatcmpl-1"}`: "",
		`{"id":"resp_ä"}`:     "",
		`{"id":"resp_cut off`: "",
		`{"id":5,"id":"resp_`: "",
		``:                    "",
		`{"id":"resp_` + strings.Repeat("a", 200) + `"}`:              "",
		`{"x":"` + strings.Repeat("a", idWithin) + `","id":"resp_1"}`: "",
	} {
		if got := string(responseID([]byte(body))); got != want {
			t.Errorf("responseID(%.60s) = %q, want %q", body, got, want)
		}
	}
}

func FuzzResponseID(f *testing.F) {
	f.Add([]byte(`{"id":"resp_a1","object":"response"}`))
	f.Add([]byte(`data: {"response":{"id": "resp_1"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		id := responseID(body)
		if id == nil {
			return
		}
		if len(id) > longestID || !bytes.HasPrefix(id, []byte("resp_")) || !named(id) || !bytes.Contains(body, append(append([]byte{'"'}, id...), '"')) {
			t.Errorf("responseID(%q) = %q", body, id)
		}
	})
}

// TestHeadersThatLeaveNoRoom are refused before ours are added: Envoy would answer 500.
func TestHeadersThatLeaveNoRoom(t *testing.T) {
	tests := []struct {
		name          string
		headers, size int
		length        int64
		query         int // bytes of it
		status        int
	}{
		{"as many as there may be", mostHeaders, mostHeaderBytes, 10, 0, 0},
		{"too many", mostHeaders + 1, 5000, 10, 0, 431},
		{"too large", 9, mostHeaderBytes + 1, 10, 0, 431},
		{"a length that is none", 9, 900, NoLength, 0, 400},
		{"a path as long as there may be", mostHeaders, 17_000, 10, mostPath - len("/v1/chat/completions?"), 0},
		{"a longer path", mostHeaders, 17_000, 10, mostPath, 414},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(1)
			x := f.core.Begin()
			out := run(x, post(func(h *RequestHead) {
				h.Headers, h.HeaderBytes, h.Length, h.Debug = tt.headers, tt.size, tt.length, true
				h.Path = "/v1/chat/completions?" + strings.Repeat("q", tt.query)
			}))
			if err := out[0].Error; (err == nil) != (tt.status == 0) || err != nil && err.Status != tt.status {
				t.Fatalf("got %+v, want status %d", err, tt.status)
			}
			if tt.status != 0 {
				return
			}
			run(x, bodyOf(hello))
			answer := AnswerHead{Answer: pick.Answer{Status: 200}, Headers: tt.headers + 1}
			out = run(x, Event{Kind: ResponseHeaders, At: epoch, Answer: answer})
			if out[0].Explanation != nil || out[0].Cookie != "" {
				t.Errorf("an answer with %d headers got more: %+v", answer.Headers, out[0])
			}
		})
	}
}
