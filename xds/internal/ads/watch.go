package ads

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/wire"
)

// maxPending bounds the pushes per stream that have not been answered; the
// latency of further ones is not measured.
const maxPending = 64

// Bounds of what a client may say of itself and of a push, in bytes; a reason is kept for each
// resource of the push.
const (
	maxReason = 2 << 10
	maxClient = 256
)

// maxClients bounds the streams, which keep in mind what they have of each resource.
const maxClients = 1024

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
	// pending has the pushes that have not been answered, by nonce.
	pending map[string]pending
	// refused has why a resource was refused, until the client has taken another
	// version of it or it is no more.
	refused map[resource]string
}

// pending is a push that has not been answered.
type pending struct {
	typ  string // type URL
	sent time.Time
	// resources that it has, by name; of the types that have very many: none.
	resources []string
}

// resource names one; without a name any of its type.
type resource struct{ typ, name string }

// Refusal is a resource that a client refuses.
type Refusal struct {
	// Client is how it calls itself.
	Client string
	// Type is the type URL, Resource the name; empty: any of the type.
	Type, Resource string
	// Text is the client's reason.
	Text string
}

// many are the types with so many resources that nobody keeps in mind which were in
// a push.
var many = []string{wire.EndpointType, wire.CacheType}

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

// enter returns how many clients there are with the one that has come.
func (w *watcher) enter() int { return w.add(1) }
func (w *watcher) leave()     { w.add(-1) }

func (w *watcher) add(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clients += n
	w.metrics.clients.Set(float64(w.clients))
	return w.clients
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
			pending: make(map[string]pending),
			refused: make(map[resource]string),
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
	push, ok := c.pending[r.GetResponseNonce()]
	if ok {
		delete(c.pending, r.GetResponseNonce())
		w.metrics.latency.WithLabelValues(label).Observe(time.Since(push.sent).Seconds())
	}
	if e := r.GetErrorDetail(); e != nil {
		reason := e.GetMessage()
		reason = strings.Clone(strings.ToValidUTF8(reason[:min(len(reason), maxReason)], ""))
		c.refuse(typ, push.resources, reason)
		w.metrics.nacks.WithLabelValues(label).Inc()
		w.log.Error("push refused", "client", c.node, "type", label, "reason", reason)
		return
	}
	delete(c.refused, resource{typ, ""})
	for _, name := range push.resources {
		delete(c.refused, resource{typ, name})
	}
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
		p := pending{typ: r.GetTypeUrl(), sent: time.Now()}
		if !slices.Contains(many, p.typ) {
			for _, one := range r.GetResources() {
				p.resources = append(p.resources, one.GetName())
			}
		}
		c.pending[r.GetNonce()] = p
	}
	w.log.Debug("push", "client", c.node, "type", label, "resources", len(r.GetResources()), "removed", len(r.GetRemovedResources()))
}

func (w *watcher) closed(stream int64, n *corev3.Node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.streams, stream)
	w.log.Info("ads client left", "client", nodeID(n), "stream", stream)
}

// refuse notes why a push was refused: for the resources that the reason names, and
// for all of them if it names none.
func (c *conversation) refuse(typ string, names []string, reason string) {
	reason = strings.TrimSpace(reason)
	named := false
	for _, name := range names {
		if strings.Contains(reason, name) {
			c.refused[resource{typ, name}], named = reason, true
		}
	}
	if named {
		return
	}
	for _, name := range names {
		c.refused[resource{typ, name}] = reason
	}
	if len(names) == 0 {
		c.refused[resource{typ, ""}] = reason
	}
}

// removed forgets the refusals of resources that are no more.
func (w *watcher) removed(typ string, names []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.streams {
		for _, name := range names {
			delete(c.refused, resource{typ, name})
		}
	}
}

// busy reports whether a client has not answered a push of one of the types.
func (w *watcher) busy(types []string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.streams {
		for _, p := range c.pending {
			if slices.Contains(types, p.typ) {
				return true
			}
		}
	}
	return false
}

// refusals returns what clients have refused and not taken since.
func (w *watcher) refusals() []Refusal {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []Refusal
	for _, c := range w.streams {
		for r, text := range c.refused {
			all = append(all, Refusal{Client: c.node, Type: r.typ, Resource: r.name, Text: text})
		}
	}
	slices.SortFunc(all, func(a, b Refusal) int {
		return cmp.Or(cmp.Compare(a.Client, b.Client), cmp.Compare(a.Type, b.Type), cmp.Compare(a.Resource, b.Resource))
	})
	return all
}

// conditions returns what clients have refused and not taken since, once for each
// client, type and reason.
func (w *watcher) conditions() []obs.Condition {
	var all []obs.Condition
	for _, r := range w.refusals() {
		c := obs.Condition{
			Code: "push-refused",
			Text: fmt.Sprintf("%s refuses its %s: %s", r.Client, label(r.Type), r.Text),
			Next: "it continues with the previous version; correct what the reason names",
		}
		if len(all) == 0 || all[len(all)-1] != c {
			all = append(all, c)
		}
	}
	return all
}
