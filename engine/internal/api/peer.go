package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/resume"
	"millrace.dev/millrace/internal/wire"
)

// ContinuePath is where an engine asks another one of the same model for the rest of an
// answer: the operation's path follows, and the body is a continuation. It answers with the
// events of its backend; their form and the counted tokens are headers.
const ContinuePath = "/millrace/v1/continue"

// continuation is what a peer is asked.
type continuation struct {
	// Request is the client's own, Part what was delivered of a choice.
	Request json.RawMessage `json:"request"`
	Part    resume.Part     `json:"part"`
	// Only is whether the tokens are counted alone.
	Only bool `json:"only,omitempty"`
}

// headerCounts has the form of the events, and the tokens of the prompt and of the part.
const headerCounts = "X-Millrace-Continued"

const (
	// mostPeers bounds how many are asked in a round, peerFor how long one takes to begin.
	mostPeers = 4
	peerFor   = 10 * time.Second
	// mostWrapped is how much larger than a client's request a continuation may be, in
	// bytes: text in JSON takes at most six times its size.
	mostWrapped = 6*resume.Most + 4<<10
)

// peers are the other engines that extproc has named for the request, the best first.
func (c *call) peers() (all []string) {
	for address := range strings.SplitSeq(c.r.Header.Get(wire.DestinationHeader), ",") {
		if address = strings.TrimSpace(address); address != "" && address != c.cfg.Address && len(all) < mostPeers {
			all = append(all, address)
		}
	}
	return all
}

// askPeers asks the peers for the rest of a part.
func (c *call) askPeers(ctx context.Context, part resume.Part, only bool) (*rest, error) {
	if c.cfg.Peers == nil || len(c.body) == 0 {
		return nil, errNobody
	}
	err := error(errNobody)
	for _, address := range c.peers() {
		var got *rest
		if got, err = c.askPeer(ctx, address, part, only); err == nil {
			return got, nil
		}
		c.cfg.Log.Debug("peer did not continue", "peer", address, "err", err)
	}
	return nil, err
}

func (c *call) askPeer(ctx context.Context, address string, part resume.Part, only bool) (*rest, error) {
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(peerFor, cancel)
	defer late.Stop()
	body := backend.Encode(continuation{Request: c.body, Part: part, Only: only})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, cmp.Or(c.cfg.Scheme, "http")+"://"+address+ContinuePath+c.op.Path, bytes.NewReader(body))
	if err != nil {
		cancel()
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	for _, name := range []string{wire.PriorityHeader, wire.PrefixHeader} {
		req.Header.Set(name, c.r.Header.Get(name))
	}
	resp, err := c.cfg.Peers.RoundTrip(req)
	if err != nil {
		cancel()
		return nil, err
	}
	got := &rest{where: resumeElsewhere, events: resp.Body, free: cancel}
	var form resume.Form
	_, err = fmt.Sscanf(resp.Header.Get(headerCounts), "%d %d %d", &form, &got.counts.Prompt, &got.counts.Delivered)
	switch {
	case resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNoContent:
		err = fmt.Errorf("peer %s: status %d", address, resp.StatusCode)
	case err != nil:
		err = fmt.Errorf("peer %s: %s: %w", address, headerCounts, err)
	case form != c.way.Continue.Form:
		err = fmt.Errorf("peer %s: its streams have another form", address)
	case resp.StatusCode == http.StatusNoContent:
		got.close()
		got.events = nil
		return got, nil
	}
	if err != nil {
		got.close()
		return nil, err
	}
	return got, nil
}

// proceed answers a peer that asks for the rest of an answer.
func (s *Server) proceed(op operation, w http.ResponseWriter, r *http.Request) {
	if r.Header.Get(wire.DestinationHeader) != "" { // a client's, by way of the gateway
		notFound("no such endpoint: "+r.Method+" "+r.URL.Path, "").write(w)
		return
	}
	s.answer(op, w, r, &continuation{})
}

// unwrap takes the client's request out of a peer's.
func (c *call) unwrap(body []byte) ([]byte, *apiError) {
	if c.asked == nil {
		return body, nil
	}
	if err := json.Unmarshal(body, c.asked); err != nil {
		return nil, badRequest("", "the continuation is not JSON: %v", err)
	}
	return append(make([]byte, 0, len(c.asked.Request)+backend.Room), c.asked.Request...), nil
}

// follow makes the request for the rest of the part that a peer asks for; done: it is
// answered with that.
func (c *call) follow(ctx context.Context) (done bool, failed *apiError) {
	req, err := resume.Read(c.way.Continue.Way, c.way.Body)
	if err != nil {
		return false, badRequest("part", "%v", err)
	}
	counts, err := c.countPart(ctx, c.serving, req, c.asked.Part)
	if err != nil {
		return false, backendLost(err.Error())
	}
	body, err := req.Follow(c.asked.Part, counts)
	if err != nil {
		return false, badRequest("part", "%v", err)
	}
	c.w.Header().Set(headerCounts, fmt.Sprintf("%d %d %d", c.way.Continue.Form, counts.Prompt, counts.Delivered))
	if c.asked.Only || body == nil {
		c.w.WriteHeader(http.StatusNoContent)
		return true, nil
	}
	c.way.Body, c.way.Reform, c.way.Answer = body, nil, backend.AsIs
	return false, nil
}
