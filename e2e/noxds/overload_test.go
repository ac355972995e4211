package noxds

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// countingEngines are servers that answer at once, and count what they get.
type countingEngines struct{ chats, bytes atomic.Int64 }

// start starts one at its address.
func (e *countingEngines) start(f *fleet, i int) {
	ln, err := net.Listen("tcp", rig.Address(f.ports.engines[i]))
	if err != nil {
		f.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		e.chats.Add(1)
		e.bytes.Add(n)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"object":"chat.completion","choices":[]}`)
	})
	srv := &http.Server{Handler: mux, MaxHeaderBytes: 1 << 20}
	go func() { _ = srv.Serve(ln) }()
	f.t.Cleanup(func() { _ = srv.Close() })
}

// TestBounds attacks a fleet whose engines are no part of what is shown.
func TestBounds(t *testing.T) {
	e := &countingEngines{}
	f := newFleetOf(t, e.start, func(file string) string {
		file = strings.ReplaceAll(file, "type: llamacpp", "type: openai")
		return strings.Replace(file, "policy:\n", "models: [{name: smollm2, contextTokens: 4096}]\npolicy:\n  limits: {maxBytesInFlight: 128Mi}\n", 1)
	})
	t.Run("headers", f.testHeaders)
	t.Run("prompts that can't fit", func(t *testing.T) { f.testLongPrompts(t, e) })
	t.Run("bodies in flight", func(t *testing.T) { f.testBodiesInFlight(t, e) })
	t.Run("a body of no length", f.testNoLength)
}

// testHeaders sends more and more headers, and larger ones: each is served or refused.
func (f *fleet) testHeaders(t *testing.T) {
	chat := []byte(`{"model":"smollm2","messages":[{"role":"user","content":"Hi"}]}`)
	count := map[int]int{}
	try := func(what string, header []string) {
		t.Helper()
		status, b, err := f.post("/v1/chat/completions", chat, header...)
		if count[status]++; err != nil || status != 200 && status != 431 {
			t.Errorf("%s: status %d, %v: %.200s", what, status, err, b)
		}
	}
	for n := 60; n < 130; n++ {
		var header []string
		for i := range n {
			header = append(header, "x-h"+strconv.Itoa(i), "v")
		}
		try(fmt.Sprint(n, " headers"), header)
	}
	for kb := 30; kb < 70; kb++ {
		var header []string
		for i := range kb {
			header = append(header, "x-h"+strconv.Itoa(i), strings.Repeat("v", 1020))
		}
		try(fmt.Sprint(kb, " KiB"), header)
	}
	try("one large one", []string{"x-h", strings.Repeat("v", 47<<10)})
	try("one too large", []string{"x-h", strings.Repeat("v", 58<<10)})
	if count[200] < 30 || count[431] < 30 {
		t.Errorf("statuses: %v", count)
	}
	t.Logf("statuses: %v", count)
}

func (f *fleet) testLongPrompts(t *testing.T, e *countingEngines) {
	before := e.chats.Load()
	body := `{"model":"smollm2","messages":[` + strings.Repeat(`{"role":"user","content":"a"},`, 100_000) + `{"role":"user","content":"a"}]}`
	began := time.Now()
	for path, want := range map[string]string{
		"/v1/chat/completions": `"code":"context_length_exceeded"`, "/v1/messages": "prompt is too long: ",
	} {
		status, b, err := f.post(path, []byte(body))
		if err != nil || status != 400 || !strings.Contains(string(b), want) {
			t.Errorf("%s: status %d, %v: %.200s", path, status, err, b)
		}
	}
	if got := e.chats.Load() - before; got != 0 {
		t.Errorf("engines got %d of them", got)
	}
	t.Logf("two requests of %d bytes in %v", len(body), time.Since(began))
}

// testBodiesInFlight sends 64 large bodies at once. None goes to an engine without a
// decision, Envoy's memory stays bounded, and small requests are served meanwhile.
func (f *fleet) testBodiesInFlight(t *testing.T, e *countingEngines) {
	before := e.bytes.Load()
	// Media are not counted, so that it fits its context.
	large := []byte(`{"model":"smollm2","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` +
		strings.Repeat("A", 16_700_000) + `"}}]}]}`)
	var mu sync.Mutex
	count := map[int]int{}
	stop, peak := make(chan struct{}), make(chan int)
	go watchPeak(f.envoy.PID(), stop, peak)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			a, err := rig.Send(context.Background(), f.url("/v1/chat/completions"), bytes.NewReader(large), "content-type", "application/json")
			mu.Lock()
			defer mu.Unlock()
			count[a.Status]++
			if err == nil && a.Status == 503 && (a.Header.Get("Retry-After") == "" || !strings.Contains(string(a.Body), `"error"`)) {
				t.Errorf("refused with %v: %.200s", a.Header, a.Body)
			}
		})
	}
	for range 20 {
		status, b, err := f.post("/v1/chat/completions", []byte(`{"model":"smollm2","messages":[{"role":"user","content":"Hi"}]}`))
		if err != nil || status != 200 {
			t.Errorf("a small request beside them: status %d, %v: %.200s", status, err, b)
		}
	}
	wg.Wait()
	close(stop)
	mb := <-peak
	t.Logf("statuses %v, Envoy's peak %d MiB", count, mb)
	if got := int(e.bytes.Load()-before) / len(large); got != count[200] {
		t.Errorf("engines got %d large bodies, clients %d answers", got, count[200])
	}
	if mb > 1536 { // the overload manager's bound
		t.Errorf("Envoy took %d MiB", mb)
	}
	if count[200] == 0 || count[503] == 0 {
		t.Errorf("statuses: %v; want answers and refusals", count)
	}
	log, err := os.ReadFile(f.dir + "/access.log")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(log), "\n") {
		if strings.Contains(line, `"status":200`) && !strings.Contains(line, `"decision":"`) {
			t.Errorf("served without a decision: %s", line)
		}
	}
}

// watchPeak sends the largest resident memory of a process, in MiB, when stop is closed.
func watchPeak(pid int, stop <-chan struct{}, peak chan<- int) {
	most := 0
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			peak <- most
			return
		case <-tick.C:
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if fields := strings.Fields(string(b)); err == nil && len(fields) > 1 {
			pages, _ := strconv.Atoi(fields[1])
			most = max(most, pages*os.Getpagesize()>>20)
		}
	}
}

// testNoLength announces bodies that no 63 bits hold.
func (f *fleet) testNoLength(t *testing.T) {
	for _, length := range []string{"9223372036854775808", "18446744073709551615", "18446744073709551616", "1000000000000000000"} {
		c, err := net.Dial("tcp", rig.Address(f.ports.gateway))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = fmt.Fprintf(c, "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %s\r\n\r\n{", length)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 400 {
			t.Errorf("%s: %v, %v; want 400", length, resp, err)
		}
		_ = c.Close()
	}
}
