package main

import (
	"fmt"
	"strings"
	"testing"

	filter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"google.golang.org/protobuf/encoding/prototext"
)

// secret is a word that stands in every prompt and nowhere else.
const secret = "xylophonist"

// TestPromptsReachNobody sends a word in the prompts of all APIs, in bodies that are
// broken, and in headers: neither logs nor metrics may have it, nor what goes to Envoy's
// access log.
func TestPromptsReachNobody(t *testing.T) {
	p := start(t)
	p.feed(t)
	conn := p.dial(t)
	bodies := map[string][]string{
		"/v1/chat/completions": {
			`{"model":"m","messages":[{"role":"user","content":"%s"}]}`,
			`{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"%s"}]}],"tools":[{"type":"function","function":{"name":"%[1]s"}}]}`,
			`{"model":"m","messages":[{"role":"%s","content":"a"}]}`, `{"model":"m","messages":"%s"}`, `{"model":"m","messages":[{"content":"%s`,
			`{"model":"%s","messages":[{"role":"user","content":"a"}]}`, `%s`, `{"%s":1}`, `{"model":"m","max_tokens":"%s","messages":[]}`,
		},
		"/v1/completions":     {`{"model":"m","prompt":"%s"}`, `{"model":"m","prompt":["%s","%[1]s"]}`},
		"/v1/embeddings":      {`{"model":"m","input":"%s"}`},
		"/v1/responses":       {`{"model":"m","input":"%s","instructions":"%[1]s"}`, `{"model":"m","input":[{"role":"user","content":"%s"}]}`},
		"/v1/messages":        {`{"model":"m","max_tokens":1,"system":"%s","messages":[{"role":"user","content":"%[1]s"}]}`},
		"/v1/other/" + "path": {`{"model":"m","text":"%s"}`},
	}
	asked := 0
	for path, all := range bodies {
		for _, body := range all {
			asked++
			st := open(t, conn)
			send(t, st, requestHeaders(filter.ProcessingMode_BUFFERED, ":path", path))
			receive(t, st)
			send(t, st, requestBody(fmt.Sprintf(body, secret)))
			answer := receive(t, st)
			if strings.Contains(prototext.Format(answer.GetDynamicMetadata()), secret) {
				t.Errorf("%s %s: Envoy's access log gets %v", path, body, answer.GetDynamicMetadata())
			}
			if err := st.CloseSend(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if page := p.get(t, "/metrics"); strings.Contains(page, secret) || !strings.Contains(page, fmt.Sprintf("millrace_extproc_streams_total %d", asked)) {
		t.Errorf("metrics have the prompt, or not all %d streams:\n%s", asked, page)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if said := p.log.buf.String(); strings.Contains(said, secret) || !strings.Contains(said, "ready") {
		t.Errorf("the log:\n%s", said)
	}
}
