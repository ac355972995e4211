package openai

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestOverLimit(t *testing.T) {
	got := OverLimit("tokens", 6100*time.Millisecond,
		Limit{Of: "requests"}, Limit{Of: "tokens", Most: 600, Remaining: 20, Reset: 58 * time.Second})
	want := &Error{
		Status: 429, Type: "tokens", Code: "rate_limit_exceeded", RetryAfter: 7,
		Message: "rate limit reached: 600 tokens per minute, 20 remaining: try again in 7s",
		Headers: []Header{{"x-ratelimit-limit-tokens", "600"}, {"x-ratelimit-remaining-tokens", "20"}, {"x-ratelimit-reset-tokens", "58s"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("OverLimit() (-want +got):\n%s", diff)
	}
	if e := Overloaded("m", "sheddable", 0); e.Status != 429 || e.RetryAfter != 1 {
		t.Errorf("Overloaded() = %+v, want 429 and a second", e)
	}
}
