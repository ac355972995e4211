package mesh

import (
	"context"
	"net/http"
	"time"

	"millrace.dev/millrace/internal/gateway"
)

// drainWait is how long requests in flight may run after the stop was asked for.
const drainWait = 3 * time.Second

// drain closes Envoy's listener and waits for the requests in flight. Nothing
// depends on it: an Envoy that can't be asked is just stopped.
func (m *mesh) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainWait)
	defer cancel()
	if err := gateway.Admin(ctx, http.MethodPost, m.plan.Admin, "/drain_listeners", nil); err != nil {
		return
	}
	for {
		active, err := gateway.InFlight(ctx, m.plan.Admin)
		if err != nil || active.Requests == 0 || !sleep(ctx, 50*time.Millisecond) {
			return
		}
	}
}
