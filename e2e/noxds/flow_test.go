package noxds

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/rig"
)

// TestFloodOfSheddableRequests shows that critical requests are served as if a flood
// of sheddable ones were not there: beside it with flow control, and without.
func TestFloodOfSheddableRequests(t *testing.T) {
	f := newFleet(t)
	f.reload(t, "{gatewayTimeout: 60s, allowance: 0, reserve: 0.34, queue: 8, maxWait: {sheddable: 1s}}")
	quiet := f.criticals(t, "alone")
	with := f.flood(t, "with flow control")
	f.reload(t, "{gatewayTimeout: 60s, queue: 0}")
	without := f.flood(t, "without")
	t.Logf("first token of critical requests, median: alone %v, in a flood %v with flow control, %v without; sheddable: %d served, %d turned away",
		quiet, with.critical, without.critical, with.served, with.shed)
	if with.shed == 0 || with.served == 0 {
		t.Errorf("%d sheddable requests were turned away, %d served; want some of both", with.shed, with.served)
	}
	// Three engines share two cores with the flood's two requests, so the same speed
	// as alone cannot be had here.
	if with.critical > 4*quiet+200*time.Millisecond {
		t.Errorf("critical requests take %v in the flood, %v alone", with.critical, quiet)
	}
	if without.shed > 0 || with.critical >= without.critical {
		t.Errorf("critical requests take %v with flow control and %v without, %d were turned away there", with.critical, without.critical, without.shed)
	}
}

// reload gives extproc a policy of flow control, and each engine one slot.
func (f *fleet) reload(t *testing.T, flow string) {
	t.Helper()
	const read = `msg="fleet read"`
	before := strings.Count(f.extproc.Out.String(), read)
	text := strings.ReplaceAll(f.adapt(t, "fleet.yaml"), "type: llamacpp}", "type: llamacpp, slots: 1}")
	f.write(t, "fleet.yaml", strings.Replace(text, "flow: {gatewayTimeout: 60s}", "flow: "+flow, 1))
	f.await(t, "extproc has read the file again", func() error {
		if strings.Count(f.extproc.Out.String(), read) == before {
			return fmt.Errorf("extproc has not read the file again")
		}
		return nil
	})
}

// criticals sends critical requests, one after the other, and returns the median time
// to a token. All must be served.
func (f *fleet) criticals(t *testing.T, about string) time.Duration {
	t.Helper()
	var took []time.Duration
	for i := range 11 {
		began := time.Now()
		if _, _, err := f.ask([]rig.Message{rig.User(fmt.Sprintf("Important %s, number %d: what is the matter?", about, i))}, 1, "x-millrace-priority", "critical"); err != nil {
			t.Fatalf("a critical request, %s: %v", about, err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// flooded is what was seen in a flood.
type flooded struct {
	critical     time.Duration // median
	served, shed int64         // sheddable requests
}

// flood sends critical requests in a flood of sheddable ones: sixteen clients that
// try again at once, each at most 200 times.
func (f *fleet) flood(t *testing.T, about string) flooded {
	t.Helper()
	var served, shed atomic.Int64
	var g sync.WaitGroup
	stop := make(chan struct{})
	for worker := range 16 {
		g.Go(func() {
			pause := time.NewTicker(50 * time.Millisecond)
			defer pause.Stop()
			for i := range 200 {
				select {
				case <-stop:
					return
				case <-pause.C:
				}
				_, h, err := f.ask([]rig.Message{rig.User(fmt.Sprintf("Tell me tale %d of %d, %s.", i, worker, about))}, 24, "x-millrace-priority", "sheddable")
				switch {
				case err == nil:
					served.Add(1)
				case shedWell(err, h):
					shed.Add(1)
				default:
					t.Errorf("a sheddable request: %v", err)
				}
			}
		})
	}
	f.await(t, "the flood is there", func() error {
		if served.Load() < 4 {
			return fmt.Errorf("%d sheddable requests served", served.Load())
		}
		return nil
	})
	median := f.criticals(t, about)
	close(stop)
	g.Wait()
	return flooded{median, served.Load(), shed.Load()}
}

// shedWell is whether a request was turned away as it should: 429, when to come
// back, and the API's JSON.
func shedWell(err error, h http.Header) bool {
	after, bad := strconv.Atoi(h.Get("retry-after"))
	return strings.HasPrefix(err.Error(), `status 429: {"error":{"message":`) && strings.Contains(err.Error(), `"code":"overloaded"`) &&
		bad == nil && after >= 1
}
