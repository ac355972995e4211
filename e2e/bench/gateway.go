package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"millrace.dev/millrace/e2e/epdriver"
	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/envoy"
)

// side is one Envoy with its own xds and picker; all sides share the engines.
type side struct {
	control *control
	picker  *program
	envoy   *program
	listen  string
}

func (s *side) stop() {
	for _, p := range []*program{s.envoy, s.picker} {
		if p != nil {
			p.stop()
		}
	}
	if s.control != nil {
		s.control.stop()
	}
}

// cpu returns what Envoy and the picker have used, separately.
func (s *side) cpu() (gateway, picker time.Duration) { return s.envoy.cpu(), s.picker.cpu() }

// gateway measures P9: CPU time of Envoy and extproc per request, against Envoy
// and the echo picker.
func gateway(ctx context.Context, b *bench) error {
	engines, stop, err := fakeEngines(endpoints)
	if err != nil {
		return err
	}
	defer stop()
	ours, err := b.side(ctx, "p9-extproc", engines, func(addr, xds string) (*program, error) {
		return b.ours(ctx, "p9-extproc", addr, xds)
	})
	if err != nil {
		return err
	}
	defer ours.stop()
	floor, err := b.side(ctx, "p9-echo", engines, func(addr, _ string) (*program, error) {
		return b.echoPicker(ctx, "p9-echo", addr, engines[0])
	})
	if err != nil {
		return err
	}
	defer floor.stop()
	return b.compare(ctx, floor, ours)
}

func (b *bench) compare(ctx context.Context, floor, ours *side) error {
	var both, envoys, pickers series
	for range b.rounds {
		low, err := b.drive(ctx, floor)
		if err != nil {
			return fmt.Errorf("echo: %w", err)
		}
		high, err := b.drive(ctx, ours)
		if err != nil {
			return fmt.Errorf("extproc: %w", err)
		}
		both.add(high.envoy+high.picker, low.envoy+low.picker)
		envoys.add(high.envoy, low.envoy)
		pickers.add(high.picker, low.picker)
	}
	for _, f := range []struct {
		what, goal string
		s          series
	}{
		{"Envoy + extproc, 2 KiB, 8 endpoints", "≤ 1.05 × floor", both},
		{"Envoy alone", "", envoys},
		{"extproc alone", "", pickers},
	} {
		err := b.out.add(figure{
			Row: "P9", What: f.what, Unit: "CPU µs/request", Goal: f.goal, Env: here(b.rounds),
			Value: median(f.s.value), Floor: median(f.s.floor), Ratio: f.s.ratio(),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// side starts one Envoy with xds and a picker.
func (b *bench) side(ctx context.Context, name string, engines []string, picker func(addr, xds string) (*program, error)) (*side, error) {
	at, err := rig.Addresses(3)
	if err != nil {
		return nil, err
	}
	s := &side{listen: at[0]}
	if s.control, err = b.control(ctx, name+"-xds", at[0], at[1], engines); err != nil {
		return nil, err
	}
	if s.picker, err = picker(at[1], s.control.addr); err == nil {
		err = b.startEnvoy(ctx, s, name, at[2])
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// startEnvoy starts the side's Envoy and waits until a request gets through.
func (b *bench) startEnvoy(ctx context.Context, s *side, name, admin string) error {
	config, err := envoy.Bootstrap(envoy.Options{Admin: admin, XDS: s.control.addr})
	if err != nil {
		return err
	}
	file := filepath.Join(b.dir, name+"-envoy.json")
	if err := os.WriteFile(file, config, 0o644); err != nil {
		return err
	}
	path := b.envoy
	if s.envoy, err = b.launch(ctx, name+"-envoy", s.listen, path, nil, envoy.Args(file, 2)...); err != nil {
		return err
	}
	corpus := epdriver.NewCorpus(modelName, bodySize, 1, 1)
	err = rig.PollContext(ctx, 20*time.Second, func() error {
		return request(ctx, s.listen, "probe", corpus.Request(0, rand.New(rand.NewPCG(0, 0))))
	})
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, s.envoy.out.Tail())
	}
	return nil
}

// shares are microseconds of CPU time per request.
type shares struct{ envoy, picker float64 }

// drive sends requests through one side for a while.
func (b *bench) drive(ctx context.Context, s *side) (shares, error) {
	corpus := epdriver.NewCorpus(modelName, bodySize, sessions, prompts)
	if _, err := requests(ctx, s.listen, corpus, b.each/10); err != nil {
		return shares{}, err
	}
	envoy0, picker0 := s.cpu()
	n, err := requests(ctx, s.listen, corpus, b.each)
	if err != nil {
		return shares{}, err
	}
	envoy1, picker1 := s.cpu()
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(n) }
	return shares{each(envoy1 - envoy0), each(picker1 - picker0)}, nil
}

// requests keeps some clients busy for a while and returns how many answers came.
func requests(ctx context.Context, addr string, corpus *epdriver.Corpus, during time.Duration) (int, error) {
	until := time.Now().Add(during)
	var (
		mu    sync.Mutex
		n     int
		first error
		wg    sync.WaitGroup
	)
	for c := range clients {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(c)))
			for time.Now().Before(until) && ctx.Err() == nil {
				session := r.IntN(sessions)
				err := request(ctx, addr, fmt.Sprintf("session-%d", session), corpus.Request(session, r))
				mu.Lock()
				n++
				if first == nil {
					first = err
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if n == 0 {
		return 0, errors.Join(errors.New("no request was sent"), ctx.Err())
	}
	return n, first
}

// poster keeps a connection for each client.
var poster = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: clients}}

func request(ctx context.Context, addr, session string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("content-type", "application/json")
	req.Header.Set("x-session-id", session)
	resp, err := poster.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %.200s", resp.StatusCode, b)
	}
	return err
}

// fakeAnswer is what every fake engine answers.
const fakeAnswer = `{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"` + modelName + `","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":420,"completion_tokens":128,"total_tokens":548}}`

// fakeEngines serves n engines' APIs from this process: they answer at once.
func fakeEngines(n int) (addrs []string, stop func(), err error) {
	srv := &http.Server{Handler: http.HandlerFunc(answerAtOnce), Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true) // as engines do
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			_ = srv.Close()
			return nil, nil, err
		}
		addrs = append(addrs, ln.Addr().String())
		go func() { _ = srv.Serve(ln) }()
	}
	return addrs, func() { _ = srv.Close() }, nil
}

func answerAtOnce(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("content-type", "application/json")
	w.Header().Set("x-millrace-usage", usageHeader)
	w.Header().Set("endpoint-load-metrics", "TEXT named_metrics.running=1,named_metrics.kv_util=0.1,application_utilization=0.25,rps_fractional=1")
	_, _ = io.WriteString(w, fakeAnswer)
}
