package page

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"millrace.dev/millrace/internal/recent"
)

const (
	// mostViewers bounds the streams, of which one more is refused.
	mostViewers = 256
	// beatEvery is how often a viewer gets something, at least: less is a stream that is lost.
	beatEvery = 5 * time.Second
	// writeWait is how long a viewer may take to read what is sent before it is dropped.
	writeWait = 5 * time.Second
)

// viewer is how far one viewer is.
type viewer struct {
	version           uint64 // of the frame that it has; 0: none
	events, decisions uint64 // numbers of the newest that it has
	beat              time.Time
}

// stream serves the page's events to one viewer until it leaves, or is dropped.
func (p *Page) stream(w http.ResponseWriter, r *http.Request) {
	defer p.viewers.Add(-1)
	if p.viewers.Add(1) > mostViewers {
		http.Error(w, fmt.Sprintf("%d viewers follow this page already; no more are taken", mostViewers), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	to := http.NewResponseController(w)
	timer := time.NewTimer(beatEvery)
	defer timer.Stop()
	var v viewer
	var news []byte
	for {
		next := p.latest.Load().next // before the news: what comes meanwhile is not missed
		if news = v.news(p, news[:0], time.Now()); len(news) > 0 {
			_ = to.SetWriteDeadline(time.Now().Add(writeWait)) // without one it is the connection's own
			if _, err := w.Write(news); err != nil || to.Flush() != nil {
				if r.Context().Err() == nil {
					p.metrics.dropped.Inc()
				}
				return
			}
		}
		timer.Reset(beatEvery)
		select {
		case <-next:
		case <-timer.C:
		case <-r.Context().Done():
			return
		case <-p.ended:
			return
		}
	}
}

// news appends what the viewer does not have yet.
func (v *viewer) news(p *Page, to []byte, now time.Time) []byte {
	if f := p.current(); f.version != v.version {
		v.version = f.version
		to = append(to, f.event...)
	}
	to, v.events = list(to, "event", p.events, v.events)
	to, v.decisions = list(to, "decision", p.decisions, v.decisions)
	if len(to) > 0 || now.Sub(v.beat) >= beatEvery {
		v.beat = now
		to = fmt.Appendf(to, "event: beat\ndata: {\"at\":%s}\n\n", encode(p.latest.Load().at))
	}
	return to
}

// list appends the items after the one of a number as events, and returns the newest number.
func list(to []byte, name string, from *recent.List[json.RawMessage], since uint64) ([]byte, uint64) {
	items, last := from.Since(since)
	for _, one := range items {
		to = fmt.Appendf(to, "event: %s\ndata: %s\n\n", name, one)
	}
	return to, last
}
