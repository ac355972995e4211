package translate

import (
	"testing"

	"millrace.dev/millrace/internal/config"
)

func TestBudgetsAreDividedAmongExtprocs(t *testing.T) {
	var f config.Flow
	f.Tenants.RequestsPerMinute, f.Tenants.TokensPerMinute = 10, 1000
	for extprocs, want := range map[int][2]uint64{0: {10, 1000}, 1: {10, 1000}, 3: {4, 334}, 16: {1, 63}} {
		if got := flow(f, extprocs); got.GetRequestsPerMinute() != want[0] || got.GetTokensPerMinute() != want[1] {
			t.Errorf("%d extprocs: %d requests and %d tokens each, want %v", extprocs, got.GetRequestsPerMinute(), got.GetTokensPerMinute(), want)
		}
	}
	f.Tenants.RequestsPerMinute = 0
	if got := flow(f, 3).GetRequestsPerMinute(); got != 0 {
		t.Errorf("no budget became %d", got)
	}
}
