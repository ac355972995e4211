package stream

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace.dev/millrace/extproc/internal/pick"
)

// TestBodiesInFlightAreBounded begins requests until there is no room, and ends them in
// each way that gives it back.
func TestBodiesInFlightAreBounded(t *testing.T) {
	const most = 8 << 20
	sized := func(n int64) func(*RequestHead) { return func(h *RequestHead) { h.Length = n } }
	f := newFleet(3, func(t *pick.Table) { t.Policy.MaxHeld, t.Policy.MaxBody = most, most })
	var all []*Exchange
	begin := func(size int64, want bool) *Exchange {
		t.Helper()
		x := f.core.Begin()
		out := run(x, post(sized(size)))
		refused := len(out) == 1 && out[0].Error != nil
		if refused == want {
			t.Fatalf("a body of %d bytes beside %d: got %+v", size, f.core.held.bytes.Load(), out)
		}
		if refused && (out[0].Error.Status != 503 || out[0].Error.RetryAfter < 1 || out[0].Error.Code != "overloaded") {
			t.Errorf("refused with %+v", out[0].Error)
		}
		all = append(all, x)
		return x
	}
	first := begin(most, true) // alone it always has room
	begin(1, false)
	first.End(epoch)
	for range 6 {
		begin(1<<20, true)
	}
	begin(1<<20, false) // the rest is for light ones
	for range 8 {
		begin(light, true)
	}
	begin(1, false)
	begin(-1, false)
	x := begin(0, true)
	run(x, Event{Kind: RequestBody, End: true, At: epoch})
	if got := f.core.held.bytes.Load(); got != most {
		t.Fatalf("%d bytes are held, want %d", got, most)
	}
	// Each way that a body is given up.
	long := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("a", 9000) + `"}]}`
	run(all[2], bodyOf(long)) // it is less than was said
	if got := f.core.held.bytes.Load(); got != most-1<<20+int64(len(long)) {
		t.Errorf("%d bytes are held after a body of %d came", got, len(long))
	}
	run(all[2], Event{Kind: ResponseHeaders, At: epoch, Answer: AnswerHead{Answer: pick.Answer{Status: 200}}})
	run(all[3], bodyOf(`{`)) // refused
	for _, x := range all {
		f.core.Finish(x)
	}
	if got := f.core.held.bytes.Load(); got != 0 {
		t.Errorf("%d bytes are held for nothing", got)
	}
	if got := testutil.ToFloat64(f.core.metrics.errors[503]); got != 4 {
		t.Errorf("%v were refused, want 4", got)
	}
}
