package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"millrace.dev/millrace/internal/proc"
)

// What P7 measures: a fleet of plain endpoints, each with a page of metrics as a
// vLLM has it.
const (
	plainEndpoints = 1000
	plainPage      = 20 << 10            // bytes, at least
	plainSettle    = 30 * time.Second    // until an idle fleet is looked at as seldom as can be
	plainPort      = "28999"             // of every endpoint; the addresses differ
	plainSeries    = "vllm:prompt_bytes" // to fill the page
)

// plainFleet is the engines: they listen on loopback addresses of their own.
type plainFleet struct {
	listeners []net.Listener
	busy      atomic.Bool // whether they say that requests run
	idlePage  []byte
	busyPage  []byte
}

// answerWith returns the whole HTTP answer of an engine with so many running requests.
func answerWith(running int) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine=\"0\",model_name=\"m\"} %d\n", running)
	b.WriteString("vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 0\nvllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.1\n")
	b.WriteString("vllm:request_prompt_tokens_sum{engine=\"0\",model_name=\"m\"} 1000\n")
	for i := 0; b.Len() < plainPage; i++ {
		fmt.Fprintf(&b, "%s_bucket{engine=\"0\",le=\"%d.0\",model_name=\"m\"} %d.0\n", plainSeries, i, 3*i)
	}
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", b.Len(), b.String())
}

// listen starts n engines and returns their addresses.
func (f *plainFleet) listen(n int) ([]string, error) {
	f.idlePage, f.busyPage = answerWith(0), answerWith(1)
	var all []string
	for i := range n {
		ln, err := net.Listen("tcp", net.JoinHostPort(fmt.Sprintf("127.1.%d.%d", i/250, 1+i%250), plainPort))
		if err != nil {
			return nil, err
		}
		f.listeners = append(f.listeners, ln)
		all = append(all, ln.Addr().String())
		go f.serve(ln)
	}
	return all, nil
}

func (f *plainFleet) serve(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go f.talk(conn)
	}
}

// talk answers each request with a page.
func (f *plainFleet) talk(conn net.Conn) {
	defer conn.Close()
	for r := bufio.NewReader(conn); ; {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		page := f.idlePage
		if f.busy.Load() {
			page = f.busyPage
		}
		if _, err := conn.Write(page); err != nil {
			return
		}
	}
}

func (f *plainFleet) close() {
	for _, ln := range f.listeners {
		ln.Close()
	}
}

// plain measures P7: what it costs extproc to look at endpoints by itself.
func plain(ctx context.Context, b *bench) error {
	f := &plainFleet{}
	defer f.close()
	engines, err := f.listen(plainEndpoints)
	if err != nil {
		return err
	}
	var text strings.Builder
	text.WriteString("endpoints:\n")
	for _, e := range engines {
		fmt.Fprintf(&text, "- {address: \"%s\", models: [m], type: vllm}\n", e)
	}
	file := filepath.Join(b.dir, "p7.yaml")
	if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
		return err
	}
	at, err := addresses(2)
	if err != nil {
		return err
	}
	p, err := b.launch(ctx, "p7-extproc", at[0], filepath.Join(b.bin, "extproc"), nil, "-listen", at[0], "-metrics", at[1], "-fleet", file)
	if err != nil {
		return err
	}
	defer p.stop()
	if err := pause(ctx, plainSettle); err != nil {
		return err
	}
	idle, _, err := b.looks(ctx, p, at[1])
	if err != nil {
		return err
	}
	f.busy.Store(true)
	if err := pause(ctx, plainSettle/3); err != nil {
		return err
	}
	busy, pages, err := b.looks(ctx, p, at[1])
	if err != nil {
		return err
	}
	st, err := proc.State(p.PID())
	if err != nil {
		return err
	}
	for _, g := range []figure{
		{What: "extproc -fleet, 1,000 idle endpoints", Value: idle, Unit: "cores", Goal: "≤ 0.02"},
		{What: "extproc -fleet, 1,000 busy endpoints", Value: busy, Unit: "cores"},
		{What: "extproc -fleet, a page of 20 KB, fetched, read and taken in", Value: 1e6 * busy / pages, Unit: "CPU µs/page", Goal: "≤ 60"},
		{What: "extproc -fleet, memory with 1,000 endpoints", Value: float64(st.RSS) / (1 << 20), Unit: "MiB", Goal: "≤ 100"},
	} {
		g.Row, g.Env = "P7", here(b.rounds)
		if err := b.out.add(g); err != nil {
			return err
		}
	}
	return nil
}

// looks returns the cores that p uses and the pages that it reads a second, as
// medians of the rounds.
func (b *bench) looks(ctx context.Context, p *program, metrics string) (cores, pages float64, err error) {
	var all, read []float64
	for range b.rounds {
		before, err := pagesRead(metrics)
		if err != nil {
			return 0, 0, err
		}
		used, began := p.cpu(), time.Now()
		if err := pause(ctx, 3*b.each); err != nil {
			return 0, 0, err
		}
		took := time.Since(began).Seconds()
		used = p.cpu() - used
		after, err := pagesRead(metrics)
		if err != nil {
			return 0, 0, err
		}
		all, read = append(all, used.Seconds()/took), append(read, (after-before)/took)
	}
	return median(all), median(read), nil
}

// pagesRead returns how many pages extproc says to have read.
func pagesRead(metrics string) (float64, error) {
	resp, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, `millrace_extproc_probes_total{found="metrics"} `); ok {
			return strconv.ParseFloat(strings.TrimSpace(v), 64)
		}
	}
	return 0, fmt.Errorf("%s tells of no looks", metrics)
}

// pause lets time pass.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
