package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// What L4 sends: conversations of ten turns, some at a time, whose prompts grow to
// about a thousand tokens.
const (
	turnsEach     = 10
	turnsTogether = 2
	turnsAnswer   = 8 // tokens
)

// turns measures what sticky routing is worth on real engines: the time to the first
// token of turns 2 to 10, through `millrace up` and, in turns with it, through another
// Envoy before the same engines that takes them round robin.
func turns(ctx context.Context, b *bench) error {
	m, err := b.up(ctx, "l4")
	if err != nil {
		return err
	}
	defer m.stop()
	plain, err := b.roundRobin(ctx, m.replicas())
	if err != nil {
		return err
	}
	defer plain.stop()
	var middle, tail, cached series
	for round := range b.rounds {
		ways := []string{m.state.Listen, plain.listen}
		if round%2 == 1 {
			slices.Reverse(ways)
		}
		seen := map[string]*talks{}
		for _, addr := range ways {
			seen[addr] = &talks{}
			if err := seen[addr].hold(ctx, addr, round); err != nil {
				return err
			}
		}
		ours, other := seen[m.state.Listen], seen[plain.listen]
		middle.add(median(ours.ttft), median(other.ttft))
		tail.add(quantile(ours.ttft, 0.95), quantile(other.ttft, 0.95))
		cached.add(100*ours.share(), 100*other.share())
	}
	for _, f := range []struct {
		what, unit string
		s          *series
	}{
		{"time to the first token of turns 2 to 10, median; floor: round robin", "ms", &middle},
		{"the same, 95th percentile", "ms", &tail},
		{"prompt tokens of these turns that were cached", "%", &cached},
	} {
		err := b.out.add(figure{
			Row: "L4", What: f.what, Unit: f.unit, Env: here(b.rounds),
			Value: median(f.s.value), Floor: median(f.s.floor), Ratio: f.s.ratio(),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// replicas returns the addresses of the engines that answer for a replica.
func (m *mesh) replicas() (all []string) {
	http := map[string]string{} // by node
	for _, p := range m.state.Processes {
		if strings.HasPrefix(p.Name, "engine@") {
			http[p.Node] = p.Addrs["http"]
		}
	}
	for _, p := range m.state.Processes {
		if strings.HasPrefix(p.Name, "backend@") {
			all = append(all, http[p.Node])
		}
	}
	return all
}

// roundRobin starts an Envoy that nobody tells where to go: the engines have equal
// weights.
func (b *bench) roundRobin(ctx context.Context, engines []string) (*side, error) {
	at, err := addresses(2)
	if err != nil {
		return nil, err
	}
	s := &side{listen: at[0]}
	if s.control, err = b.control(ctx, "l4-xds", at[0], "", engines); err == nil {
		err = b.startEnvoy(ctx, s, "l4", at[1])
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// talks is what was seen of the turns behind the first.
type talks struct {
	// mu guards the fields below.
	mu             sync.Mutex
	ttft           []float64 // ms
	prompt, cached int       // tokens
	failed         error
}

func (t *talks) share() float64 { return float64(t.cached) / float64(max(1, t.prompt)) }

// hold holds conversations through a gateway, which nobody has seen before.
func (t *talks) hold(ctx context.Context, addr string, round int) error {
	var wg sync.WaitGroup
	for i := range turnsTogether {
		wg.Go(func() {
			if err := t.one(ctx, addr, fmt.Sprintf("%d of %d at %s", i, round, addr)); err != nil {
				t.mu.Lock()
				t.failed = err
				t.mu.Unlock()
			}
		})
	}
	wg.Wait()
	return t.failed
}

func (t *talks) one(ctx context.Context, addr, about string) error {
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	var history []message
	for turn := range turnsEach {
		history = append(history, message{"user", strings.Repeat(fmt.Sprintf("Note %d in story %s says that it goes on. ", turn, about), 5)})
		body, err := json.Marshal(map[string]any{
			"model": modelName, "messages": history, "max_tokens": turnsAnswer, "temperature": 0, "ignore_eos": true,
			"stream": true, "stream_options": map[string]any{"include_usage": true},
		})
		if err != nil {
			return err
		}
		a, err := stream(ctx, addr, body)
		if err != nil {
			return fmt.Errorf("turn %d: %w", turn+1, err)
		}
		history = append(history, message{"assistant", a.text})
		if turn == 0 {
			continue
		}
		t.mu.Lock()
		t.ttft = append(t.ttft, a.first.Seconds()*1000)
		t.prompt += a.prompt
		t.cached += a.cached
		t.mu.Unlock()
	}
	return nil
}

// streamed is an answer that came in pieces.
type streamed struct {
	text           string
	first          time.Duration // until its first token came
	prompt, cached int           // tokens
}

// stream asks for one answer in pieces.
func stream(ctx context.Context, addr string, body []byte) (a streamed, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	req.Header.Set("content-type", "application/json")
	begin := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("status %d", resp.StatusCode)
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok || data == "[DONE]" {
			continue
		}
		var piece struct {
			Choices []struct {
				Delta struct {
					Content string `json:"content"`
				} `json:"delta"`
			} `json:"choices"`
			Usage struct {
				Prompt  int `json:"prompt_tokens"`
				Details struct {
					Cached int `json:"cached_tokens"`
				} `json:"prompt_tokens_details"`
			} `json:"usage"`
		}
		if err := json.Unmarshal([]byte(data), &piece); err != nil {
			return a, fmt.Errorf("%.200s: %w", data, err)
		}
		if len(piece.Choices) > 0 && piece.Choices[0].Delta.Content != "" {
			if a.text == "" {
				a.first = time.Since(begin)
			}
			a.text += piece.Choices[0].Delta.Content
		}
		a.prompt, a.cached = max(a.prompt, piece.Usage.Prompt), max(a.cached, piece.Usage.Details.Cached)
	}
	if a.text == "" {
		return a, fmt.Errorf("no text came: %w", lines.Err())
	}
	return a, lines.Err()
}

// quantile returns the value below which the share of all is.
func quantile(x []float64, share float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[int(share*float64(len(x)-1)+0.5)]
}
