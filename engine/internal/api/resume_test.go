package api

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/wire"
)

// words are what the fake generates, a token each.
var words = []string{"Ri", "vers", " ä", "re", " \"long\"", ".", "\n", "Very", " long", "!"}

// model is a fake llama.cpp that breaks off.
type model struct {
	breaks atomic.Int64 // behind so many events of the next streams; < 0: not at all
	left   atomic.Int64 // how many streams break
	asked  atomic.Int64 // how many streams were asked for
}

type ask struct {
	Messages []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	} `json:"messages"`
	Prompt    string `json:"prompt"`
	Content   string `json:"content"`
	Max       *int   `json:"max_tokens"`
	N         int    `json:"n"`
	Continues string `json:"continue_final_message"`
	Options   struct {
		Usage bool `json:"include_usage"`
	} `json:"stream_options"`
}

const prompt = "Say it: "

// delivered is what of the answer is in the request, in tokens.
func (a *ask) delivered(t *testing.T) int {
	text := strings.TrimPrefix(a.Prompt+a.Content, prompt)
	if last := len(a.Messages) - 1; last >= 0 && a.Messages[last].Role == "assistant" {
		var blocks []struct {
			Text string `json:"text"`
		}
		if json.Unmarshal(a.Messages[last].Content, &blocks) == nil && len(blocks) == 1 {
			text = blocks[0].Text
		} else if json.Unmarshal(a.Messages[last].Content, &text) != nil || a.Continues != "content" {
			t.Errorf("a last message %+v that is not to be continued", a)
		}
	}
	for n := range len(words) + 1 {
		if strings.Join(words[:n], "") == text {
			return n
		}
	}
	t.Errorf("the request has %q", text)
	return 0
}

const fakePrompt = 7 // tokens

func (m *model) serve(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var a ask
		body, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(body, &a); err != nil {
			t.Error(err)
		}
		have := a.delivered(t)
		switch r.URL.Path {
		case "/v1/chat/completions/input_tokens", "/v1/messages/count_tokens":
			_, _ = fmt.Fprintf(w, `{"input_tokens":%d}`, fakePrompt+have)
			return
		case "/tokenize":
			_, _ = fmt.Fprintf(w, `{"tokens":[1%s]}`, strings.Repeat(",1", fakePrompt+have-1))
			return
		}
		m.asked.Add(1)
		w.Header().Set("Content-Type", "text/event-stream")
		sent, breaks := int64(0), int64(-1)
		if m.left.Add(-1) >= 0 {
			breaks = m.breaks.Load()
		}
		emit := func(event string) {
			if sent++; sent > breaks && breaks >= 0 {
				_, _ = io.WriteString(w, event[:len(event)/2])
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
			_, _ = io.WriteString(w, event)
			w.(http.Flusher).Flush()
		}
		end, reason := len(words), "stop"
		if a.Max != nil && have+*a.Max < end {
			end, reason = have+*a.Max, "length"
		}
		id := fmt.Sprintf("chatcmpl-%d", m.asked.Load())
		switch r.URL.Path {
		case "/v1/messages":
			generateMessage(emit, id, have, end, reason)
		case "/v1/completions":
			for _, word := range words[have:end] {
				emit(fmt.Sprintf("data: {\"id\":%q,\"choices\":[{\"index\":0,\"text\":%s,\"finish_reason\":null}]}\n\n", id, quoted(word)))
			}
			emit(fmt.Sprintf("data: {\"id\":%q,\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":%q}],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d}}\n\ndata: [DONE]\n\n", id, reason, fakePrompt+have, end-have))
		default:
			for i := range max(1, a.N) {
				emit(fmt.Sprintf("data: {\"id\":%q,\"choices\":[{\"index\":%d,\"delta\":{\"role\":\"assistant\",\"content\":null},\"finish_reason\":null}]}\n\n", id, i))
			}
			for _, word := range words[have:end] {
				for i := range max(1, a.N) {
					emit(fmt.Sprintf("data: {\"id\":%q,\"choices\":[{\"index\":%d,\"delta\":{\"content\":%s},\"finish_reason\":null}]}\n\n", id, i, quoted(word)))
				}
			}
			for i := range max(1, a.N) {
				emit(fmt.Sprintf("data: {\"id\":%q,\"choices\":[{\"index\":%d,\"delta\":{},\"finish_reason\":%q}]}\n\n", id, i, reason))
				if a.Options.Usage {
					emit(fmt.Sprintf("data: {\"id\":%q,\"choices\":[],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d},\"timings\":{\"predicted_n\":1}}\n\n", id, fakePrompt+have, end-have))
				}
			}
			emit("data: [DONE]\n\n")
		}
	}
}

func quoted(s string) []byte { b, _ := json.Marshal(s); return b }

func generateMessage(emit func(string), id string, have, end int, reason string) {
	say := func(kind, more string) {
		emit(fmt.Sprintf("event: %s\ndata: {\"type\":%q%s}\n\n", kind, kind, more))
	}
	say("message_start", fmt.Sprintf(`,"message":{"id":%q,"content":[],"usage":{"input_tokens":%d,"output_tokens":0}}`, id, fakePrompt+have))
	say("content_block_start", `,"index":0,"content_block":{"type":"text","text":""}`)
	for _, word := range words[have:end] {
		say("content_block_delta", fmt.Sprintf(`,"index":0,"delta":{"type":"text_delta","text":%s}`, quoted(word)))
	}
	say("content_block_stop", `,"index":0`)
	say("message_delta", fmt.Sprintf(`,"delta":{"stop_reason":%q},"usage":{"output_tokens":%d}`, map[string]string{"stop": "end_turn", "length": "max_tokens"}[reason], end-have))
	say("message_stop", "")
}

// answered is what a client makes of a stream.
type answered struct {
	Texts  [2]string
	IDs    int // different ones
	Usage  string
	Ends   string
	Starts int // of messages, blocks and responses
	Failed bool
}

func read(t *testing.T, body string) (a answered) {
	ids := map[string]bool{}
	for line := range strings.Lines(body) {
		data, ok := strings.CutPrefix(strings.TrimSpace(line), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			a.Ends += " DONE"
			continue
		}
		var e struct {
			ID, Type string
			Choices  []struct {
				Index  int
				Text   string
				Finish string `json:"finish_reason"`
				Delta  struct{ Content, Role string }
			}
			Delta    json.RawMessage
			Message  struct{ ID string }
			Response struct {
				ID, Status string
				Usage      json.RawMessage
			}
			Usage json.RawMessage
			Error json.RawMessage
		}
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			t.Fatalf("%v: %s", err, data)
		}
		a.Failed = a.Failed || e.Error != nil
		for _, id := range []string{e.ID, e.Message.ID, e.Response.ID} {
			if id != "" {
				ids[id] = true
			}
		}
		for _, c := range e.Choices {
			a.Texts[c.Index] += c.Delta.Content + c.Text
			if c.Delta.Role != "" {
				a.Starts++
			}
			if c.Finish != "" {
				a.Ends += " " + c.Finish
			}
		}
		var delta struct {
			Text   string
			Reason string `json:"stop_reason"`
		}
		var text string
		switch {
		case e.Type == "response.output_text.delta" && json.Unmarshal(e.Delta, &text) == nil:
			a.Texts[0] += text
		case e.Delta != nil && json.Unmarshal(e.Delta, &delta) == nil:
			a.Texts[0] += delta.Text
			if delta.Reason != "" {
				a.Ends += " " + delta.Reason
			}
		}
		switch e.Type {
		case "message_start", "content_block_start", "content_block_stop", "response.created", "response.output_item.added":
			a.Starts++
		case "message_stop", "response.completed", "response.incomplete":
			a.Ends += " " + e.Type
		}
		for _, u := range []json.RawMessage{e.Usage, e.Response.Usage} {
			var n map[string]any
			if json.Unmarshal(u, &n) == nil && n != nil {
				a.Usage += fmt.Sprint(n["prompt_tokens"], n["completion_tokens"], n["input_tokens"], n["output_tokens"], ";")
			}
		}
	}
	a.IDs = len(ids)
	return a
}

// resumable are requests for streams that are continued.
var resumable = map[string]struct{ path, body string }{
	"chat":            {"/v1/chat/completions", `"messages":[{"role":"user","content":"a"}],"stream_options":{"include_usage":true}`},
	"chat, no usage":  {"/v1/chat/completions", `"messages":[{"role":"user","content":"a"}]`},
	"a limit":         {"/v1/chat/completions", `"messages":[{"role":"user","content":"a"}],"max_tokens":6,"stream_options":{"include_usage":true}`},
	"two choices":     {"/v1/chat/completions", `"messages":[{"role":"user","content":"a"}],"n":2,"stream_options":{"include_usage":true}`},
	"tools, uncalled": {"/v1/chat/completions", `"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"f"}}]`},
	"completions":     {"/v1/completions", `"prompt":"Say it: ","max_tokens":9,"stream_options":{"include_usage":true}`},
	"responses":       {"/v1/responses", `"input":"a","max_output_tokens":8`},
	"messages":        {"/v1/messages", `"messages":[{"role":"user","content":"a"}],"max_tokens":100`},
	"a message's limit": {
		"/v1/messages", `"messages":[{"role":"user","content":"a"}],"max_tokens":5`},
}

// TestResume has streams break behind every event, once and again and again: the client gets
// what it would have got without that.
func TestResume(t *testing.T) {
	for name, tt := range resumable {
		t.Run(name, func(t *testing.T) {
			var m model
			g := newRig(t, m.serve(t))
			g.server.cfg.ResumeFor = time.Minute
			body := `{"model":"smollm2","stream":true,` + tt.body + `}`
			resp, whole := g.post(t, tt.path, body)
			want, usage := read(t, whole), strings.Split(resp.Trailer.Get(headerUsage), ",")
			if want.Texts[0] == "" || want.IDs != 1 || want.Ends == "" || want.Failed {
				t.Fatalf("undisturbed: %+v\n%s", want, whole)
			}
			for times := range int64(3) {
				for at := int64(1); at <= int64(strings.Count(whole, "\n\n")); at++ {
					m.breaks.Store(at)
					m.left.Store(times + 1)
					resp, got := g.post(t, tt.path, body)
					if got := read(t, got); got != want {
						t.Errorf("broken %d times behind event %d: %+v, want %+v", times+1, at, got, want)
					}
					account := strings.Split(resp.Trailer.Get(headerUsage), ",")
					if account[0] != usage[0] && usage[0] != "prompt=0" || account[2] != usage[2] && usage[2] != "completion=0" && m.left.Load() < times {
						t.Errorf("broken %d times behind event %d: usage %q, want %q", times+1, at, account, usage)
					}
				}
			}
			m.left.Store(0)
		})
	}
}

// TestResumeElsewhere has the rest come from another engine of the model, which refuses what
// comes from a client.
func TestResumeElsewhere(t *testing.T) {
	for name, tt := range resumable {
		t.Run(name, func(t *testing.T) {
			var lost, other model
			a, b := newRig(t, lost.serve(t)), newRig(t, other.serve(t))
			a.server.cfg.ResumeFor = time.Minute
			body := `{"model":"smollm2","stream":true,` + tt.body + `}`
			_, whole := b.post(t, tt.path, body)
			lost.breaks.Store(4)
			lost.left.Store(1)
			a.dies = true
			req := a.request(t.Context(), tt.path, body)
			req.Header.Set(wire.DestinationHeader, "127.0.0.1:1,"+strings.TrimPrefix(b.url, "http://"))
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if want := read(t, whole); err != nil || read(t, string(got)) != want {
				t.Errorf("%v: %+v, want %+v", err, read(t, string(got)), want)
			}
			if page := exposition(t, a); !strings.Contains(page, `millrace_engine_streams_resumed_total{outcome="elsewhere"} 1`) {
				t.Error("not counted")
			}
			req = b.request(t.Context(), ContinuePath+tt.path, "{}")
			req.Header.Set(wire.DestinationHeader, "127.0.0.1:1")
			if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode != http.StatusNotFound {
				t.Errorf("%v %v, want 404 for a client", err, resp)
			}
		})
	}
}

// TestResumeNot has streams end with an error that can't be continued.
func TestResumeNot(t *testing.T) {
	const call = `data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"x","function":{"name":"f","arguments":"{"}}]}}]}` + "\n\n"
	const text = `data: {"choices":[{"index":0,"delta":{"content":"a"}}]}` + "\n\n"
	for name, tt := range map[string]struct{ fields, sent string }{
		"a call was begun":       {`"tools":[{"type":"function","function":{"name":"f"}}]`, text + call},
		"a call must be made":    {`"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required"`, text},
		"a form":                 {`"response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{}}}`, text},
		"a grammar":              {`"grammar":"root ::= \"a\""`, text},
		"log probabilities":      {`"logprobs":true`, text},
		"too long an event":      {`"temperature":0`, text + "data: " + strings.Repeat("a", mostEvent)},
		"more text than is kept": {`"temperature":0`, strings.Repeat(`data: {"choices":[{"index":0,"delta":{"content":"`+strings.Repeat("a", 1<<16)+`"}}]}`+"\n\n", 17)},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			g := newRigOf(t, enginepb.Backend_LLAMACPP, func(w http.ResponseWriter, _ *http.Request) {
				asked.Add(1)
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, tt.sent)
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			})
			g.server.cfg.ResumeFor = time.Minute
			_, got := g.post(t, "/v1/chat/completions", strings.Replace(chat, "{", `{"stream":true,`+tt.fields+",", 1))
			if !strings.Contains(got, codeLost) || strings.Contains(got, "[DONE]") || asked.Load() != 1 {
				t.Errorf("asked %d times: %.300s", asked.Load(), got[max(0, len(got)-300):])
			}
		})
	}
}
