package ads

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"

	"millrace.dev/millrace/internal/obs"
)

// maxPending bounds the pushes per stream that have not been answered; the
// latency of further ones is not measured.
const maxPending = 64

// watcher follows the conversation with each client: pushes, acceptances,
// refusals.
type watcher struct {
	// Constant after newWatcher.
	log     *slog.Logger
	metrics *metrics

	// mu guards the fields below.
	mu      sync.Mutex
	clients int
	streams map[int64]*conversation // by go-control-plane's number of the stream
}

// conversation is what is known of one stream.
type conversation struct {
	// node is how the client calls itself.
	node string
	// pending has when each push was sent that has not been answered, by nonce.
	pending map[string]time.Time
	// refused has the reason of the last push that was refused, by type URL.
	refused map[string]string
}

func newWatcher(log *slog.Logger, m *metrics) *watcher {
	return &watcher{log: log, metrics: m, streams: make(map[int64]*conversation)}
}

func (w *watcher) callbacks() serverv3.Callbacks {
	return serverv3.CallbackFuncs{
		StreamDeltaRequestFunc:  w.request,
		StreamDeltaResponseFunc: w.response,
		DeltaStreamClosedFunc:   w.closed,
	}
}

func (w *watcher) enter() { w.add(1) }
func (w *watcher) leave() { w.add(-1) }

func (w *watcher) add(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clients += n
	w.metrics.clients.Set(float64(w.clients))
}

func (w *watcher) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clients
}

// request notes what a client asks for or answers.
func (w *watcher) request(stream int64, r *discoveryv3.DeltaDiscoveryRequest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.streams[stream]
	if c == nil {
		c = &conversation{
			node:    nodeID(r.GetNode()),
			pending: make(map[string]time.Time),
			refused: make(map[string]string),
		}
		w.streams[stream] = c
		w.log.Info("ads client", "client", c.node, "stream", stream)
	}
	if r.GetResponseNonce() != "" {
		w.answeredLocked(c, r)
	}
	return nil
}

// answeredLocked notes that a client has taken or refused a push.
func (w *watcher) answeredLocked(c *conversation, r *discoveryv3.DeltaDiscoveryRequest) {
	typ, label := r.GetTypeUrl(), label(r.GetTypeUrl())
	if sent, ok := c.pending[r.GetResponseNonce()]; ok {
		delete(c.pending, r.GetResponseNonce())
		w.metrics.latency.WithLabelValues(label).Observe(time.Since(sent).Seconds())
	}
	if e := r.GetErrorDetail(); e != nil {
		c.refused[typ] = e.GetMessage()
		w.metrics.nacks.WithLabelValues(label).Inc()
		w.log.Error("push refused", "client", c.node, "type", label, "reason", e.GetMessage())
		return
	}
	delete(c.refused, typ)
	w.metrics.acks.WithLabelValues(label).Inc()
}

// response notes what is about to be sent.
func (w *watcher) response(stream int64, _ *discoveryv3.DeltaDiscoveryRequest, r *discoveryv3.DeltaDiscoveryResponse) {
	label := label(r.GetTypeUrl())
	w.metrics.pushes.WithLabelValues(label).Inc()
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.streams[stream]
	if c == nil {
		return
	}
	if len(c.pending) < maxPending {
		c.pending[r.GetNonce()] = time.Now()
	}
	w.log.Debug("push", "client", c.node, "type", label, "resources", len(r.GetResources()), "removed", len(r.GetRemovedResources()))
}

func (w *watcher) closed(stream int64, n *corev3.Node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.streams, stream)
	w.log.Info("ads client left", "client", nodeID(n), "stream", stream)
}

// conditions returns what clients have refused and not taken since.
func (w *watcher) conditions() []obs.Condition {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []obs.Condition
	for _, id := range slices.Sorted(maps.Keys(w.streams)) {
		c := w.streams[id]
		for _, typ := range slices.Sorted(maps.Keys(c.refused)) {
			all = append(all, obs.Condition{
				Code: "push-refused",
				Text: fmt.Sprintf("%s refuses its %s: %s", c.node, label(typ), strings.TrimSpace(c.refused[typ])),
				Next: "it goes on with what it had; mend what the reason names",
			})
		}
	}
	return all
}
