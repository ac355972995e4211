package mesh

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/internal/keys"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

const (
	// probeTimeout bounds one answer of one token, on a busy machine.
	probeTimeout = 30 * time.Second
	// probesPerReplica is how many requests at a time go through Envoy for each
	// replica, so that the picker has a reason to use them all.
	probesPerReplica = 2
	// printAgain is how often the same wait is shown.
	printAgain = 10 * time.Second
)

// awaitReady returns nil once every replica is ready at xds, has generated a
// token, and Envoy has passed an answer on. Those that are loaded on demand are not
// asked, and models without a place for drained nodes' sake are shown instead.
func (m *mesh) awaitReady(ctx context.Context) error {
	w := waiting{show: m.show, logs: m.plan.Logs, began: time.Now(), printed: map[string]time.Time{}}
	for {
		view := m.view.Load()
		rs, out := m.due(view)
		texts := missing(view, rs)
		if len(rs) == 0 {
			texts = append(texts, out...) // there is no model to serve
		}
		if len(texts) == 0 {
			err := m.probe(ctx, view)
			if err == nil {
				for _, text := range out {
					m.show.progress("%s", text)
				}
				return nil
			}
			texts = []string{err.Error()}
		}
		w.print(append(texts, conditions(view)...))
		if !sleep(ctx, 200*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// conditions returns what xds finds wrong beside what missing says already: that
// replicas and models are not ready yet.
func conditions(v *fleetpb.FleetView) []string {
	var texts []string
	for _, c := range v.GetConditions() {
		if code := c.GetCode(); code != wire.ReplicaNotReady && code != wire.ModelDown {
			texts = append(texts, c.GetText())
		}
	}
	return texts
}

// waiting prints what is waited for: on change and now and then, but not again
// and again what comes and goes.
type waiting struct {
	show    *console
	logs    string // folder, named when the wait gets long
	began   time.Time
	last    time.Time            // when anything was printed
	printed map[string]time.Time // by text; dropped when it may be printed again
}

func (w *waiting) print(texts []string) {
	now, text := time.Now(), strings.Join(texts, "; ")
	maps.DeleteFunc(w.printed, func(_ string, at time.Time) bool { return now.Sub(at) > printAgain })
	if _, known := w.printed[text]; known || now.Sub(w.last) < time.Second {
		return
	}
	w.last, w.printed[text] = now, now
	waited := now.Sub(w.began)
	if waited > printAgain {
		text += "; logs: " + obs.Quote(w.logs)
	}
	w.show.progress("%s: waiting for %s", short(waited), text)
}

// probe gets one token from every replica: through Envoy where the picker's
// choice falls on it, straight from its engine where not. One that is dormant is not
// woken: with no other, Envoy proves itself by the list of models.
func (m *mesh) probe(ctx context.Context, view *fleetpb.FleetView) error {
	rs, _ := m.due(view)
	rs = slices.DeleteFunc(slices.Clone(rs), func(r replica) bool { return dormant(head(view, r.name)) })
	if len(rs) == 0 {
		if err := m.listed(ctx); err != nil {
			return fmt.Errorf("the list of models through Envoy at %s: %w", m.plan.Listen, err)
		}
		return nil
	}
	seen, err := m.throughEnvoy(ctx, rs)
	if err != nil {
		return fmt.Errorf("an answer through Envoy at %s: %w", m.plan.Listen, err)
	}
	for _, r := range rs {
		if seen[r.name] {
			continue
		}
		n := head(view, r.name)
		if _, err := m.engineToken(ctx, n.GetReport().GetEngine().GetHttpAddress(), n.GetNode(), r.model); err != nil {
			return fmt.Errorf("a token from %s: %w", r.name, err)
		}
	}
	return nil
}

// throughEnvoy sends requests of different sessions at the same time and returns
// the replicas that answered. One that fails ends no other.
func (m *mesh) throughEnvoy(ctx context.Context, rs []replica) (map[string]bool, error) {
	var (
		mu   sync.Mutex
		seen = map[string]bool{}
	)
	var g errgroup.Group
	for i := range probesPerReplica * len(rs) {
		g.Go(func() error {
			model := rs[i%len(rs)].model
			name, err := oneToken(ctx, keys.Transport(m.key, &http.Transport{DisableKeepAlives: true}), "http://"+reachable(m.plan.Listen), model, http.Header{
				wire.SessionHeader: {fmt.Sprintf("millrace-up-%d-%d", time.Now().UnixNano(), i)}, wire.ProbeHeader: {m.plan.ProbeKey},
			})
			mu.Lock()
			defer mu.Unlock()
			seen[name] = true
			return err
		})
	}
	return seen, g.Wait()
}

// listed asks Envoy for the list of models, which wakes nobody.
func (m *mesh) listed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+reachable(m.plan.Listen)+"/v1/models", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: keys.Transport(m.key, &http.Transport{DisableKeepAlives: true})}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("%s: %.200s", resp.Status, strings.TrimSpace(string(b)))
	}
	return nil
}

// engineToken asks an engine itself.
func (m *mesh) engineToken(ctx context.Context, addr, node, model string) (string, error) {
	if m.operator == nil {
		return oneToken(ctx, &http.Transport{DisableKeepAlives: true}, "http://"+addr, model, nil)
	}
	t := &http.Transport{TLSClientConfig: m.operator.Client(mtls.IsEngineOf(node), "http/1.1"), DisableKeepAlives: true}
	return oneToken(ctx, t, "https://"+addr, model, nil)
}

// oneToken asks for a completion of one token and returns the replica that gave it.
func oneToken(ctx context.Context, t http.RoundTripper, base, model string, more http.Header) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	body, err := json.Marshal(map[string]any{
		"model": model, "max_tokens": 1, "temperature": 0,
		"messages": []map[string]string{{"role": "user", "content": "Hi"}},
	})
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Close = true
	for name, values := range more {
		req.Header.Set(name, values[0])
	}
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	return resp.Header.Get(wire.ReplicaHeader), tokenIn(resp)
}

// tokenIn returns why a response holds no generated token.
func tokenIn(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	var answer struct {
		Usage struct {
			Completion int `json:"completion_tokens"`
		} `json:"usage"`
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %.200s", resp.Status, strings.TrimSpace(string(b)))
	}
	if err := json.Unmarshal(b, &answer); err != nil || answer.Usage.Completion < 1 {
		return fmt.Errorf("no token in %.200s", b)
	}
	return nil
}
