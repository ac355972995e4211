package fleet

import (
	"testing"
	"time"

	"millrace.dev/millrace/internal/config"
)

// TestKeepAlive says it as the contract has it: nothing is for ever, and the least is a second.
func TestKeepAlive(t *testing.T) {
	for said, want := range map[time.Duration]time.Duration{0: 0, time.Millisecond: time.Second, 10 * time.Minute: 10 * time.Minute} {
		b := backend(config.ModelSpec{KeepAlive: config.Duration{Duration: said}}, config.Limits{})
		if got := b.GetKeepAlive().AsDuration(); got != want || (b.GetKeepAlive() == nil) != (want == 0) {
			t.Errorf("keepAlive %s is sent as %s, want %s", said, got, want)
		}
	}
}
