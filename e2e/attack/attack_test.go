// Package attack sends what an attacker would to a mesh, and prints a table of what came of it.
//
// Run by `make test`. Its one rule: a row is a shape of which many are sent; each is held if
// it is answered as the documentation says, or refused by name, and all of the mesh's
// processes are the same before and after.
package attack

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

func TestMain(m *testing.M) { os.Exit(rig.Main(m)) }

// shape is one row.
type shape struct {
	name string
	// each returns why an attempt was not held; nil: it was.
	each []func() error
}

// answerWithin is how long a mesh may take to answer or refuse an attempt.
const answerWithin = 20 * time.Second

// target is the mesh that is attacked.
type target struct {
	t *testing.T
	m *rig.Mesh
}

const (
	chat  = rig.ChatPath
	hello = `"messages":[{"role":"user","content":"Hi"}],"max_tokens":1`
)

// body is a request's, with fields.
func body(fields string) string { return `{"model":"` + rig.Model + `",` + fields + `}` }

// post expects one of the statuses and, where it is a refusal, a text in the answer.
func (a *target) post(path, text, want string, header []string, statuses ...int) func() error {
	return func() error {
		path, query, _ := strings.Cut(path, "?")
		r, err := rig.Send(a.t.Context(), a.m.URL(a.t, path)+"?"+query, strings.NewReader(text), append([]string{"content-type", "application/json"}, header...)...)
		if err != nil {
			return err
		}
		for _, s := range statuses {
			if r.Status == s && (s < 400 || strings.Contains(string(r.Body), want)) {
				return nil
			}
		}
		return fmt.Errorf("status %d: %.200s; want %v with %q", r.Status, r.Body, statuses, want)
	}
}

// raw sends bytes as they are, and expects a refusal or the connection's end: never a success, a
// failure of ours, or silence.
func (a *target) raw(text string) func() error {
	return func() error {
		u, err := url.Parse(a.m.URL(a.t, "/"))
		if err != nil {
			return err
		}
		c, err := net.Dial("tcp", u.Host)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(answerWithin)); err != nil {
			return err
		}
		if _, err := io.WriteString(c, text); err != nil && !errors.Is(err, net.ErrClosed) && !reset(err) {
			return err
		}
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		switch {
		case err != nil && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || reset(err)):
			return nil // the connection was ended
		case err != nil:
			return err
		}
		defer r.Body.Close()
		if r.StatusCode < 400 || r.StatusCode >= 500 && r.StatusCode != http.StatusNotImplemented {
			return fmt.Errorf("status %d", r.StatusCode)
		}
		return nil
	}
}

func reset(err error) bool {
	return strings.Contains(err.Error(), "reset by peer") || strings.Contains(err.Error(), "broken pipe")
}

// lines is a request in HTTP/1.1 with header lines and a body.
func lines(header, text string) string {
	return "POST " + chat + " HTTP/1.1\r\nHost: m\r\nContent-Type: application/json\r\n" + header + "\r\n" + text
}

// TestAttacks prints the table.
func TestAttacks(t *testing.T) {
	a := &target{t, rig.SharedMesh(t)}
	before := a.m.State(t).PIDs()
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "shape\tcount\theld")
	for _, s := range a.shapes() {
		good := 0
		for i, attempt := range s.each {
			err := attempt()
			if err == nil {
				good++
				continue
			}
			t.Errorf("%s, %d: %v", s.name, i, err)
		}
		fmt.Fprintf(w, "%s\t%d\t%d\n", s.name, len(s.each), good)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + table.String())
	if after := a.m.State(t).PIDs(); !maps.Equal(before, after) {
		t.Errorf("processes were %v and are %v", before, after)
	}
	if err := a.post(chat, body(hello), "", nil, 200)(); err != nil {
		t.Errorf("behind all of it: %v", err)
	}
}

func (a *target) shapes() []shape {
	return []shape{
		{"numbers that are none, in bodies", a.numbers()},
		{"numbers that are none, in headers", a.numberHeaders()},
		{"limits of backends beside the API's", a.limits()},
		{"prompts over the context", a.longPrompts()},
		{"work beside prompt and answer", a.heavy()},
		{"headers, too many or too large", a.headers()},
		{"the same by HTTP/2", a.headersByHTTP2()},
		{"upgrades", a.upgrades()},
		{"routing headers of a client's own", a.routing()},
		{"lengths that are none", a.lengths()},
		{"HTTP that is none", a.malformed()},
	}
}

// numbers are floats and integers that JSON can't have or nobody can use.
func (a *target) numbers() (all []func() error) {
	for _, v := range []string{"NaN", "Infinity", "-Infinity", "1e999", "-1e999", "0x10", "1_0", `"NaN"`} {
		for _, field := range []string{"temperature", "max_tokens", "top_p"} {
			all = append(all, a.post(chat, body(`"messages":[{"role":"user","content":"Hi"}],"`+field+`":`+v), `"error"`, nil, 400))
		}
	}
	return all
}

// numberHeaders are those that we read as numbers: what is none is passed over.
func (a *target) numberHeaders() (all []func() error) {
	for _, v := range []string{"NaN", "Inf", "-1", "1e999", "9223372036854775808", "0x10", strings.Repeat("9", 400)} {
		for _, name := range []string{"x-request-timeout-ms", "x-millrace-prompt-tokens", "x-millrace-usage", "endpoint-load-metrics", "x-millrace-request"} {
			all = append(all, a.post(chat, body(hello), "", []string{name, v}, 200))
		}
	}
	return all
}

// limits have a backend generate more than the API's limit; TestNobodyDodgesTheBudget counts.
func (a *target) limits() (all []func() error) {
	for _, field := range []string{"id_slot", "slot_id", "response_fields", "cache_prompt_file"} {
		all = append(all, a.post(chat, body(hello+`,"`+field+`":1`), field, nil, 200, 400))
	}
	for _, fields := range []string{`"n_predict":40`, `"n_predict":-1,"ignore_eos":true`, `"max_completion_tokens":1,"n_predict":-2`, `"n_cmpl":9`, `"max_tokens":400`} {
		all = append(all, func() error {
			r, err := rig.Send(a.t.Context(), a.m.URL(a.t, chat), strings.NewReader(body(fields+","+hello)), "content-type", "application/json")
			if err != nil {
				return err
			}
			if r.Status == http.StatusBadRequest {
				return nil // a field twice
			}
			got := rig.Decode[rig.Completion](a.t, r.Body)
			if r.Status != 200 || got.Usage.Completion > 1 {
				return fmt.Errorf("status %d, %d tokens: %.200s", r.Status, got.Usage.Completion, r.Body)
			}
			return nil
		})
	}
	return all
}

func (a *target) longPrompts() (all []func() error) {
	text := strings.Repeat("Some words. ", 8000)
	ids := strings.TrimSuffix(strings.Repeat("1,", 9000), ",")
	const over = `"context_length_exceeded"`
	for path, shapes := range map[string][]string{
		chat:              {`"messages":[{"role":"user","content":"` + text + `"}]`, `"messages":[` + strings.Repeat(`{"role":"user","content":"a"},`, 50_000) + `{"role":"user","content":"a"}]`},
		"/v1/completions": {`"prompt":"` + text + `"`, `"prompt":[` + ids + `]`, `"prompt":["a","` + text + `"]`},
		"/v1/responses":   {`"input":"` + text + `"`},
		"/v1/embeddings":  {`"input":"` + text + `"`, `"input":["a","` + text + `"]`},
	} {
		for _, fields := range shapes {
			all = append(all, a.post(path, body(fields), over, nil, 400))
		}
	}
	return append(all, a.post("/v1/messages", body(`"max_tokens":1,"messages":[{"role":"user","content":"`+text+`"}]`), "prompt is too long", nil, 400))
}

// heavy has the backend do for minutes what all of its requests wait for.
func (a *target) heavy() (all []func() error) {
	list := func(n int, format string) string {
		one := make([]string, n)
		for i := range one {
			one[i] = fmt.Sprintf(format, i)
		}
		return strings.Join(one, ",")
	}
	schema := `{"type":"object","properties":{` + list(2000, `"p%d":{"type":"string"}`) + `}}`
	try := func(path, field, fields string) { all = append(all, a.post(path, body(fields), field, nil, 400)) }
	try(chat, "response_format", hello+`,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":`+schema+`}}`)
	try(chat, "response_format", hello+`,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"enum":[`+list(10_000, `"v%d"`)+`]}}}`)
	try(chat, "json_schema", hello+`,"json_schema":`+schema)
	try(chat, "tools", hello+`,"tools":[{"type":"function","function":{"name":"f","parameters":`+schema+`}}]`)
	try("/v1/responses", "text", `"input":"Hi","text":{"format":{"type":"json_schema","name":"x","schema":`+schema+`}}`)
	try(chat, "samplers", hello+`,"samplers":[`+list(100_000, `"dry%d"`)+`]`)
	try(chat, "logit_bias", hello+`,"logit_bias":{`+list(40_000, `"%d":1`)+`}`)
	try(chat, "stop", hello+`,"stop":[`+list(100_000, `"s%d"`)+`]`)
	try(chat, "top_logprobs", hello+`,"logprobs":true,"top_logprobs":1000000`)
	try("/v1/completions", "prompt", `"max_tokens":1,"prompt":[`+list(3000, `"%d"`)+`]`)
	return append(all, a.post(chat, body(hello), "", nil, 200)) // nobody waits behind them
}

func (a *target) headers() (all []func() error) {
	try := func(header []string) { all = append(all, a.post(chat, body(hello), "", header, 200, 431)) }
	for _, n := range []int{60, 80, 88, 90, 95, 100, 101, 120, 500} {
		var header []string
		for i := range n {
			header = append(header, "x-h"+strconv.Itoa(i), "v")
		}
		try(header)
	}
	for _, kb := range []int{30, 47, 48, 50, 58, 60, 61, 70, 500} {
		try([]string{"x-h", strings.Repeat("v", kb<<10)})
	}
	for _, n := range []int{8, 17, 40} {
		all = append(all, a.post(chat+"?q="+strings.Repeat("q", n<<10), body(hello), "path", nil, map[bool]int{true: 200, false: 414}[n < 16]))
	}
	try([]string{"cookie", strings.Repeat("a=b; ", 2000)})
	try([]string{"x-request-id", strings.Repeat("r", 10_000)})
	try([]string{"x-forwarded-for", strings.Repeat("10.0.0.1, ", 1000) + "10.0.0.1"})
	try([]string{"x-session-id", strings.Repeat("s", 40_000)})
	try([]string{"traceparent", strings.Repeat("0", 20_000)})
	return all
}

// headersByHTTP2 are refused by an answer, too, not by a reset.
func (a *target) headersByHTTP2() (all []func() error) {
	var two http.Protocols
	two.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: &two, DisableKeepAlives: true}, Timeout: answerWithin}
	for _, of := range []struct{ n, bytes, want int }{{60, 1, 200}, {89, 1, 431}, {101, 1, 431}, {500, 1, 431}, {1, 47 << 10, 200}, {1, 50 << 10, 431}, {1, 70 << 10, 431}, {300, 200, 431}} {
		all = append(all, func() error {
			req, err := http.NewRequestWithContext(a.t.Context(), http.MethodPost, a.m.URL(a.t, chat), strings.NewReader(body(hello)))
			if err != nil {
				return err
			}
			req.Header.Set("content-type", "application/json")
			for i := range of.n {
				req.Header.Set("x-h"+strconv.Itoa(i), strings.Repeat("v", of.bytes))
			}
			r, err := client.Do(req)
			if err != nil {
				return fmt.Errorf("%d headers of %d bytes: %w", of.n, of.bytes, err)
			}
			defer r.Body.Close()
			if r.StatusCode != of.want || r.ProtoMajor != 2 {
				return fmt.Errorf("%d headers of %d bytes: status %d by %s, want %d", of.n, of.bytes, r.StatusCode, r.Proto, of.want)
			}
			return nil
		})
	}
	return all
}

// upgrades are refused in words; h2c, of which many clients ask, is passed over.
func (a *target) upgrades() (all []func() error) {
	for _, path := range []string{chat, "/v1/messages"} {
		all = append(all, a.post(path, body(hello), "can't be upgraded", []string{"connection", "upgrade", "upgrade", "websocket"}, 403))
	}
	return append(all, a.post(chat, body(hello), "", []string{"connection", "Upgrade, HTTP2-Settings", "upgrade", "h2c", "http2-settings", "AAMAAABkAARAAAAAAAIAAAAA"}, 200))
}

// routing headers choose no host: the answer comes from an engine all the same.
func (a *target) routing() (all []func() error) {
	for _, name := range []string{"x-gateway-destination-endpoint", "x-millrace-model", "x-envoy-max-retries", "x-gateway-destination-endpoint-subset", "x-envoy-upstream-rq-timeout-ms", "x-envoy-retry-on"} {
		for _, v := range []string{"127.0.0.1:1", "169.254.169.254:80", "nobody", "999999"} {
			all = append(all, a.post(chat, body(hello), "", []string{name, v}, 200))
		}
	}
	return all
}

func (a *target) lengths() (all []func() error) {
	text := body(hello)
	n := strconv.Itoa(len(text))
	for _, header := range []string{
		"Content-Length: 9223372036854775808\r\n", "Content-Length: 18446744073709551615\r\n", "Content-Length: 18446744073709551616\r\n",
		"Content-Length: -1\r\n", "Content-Length: +" + n + "\r\n", "Content-Length: 0x10\r\n", "Content-Length: " + n + ", " + n + "1\r\n",
		"Content-Length: " + n + "\r\nContent-Length: 5\r\n", "Content-Length: " + n + "\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: gzip\r\n",
	} {
		all = append(all, a.raw(lines(header, text)))
	}
	// A chunk of 2^64-1 bytes is one to Envoy: it waits for it, as for any body that is slow.
	for _, chunk := range []string{"-1", "zz", "10000000000000000", "0x5"} {
		all = append(all, a.raw(lines("Transfer-Encoding: chunked\r\n", chunk+"\r\n"+text)))
	}
	return all
}

func (a *target) malformed() (all []func() error) {
	for _, text := range []string{
		"GARBAGE\r\n\r\n", "GET / HTTP/9.9\r\nHost: m\r\n\r\n", "\x00\x01\x02\x03\r\n\r\n", "POST http:// HTTP/1.1\r\nHost: m\r\n\r\n",
		lines("x-a: b\x00c\r\nContent-Length: 0\r\n", ""), lines("x a: b\r\nContent-Length: 0\r\n", ""), lines(": b\r\nContent-Length: 0\r\n", ""),
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + continuations(2000),
	} {
		all = append(all, a.raw(text))
	}
	return all
}

// continuations are frames of HTTP/2: headers that never end.
func continuations(n int) string {
	frame := func(kind, flags byte, stream uint32, payload string) string {
		return string([]byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags, byte(stream >> 24), byte(stream >> 16), byte(stream >> 8), byte(stream)}) + payload
	}
	all := frame(4, 0, 0, "") + frame(1, 0, 1, "\x82")
	for range n {
		all += frame(9, 0, 1, "\x00\x03x-a\x40"+strings.Repeat("v", 64))
	}
	return all
}
