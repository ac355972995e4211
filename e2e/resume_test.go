package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"millrace.dev/millrace/e2e/rig"
)

// resumeSeed chooses what is killed and when, resumeRounds is how often.
const (
	resumeSeed   = 7
	resumeRounds = 3
	resumeTokens = 40
)

// resumable are questions, most likely tokens only, in every API that streams.
var resumable = map[string]struct{ path, body string }{
	"chat":        {rig.ChatPath, `"messages":[{"role":"user","content":"Tell me about mountains."}],"max_tokens":%d,"stream_options":{"include_usage":true}`},
	"two choices": {rig.ChatPath, `"messages":[{"role":"user","content":"Tell me about rivers."}],"n":2,"max_tokens":%d,"stream_options":{"include_usage":true}`},
	"completions": {"/v1/completions", `"prompt":"The largest rivers of the world are","max_tokens":%d,"stream_options":{"include_usage":true}`},
	"responses":   {"/v1/responses", `"input":"How does one bake bread?","max_output_tokens":%d`},
	"messages":    {"/v1/messages", `"messages":[{"role":"user","content":"Write a story about a lighthouse."}],"max_tokens":%d`},
}

// streamedAnswer is what a client has of a stream of any API.
type streamedAnswer struct {
	Text    string // of all choices
	IDs     int
	Account string // prompt and completion tokens, as often as they are said
	Ends    string
	node    string
}

// readStream asks for a stream and reads it to its end. begun is called once so many events have come.
func readStream(ctx context.Context, url, body string, events int, begun func(node string)) (a streamedAnswer, _ error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return a, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req) // as long as the test lasts
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a.node = resp.Header.Get("x-millrace-node")
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("status %d", resp.StatusCode)
	}
	ids, texts := map[string]bool{}, map[int]string{}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok {
			continue
		}
		if events--; events == 0 {
			begun(a.node)
		}
		if string(data) == "[DONE]" {
			a.Ends += " DONE"
			continue
		}
		if err := a.event(data, ids, texts); err != nil {
			return a, err
		}
	}
	a.IDs = len(ids)
	for i := range len(texts) {
		a.Text += texts[i] + "\n"
	}
	return a, lines.Err()
}

// event takes one event of any API.
func (a *streamedAnswer) event(data []byte, ids map[string]bool, texts map[int]string) error {
	type account struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
		Input      int `json:"input_tokens"`
		Output     int `json:"output_tokens"`
	}
	var e struct {
		ID, Type string
		Error    json.RawMessage
		Choices  []struct {
			Index  int
			Text   string
			Finish string `json:"finish_reason"`
			Delta  struct{ Content string }
		}
		Delta    json.RawMessage
		Message  struct{ ID string }
		Response struct {
			ID    string
			Usage *account
		}
		Usage *account
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return fmt.Errorf("%w: %.200s", err, data)
	}
	if len(e.Error) > 0 && string(e.Error) != "null" || e.Type == "error" {
		return fmt.Errorf("an error event: %.300s", data)
	}
	for _, id := range []string{e.ID, e.Message.ID, e.Response.ID} {
		if id != "" {
			ids[id] = true
		}
	}
	for _, c := range e.Choices {
		texts[c.Index] += c.Delta.Content + c.Text
		a.Ends += c.Finish
	}
	var delta struct {
		Text   string
		Reason string `json:"stop_reason"`
	}
	var text string
	switch {
	case e.Type == "response.output_text.delta" && json.Unmarshal(e.Delta, &text) == nil:
		texts[0] += text
	case len(e.Delta) > 0 && json.Unmarshal(e.Delta, &delta) == nil:
		texts[0] += delta.Text
		a.Ends += delta.Reason
	}
	if slices.Contains([]string{"message_stop", "response.completed", "response.incomplete"}, e.Type) {
		a.Ends += " " + e.Type
	}
	for _, u := range []*account{e.Usage, e.Response.Usage} {
		if u != nil {
			a.Account += fmt.Sprintf("%d+%d;", u.Prompt+u.Input, u.Completion+u.Output)
		}
	}
	return nil
}

// TestResume kills backends and shards in the middle of streams, by seed: each client gets
// one stream with the text, the end and the account of one that nobody has disturbed.
func TestResume(t *testing.T) {
	m := shared(t)
	r := m.Replicas(t)
	body := func(api string) string {
		return `{"model":"smollm2","temperature":0,"stream":true,` + fmt.Sprintf(resumable[api].body, resumeTokens) + `}`
	}
	want := map[string]streamedAnswer{}
	for api := range resumable {
		a, err := readStream(t.Context(), m.URL(t, resumable[api].path), body(api), 0, nil)
		if err != nil || a.Text == "" || a.IDs != 1 {
			t.Fatalf("%s, undisturbed: %+v, %v", api, a, err)
		}
		a.node = ""
		want[api] = a
	}
	random := rand.New(rand.NewPCG(resumeSeed, 0))
	for round := range resumeRounds {
		t.Run(fmt.Sprintf("round %d", round), func(t *testing.T) {
			at, begun := 3+random.IntN(15), make(chan string, len(want))
			var g errgroup.Group
			for api, want := range want {
				g.Go(func() error {
					a, err := readStream(t.Context(), m.URL(t, resumable[api].path), body(api), at, func(node string) { begun <- node })
					if a.node = ""; err == nil && a != want {
						err = fmt.Errorf("%+v, want %+v", a, want)
					}
					if err != nil {
						t.Errorf("%s, at event %d: %v", api, at, err)
					}
					return err
				})
			}
			var nodes []string
			for range want {
				nodes = append(nodes, <-begun)
			}
			// The last one runs for sure: what it runs on is killed, or all there is.
			victims := []string{"backend@" + r.Whole}
			if nodes[len(nodes)-1] == r.Head {
				victims = []string{[]string{"backend@" + r.Head, "shard@" + r.Tail, "shard@" + r.Head}[random.IntN(3)]}
			}
			if round%3 == 2 {
				victims = []string{"backend@" + r.Whole, "backend@" + r.Head}
			}
			for _, victim := range victims {
				if err := unix.Kill(m.Process(t, victim).PID, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			_ = g.Wait() // each has said what it is
			t.Logf("figure: %v killed at event %d of streams of %v", victims, at, nodes)
		})
		m.AwaitWhole(t)
	}
	resumed := 0.0
	for _, node := range []string{r.Whole, r.Head} {
		for _, outcome := range []string{"own", "elsewhere"} {
			n := rig.MustMetric(t, m.Addr(t, "engine@"+node, "metrics"), `millrace_engine_streams_resumed_total{outcome="`+outcome+`"}`)
			t.Logf("figure: %s: %g streams resumed %s", node, n, outcome)
			resumed += n
		}
	}
	if resumed < resumeRounds {
		t.Errorf("%g streams were resumed in %d rounds", resumed, resumeRounds)
	}
}
