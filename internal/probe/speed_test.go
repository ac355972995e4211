package probe

import (
	"math"
	"testing"

	"millrace.dev/millrace/internal/scrape"
)

// TestSpeedFollows has an engine be slow and fast again, and counts the samples until its speed is
// known within a quarter: one that was slow gets few requests, each of which may be a sample.
func TestSpeedFollows(t *testing.T) {
	const tokens = 16
	sample := func(speed float64) *scrape.Since {
		return &scrape.Since{Output: tokens, DecodeMs: 1000 * tokens / speed, Prompt: 40, PrefillMs: 100}
	}
	for _, tt := range []struct {
		name     string
		from, to float64 // tokens per second
		most     int     // samples
	}{
		{"a third of its speed", 90, 30, 3},
		{"fast again", 30, 90, 3},
		{"a little slower", 90, 60, 4},
		{"a little faster", 60, 90, 4},
		{"from a number that was never true", 1e6, 50, 3},
		{"to one that is not", 50, 1e6, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s speeds
			add := func(d *scrape.Since) {
				s.follow(d, 1)
				s.drifted()
			}
			for range 100 {
				add(sample(tt.from))
			}
			n := 0
			for ; n < 100 && math.Abs(s.published.Decode-tt.to) > tt.to/4; n++ {
				add(sample(tt.to))
			}
			if n > tt.most {
				t.Errorf("known after %d samples; want %d at most", n, tt.most)
			}
		})
	}
}

// TestSpeedIsSteady has samples that vary around a speed, and some that are far off: the speed
// stays.
func TestSpeedIsSteady(t *testing.T) {
	var s speeds
	for i := range 400 {
		speed := 50.0
		switch i % 5 {
		case 0, 1:
			speed = 42
		case 2, 3:
			speed = 58
		case 4:
			speed = []float64{15, 200}[i%2]
		}
		d := &scrape.Since{Output: 16, DecodeMs: 16000 / speed}
		s.follow(d, 1)
		s.drifted()
		if i > 20 && (s.published.Decode < 25 || s.published.Decode > 80) {
			t.Fatalf("sample %d: published %.0f", i, s.published.Decode)
		}
	}
}
