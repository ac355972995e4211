package flow

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestTenantsAreBounded fills the bound: 100,000 names that come once have no series, and those
// who use most keep theirs.
func TestTenantsAreBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := New(reg)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	end := func(id int, name, outcome string) {
		now = now.Add(time.Millisecond)
		c.Ended(&Ended{Tenant: uint64(id) + 1, Name: name, Outcome: outcome, Tokens: 100, Took: time.Second, Now: now})
	}
	for n := range 100_000 {
		end(1000+n, fmt.Sprint("once-", n), "ok")
		if n%100 == 0 {
			for heavy := range 10 {
				end(heavy, fmt.Sprint("heavy-", heavy), "ok")
			}
		}
	}
	for range 50 {
		end(500, "hurt", "shed")
	}
	got, names := map[string]float64{}, map[string]bool{}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "millrace_extproc_tenant_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			var key []string
			for _, l := range m.GetLabel() {
				key = append(key, l.GetValue())
				if l.GetName() == "tenant" {
					names[l.GetValue()] = true
				}
			}
			got[strings.Join(key, " ")] = m.GetCounter().GetValue()
		}
	}
	if len(names) > mostShown+2 {
		t.Errorf("%d names, want %d tenants, other and none", len(names), mostShown)
	}
	if n := len(c.tenants.users); n > mostTracked {
		t.Errorf("%d are tracked", n)
	}
	for heavy := range 10 {
		if n := got["ok heavy-"+fmt.Sprint(heavy)]; n < 900 { // Gather sorts labels: outcome, tenant
			t.Errorf("heavy-%d has %g of 1000 requests", heavy, n)
		}
	}
	if n := got["shed hurt"]; n == 0 {
		t.Error("who is refused is not shown")
	}
	if n := got["ok other"]; n < 95_000 {
		t.Errorf("others have %g requests", n)
	}
}

// TestTenantsNames are different from the labels that stand for several, and from each other.
func TestTenantsNames(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := New(reg)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i, name := range []string{"a", "a", "other", "none", ""} {
		c.Ended(&Ended{Tenant: uint64(i) + 1, Name: name, Outcome: "ok", Now: now})
	}
	c.Ended(&Ended{Outcome: "ok", Now: now})
	want := `# HELP millrace_extproc_tenant_tokens_total Tokens of prompts and answers, as far as they are known, of the tenants that use most; other: of all others.
# TYPE millrace_extproc_tenant_tokens_total counter
millrace_extproc_tenant_tokens_total{tenant="a"} 0
millrace_extproc_tenant_tokens_total{tenant="none"} 0
millrace_extproc_tenant_tokens_total{tenant="other"} 0
millrace_extproc_tenant_tokens_total{tenant="tenant "} 0
millrace_extproc_tenant_tokens_total{tenant="tenant a"} 0
millrace_extproc_tenant_tokens_total{tenant="tenant none"} 0
millrace_extproc_tenant_tokens_total{tenant="tenant other"} 0
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "millrace_extproc_tenant_tokens_total"); err != nil {
		t.Error(err)
	}
}

// TestTenantsUseFades gives the place of who has left to who comes.
func TestTenantsUseFades(t *testing.T) {
	c := New(prometheus.NewRegistry())
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for range 100 {
		for id := range mostShown {
			c.Ended(&Ended{Tenant: uint64(id) + 1, Name: fmt.Sprint(id), Outcome: "ok", Now: now})
		}
	}
	now = now.Add(2 * time.Hour)
	c.Ended(&Ended{Tenant: 99, Name: "new", Outcome: "ok", Now: now})
	if u := c.tenants.shown[99]; u == nil || len(c.tenants.shown) != mostShown {
		t.Errorf("the one that comes is not shown; %d are", len(c.tenants.shown))
	}
}

// TestTenantsBeginAtZero has a tenant that is shown have all outcomes: the first failure is an
// increase then.
func TestTenantsBeginAtZero(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := New(reg)
	c.Ended(&Ended{Tenant: 1, Name: "a", Outcome: "ok", Now: time.Unix(1e9, 0)})
	if n, err := testutil.GatherAndCount(reg, "millrace_extproc_tenant_requests_total"); err != nil || n != 3*len(Outcomes) {
		t.Errorf("%d series, error %v; want each outcome of the tenant's, of others and of none", n, err)
	}
}
