package probe

import (
	"fmt"
	"testing"
	"time"

	"millrace.dev/millrace/internal/scrape"
)

func TestVital(t *testing.T) {
	unwell, gone, silent := error(scrape.StatusError(503)), fmt.Errorf("%w: refused", scrape.ErrGone), scrape.ErrSilent
	tests := []struct {
		name   string
		probes []error
		want   State
	}{
		{"answers", []error{nil}, Ready},
		{"loads its model", []error{unwell}, NotReady},
		{"is gone", []error{gone}, NotReady},
		{"is late once", []error{silent}, Suspect},
		{"is late twice", []error{silent, silent}, Suspect},
		{"hangs", []error{silent, silent, silent}, NotReady},
		{"is late now and then", []error{silent, nil, silent, silent}, Suspect},
		{"comes back", []error{silent, silent, silent, gone, nil}, Ready},
		{"was gone and is silent now", []error{gone, silent}, NotReady},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := vital{state: Ready}
			for _, err := range tt.probes {
				v.probed(err)
			}
			if v.state != tt.want {
				t.Errorf("state %d, want %d", v.state, tt.want)
			}
		})
	}
	if alive(scrape.StatusError(404)) != nil || alive(unwell) == nil || alive(gone) == nil {
		t.Error("who answers that it doesn't know the question lives; who is unwell does not")
	}
}

func TestPause(t *testing.T) {
	v := vital{state: Ready}
	d := time.Duration(0)
	for range 20 {
		d = v.pause(d, false, 3)
	}
	if d != probeMost || v.pause(d, true, 3) != probeFirst || v.pause(d, true, 1000) != time.Second {
		t.Errorf("pauses: idle %v, busy %v, busy among a thousand %v", d, v.pause(d, true, 3), v.pause(d, true, 1000))
	}
	v.probed(scrape.ErrSilent)
	first := v.pause(d, false, 3)
	for range 100 {
		v.probed(scrape.ErrSilent)
	}
	if first != probeLost || v.pause(d, false, 3) != probeLostMost {
		t.Errorf("pauses of a lost one: %v, then %v", first, v.pause(d, false, 3))
	}
}
