package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/proc"
)

// What P7a measures: endpoints that extproc scrapes by itself, each with a page of
// metrics as a vLLM has it.
const (
	probeEndpoints = 1000
	probePage      = 20 << 10            // bytes, at least
	probeSettle    = 30 * time.Second    // until an idle fleet is scraped as seldom as can be
	probePort      = "28999"             // of every endpoint; the addresses differ
	probeSeries    = "vllm:prompt_bytes" // to fill the page
)

// pageFleet is the engines: they listen on loopback addresses of their own.
type pageFleet struct {
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
	for i := 0; b.Len() < probePage; i++ {
		fmt.Fprintf(&b, "%s_bucket{engine=\"0\",le=\"%d.0\",model_name=\"m\"} %d.0\n", probeSeries, i, 3*i)
	}
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", b.Len(), b.String())
}

// listen starts n engines and returns their addresses.
func (f *pageFleet) listen(n int) ([]string, error) {
	f.idlePage, f.busyPage = answerWith(0), answerWith(1)
	var all []string
	for i := range n {
		ln, err := net.Listen("tcp", net.JoinHostPort(fmt.Sprintf("127.1.%d.%d", i/250, 1+i%250), probePort))
		if err != nil {
			return nil, err
		}
		f.listeners = append(f.listeners, ln)
		all = append(all, ln.Addr().String())
		go f.serve(ln)
	}
	return all, nil
}

func (f *pageFleet) serve(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go f.talk(conn)
	}
}

// talk answers each request with a page.
func (f *pageFleet) talk(conn net.Conn) {
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

func (f *pageFleet) close() {
	for _, ln := range f.listeners {
		ln.Close()
	}
}

// probing measures P7a: what it costs extproc to scrape endpoints by itself.
func probing(ctx context.Context, b *bench) error {
	f := &pageFleet{}
	defer f.close()
	engines, err := f.listen(probeEndpoints)
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
	at, err := rig.Addresses(2)
	if err != nil {
		return err
	}
	p, err := b.launch(ctx, "p7-extproc", at[0], filepath.Join(b.bin, "extproc"), nil, "-listen", at[0], "-metrics", at[1], "-fleet", file)
	if err != nil {
		return err
	}
	p.admin = at[1]
	defer p.stop()
	if err := pause(ctx, probeSettle); err != nil {
		return err
	}
	idle, _, err := b.scrapes(ctx, p)
	if err != nil {
		return err
	}
	f.busy.Store(true)
	if err := pause(ctx, probeSettle/3); err != nil {
		return err
	}
	busy, pages, err := b.scrapes(ctx, p)
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
		{What: "extproc -fleet, a page of 20 KB, fetched, decoded and taken in", Value: 1e6 * busy / pages, Unit: "CPU µs/page", Goal: "≤ 60"},
		{What: "extproc -fleet, memory with 1,000 endpoints", Value: float64(st.RSS) / (1 << 20), Unit: "MiB", Goal: "≤ 64"},
	} {
		g.Row, g.Env = "P7a", here(b.rounds)
		if err := b.out.add(g); err != nil {
			return err
		}
	}
	return nil
}

// scrapes returns the cores that p uses and the pages that it takes in a second, as
// medians of the rounds.
func (b *bench) scrapes(ctx context.Context, p *program) (cores, pages float64, err error) {
	const scraped = `millrace_extproc_probes_total{found="metrics"}`
	var all, taken []float64
	for range b.rounds {
		before, err := p.metric(scraped)
		if err != nil {
			return 0, 0, err
		}
		used, began := p.cpu(), time.Now()
		if err := pause(ctx, 3*b.each); err != nil {
			return 0, 0, err
		}
		took := time.Since(began).Seconds()
		used = p.cpu() - used
		after, err := p.metric(scraped)
		if err != nil {
			return 0, 0, err
		}
		all, taken = append(all, used.Seconds()/took), append(taken, (after-before)/took)
	}
	return median(all), median(taken), nil
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
