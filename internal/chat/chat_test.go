package chat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fake is an OpenAI server that answers each question with how many turns it saw.
type fake struct {
	sessions []string
	turns    []int
	fail     int // number of the request to refuse, from 1
	empty    int // how often it lists no model
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v1/models" && f.empty > 0 {
		f.empty--
		fmt.Fprint(w, `{"object":"list","data":[]}`)
		return
	}
	if r.URL.Path == "/v1/models" {
		fmt.Fprint(w, `{"object":"list","data":[{"id":"smollm2"}]}`)
		return
	}
	var req struct {
		Model    string    `json:"model"`
		Messages []message `json:"messages"`
		Stream   bool      `json:"stream"`
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || req.Model != "smollm2" || !req.Stream {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	f.sessions = append(f.sessions, r.Header.Get("X-Session-Id"))
	f.turns = append(f.turns, len(req.Messages))
	if len(f.turns) == f.fail {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"error":{"message":"too long","type":"invalid_request_error","code":"context_length_exceeded"}}`)
		return
	}
	w.Header().Set("X-Millrace-Node", "node-c")
	w.Header().Set("X-Millrace-Replica", "smollm2-1")
	fmt.Fprintf(w, ": comment\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"turn \"}}]}\n\n")
	w.(http.Flusher).Flush()
	fmt.Fprintf(w, "data: {\"choices\":[{\"delta\":{\"content\":\"%d\"},\"finish_reason\":\"stop\"}]}\n\n", len(req.Messages))
	fmt.Fprintf(w, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":30,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":12}}}\n\ndata: [DONE]\n\n")
}

func talk(t *testing.T, f *fake, interactive bool, in string) (out, info string, err error) {
	t.Helper()
	srv := httptest.NewServer(f)
	defer srv.Close()
	var o, e bytes.Buffer
	err = Run(t.Context(), Options{URL: srv.URL + "/", In: strings.NewReader(in), Out: &o, Err: &e, Interactive: interactive})
	return o.String(), e.String(), err
}

func TestAConversationKeepsItsHistory(t *testing.T) {
	f := &fake{}
	out, info, err := talk(t, f, false, "hi\n\nand again\n/reset\nnew\n/quit\nnever\n")
	if err != nil {
		t.Fatal(err)
	}
	if want := "turn 1\nturn 3\nturn 1\n"; out != want {
		t.Errorf("answers %q, want %q", out, want)
	}
	if f.sessions[0] != f.sessions[1] || f.sessions[1] == f.sessions[2] || f.sessions[0] == "" {
		t.Errorf("sessions %q, want a new one after /reset", f.sessions)
	}
	for _, want := range []string{"node-c smollm2-1", "12 of 30 prompt tokens cached", "TTFT ", "2 tokens", " tok/s"} {
		if !strings.Contains(info, want) {
			t.Errorf("summary %q, want %q in it", info, want)
		}
	}
}

func TestAMeshThatStartsIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct {
			wait time.Duration
			want string // of the error
		}{{wait: time.Minute}, {wait: 0, want: "serves no model"}, {wait: 2 * time.Second, want: "serves no model"}} {
			f := &fake{empty: 5}
			var out bytes.Buffer
			err := Run(t.Context(), Options{
				URL: "http://mesh", In: strings.NewReader("hi"), Out: &out, Err: io.Discard, Wait: tt.wait, transport: direct{f},
			})
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) || err == nil && out.String() != "turn 1\n" {
				t.Errorf("waiting %s: %q, %v", tt.wait, out.String(), err)
			}
		}
	})
}

// direct is a transport without a network.
type direct struct{ http.Handler }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	d.ServeHTTP(w, r)
	return w.Result(), nil
}

func TestAnErrorEndsAScriptButNoPerson(t *testing.T) {
	_, _, err := talk(t, &fake{fail: 2}, false, "a\nb\nc\n")
	if err == nil || !strings.Contains(err.Error(), "400 Bad Request: too long") {
		t.Errorf("script: Run() = %v, want the server's message", err)
	}
	f := &fake{fail: 2}
	srv := httptest.NewServer(f)
	defer srv.Close()
	p := &person{lines: []string{"a", "b", "c"}, next: make(chan string, 1)}
	var o bytes.Buffer
	err = Run(t.Context(), Options{URL: srv.URL, In: p, Out: &o, Err: p, Interactive: true})
	out, info := o.String(), p.shown.String()
	if err != nil || out != "turn 1\nturn 3\n" || !strings.Contains(info, "too long") {
		t.Errorf("person: %q, %q, %v; want the failed turn told and forgotten", out, info, err)
	}
}

// person types the next line when there is a prompt, and ends the input after the last.
type person struct {
	lines []string
	shown bytes.Buffer
	next  chan string // closed at the end
}

func (p *person) Write(b []byte) (int, error) {
	if strings.HasSuffix(string(b), "> ") {
		if len(p.lines) == 0 {
			close(p.next)
		} else {
			p.next <- p.lines[0] + "\n"
			p.lines = p.lines[1:]
		}
	}
	return p.shown.Write(b)
}

func (p *person) Read(b []byte) (int, error) {
	text, ok := <-p.next
	if !ok {
		return 0, io.EOF
	}
	return copy(b, text), nil
}

// TestWhatAPersonMayType has lines that were pasted together, help, a word that is no
// command, and flags.
func TestWhatAPersonMayType(t *testing.T) {
	f := new(fake)
	out, info, err := talk(t, f, true, "first\nsecond\n\nthird\n")
	if err != nil || out != "turn 1\n" {
		t.Errorf("pasted lines: %q, %q, %v; want one turn", out, info, err)
	}
	for text, want := range map[string]string{"/help\n": "/reset  start a new conversation", "/hepl\n": "no command /hepl; /help lists them"} {
		out, info, err := talk(t, new(fake), true, text)
		if err != nil || out != "" || !strings.Contains(info, want) {
			t.Errorf("%q: %q, %q, %v; want %q and no turn", text, out, info, err, want)
		}
	}
}

func TestNoServer(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	err := Run(t.Context(), Options{URL: srv.URL, In: strings.NewReader("hi\n"), Out: io.Discard, Err: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("Run() = %v, want connection refused", err)
	}
}

func TestCtrlCEndsAChatThatWaitsForTheUser(t *testing.T) {
	srv := httptest.NewServer(&fake{})
	defer srv.Close()
	r, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, Options{URL: srv.URL, In: r, Out: io.Discard, Err: io.Discard}) }()
	if _, err := io.WriteString(w, "hi\n"); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run() = %v, want nil", err)
	}
}

func TestReadEvents(t *testing.T) {
	tests := []struct {
		name, stream string
		text         string
		wantErr      error
		wantText     string // of the error
	}{
		{name: "carriage returns", stream: "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\r\n\r\ndata:[DONE]\r\n", text: "a"},
		{name: "cut", stream: "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n", text: "a", wantErr: errCut},
		{name: "error inside", stream: "data: {\"error\":{\"message\":\"backend gone\"}}\n\n", wantText: "backend gone"},
		{name: "no JSON", stream: "data: {\n\n", wantText: "unexpected end"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := ""
			err := readEvents(strings.NewReader(tt.stream), func(c chunk) { text += c.Choices[0].Delta.Content })
			if text != tt.text {
				t.Errorf("text %q, want %q", text, tt.text)
			}
			if !errors.Is(err, tt.wantErr) && tt.wantText == "" || tt.wantText != "" && (err == nil || !strings.Contains(err.Error(), tt.wantText)) {
				t.Errorf("error %v, want %v %q", err, tt.wantErr, tt.wantText)
			}
		})
	}
}

func TestSummaryOfOneToken(t *testing.T) {
	a := answer{usage: usage{Prompt: 3, Completion: 1}, ttft: 20 * time.Millisecond, finish: "length"}
	if got, want := a.summary(), "[0 of 3 prompt tokens cached · TTFT 20 ms · 1 tokens · cut at the limit]"; got != want {
		t.Errorf("summary() = %q, want %q", got, want)
	}
}

func FuzzReadEvents(f *testing.F) {
	f.Add([]byte("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = readEvents(bytes.NewReader(b), func(c chunk) { _ = c.Usage })
	})
}
