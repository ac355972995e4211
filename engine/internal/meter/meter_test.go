package meter

import (
	"testing"
	"time"

	"millrace.dev/millrace/engine/internal/backend"
)

// usage is what a request cost, of whose prompt ten tokens were cached.
func usage(prefilled, decoded uint64, took time.Duration) backend.Usage {
	return backend.Usage{
		Prompt: prefilled + 10, Cached: 10, Completion: decoded, Prefill: took, Decode: took, Prefilled: prefilled, Decoded: decoded,
	}
}

func TestMeter(t *testing.T) {
	var m Meter
	now := time.Unix(1000, 0)
	if m.Length() != firstLength || m.Speed() != (backend.Speed{}) {
		t.Error("something is known before anything was seen")
	}
	m.Calibrate(backend.Speed{Prefill: 50, Decode: 20})
	m.Add(usage(100, 10, time.Second), now)
	if s := m.Speed(); s.Prefill != 60 || s.Decode != 18 {
		t.Errorf("speed %+v, want 60 and 18", s)
	}
	m.Add(usage(1, 1, 1000*time.Second), now)
	if s := m.Speed(); s.Prefill != 60 || s.Decode != 18 {
		t.Errorf("speed %+v after a request too small to measure", s)
	}
	if got := m.Totals(); got != (Totals{Requests: 2, Prompt: 121, Cached: 20, Generated: 11}) {
		t.Errorf("totals %+v", got)
	}
	m.Calibrate(backend.Speed{Prefill: 1, Decode: 1})
	if m.Speed().Decode != 18 {
		t.Error("a probe overrides what requests have shown")
	}
	m.Forget()
	if m.Speed() != (backend.Speed{}) {
		t.Error("not forgotten")
	}
}

func TestRateIsOfEightSeconds(t *testing.T) {
	var r rate
	start := time.Unix(1000, 0)
	for i := range 16 {
		r.add(start.Add(time.Duration(i) * 250 * time.Millisecond)) // 4 a second for 4 s
	}
	tests := []struct {
		after time.Duration
		want  float64
	}{{3 * time.Second, 2}, {8 * time.Second, 1.5}, {10 * time.Second, 0.5}, {11 * time.Second, 0}, {time.Hour, 0}}
	for _, tt := range tests {
		if got := r.perSecond(start.Add(tt.after)); got != tt.want {
			t.Errorf("after %v: %v, want %v", tt.after, got, tt.want)
		}
	}
}

func TestAccountsOfTheLastSeconds(t *testing.T) {
	var m Meter
	at := func(s int) time.Time { return time.Unix(1000, 0).Add(time.Duration(s) * time.Second) }
	m.Account(1, 7, at(0))
	m.Account(2, 1<<40, at(2))
	if a := m.Accounts(at(3)); len(a) != 2 || a[0].Request != 1 || a[0].Generated != 7 || a[1].Generated != mostTokens {
		t.Errorf("%+v, want two, the second bounded", a)
	}
	if a := m.Accounts(at(5)); len(a) != 1 || a[0].Request != 2 {
		t.Errorf("after 5 s: %+v, want the second", a)
	}
	for i := range uint64(1000) {
		m.Account(10+i, 1, at(60))
	}
	if a := m.Accounts(at(60)); len(a) != mostAccounts || a[mostAccounts-1].Request != 1009 {
		t.Errorf("%d are kept, want the newest %d", len(a), mostAccounts)
	}
}
