package pick

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace.dev/millrace/internal/wire"
)

func TestWhatEndedIsCountedByModelPriorityAndEndpoint(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := model()
	m.Endpoints = append(m.Endpoints, endpoint(0), endpoint(1))
	p := New(reg)
	p.Publish(&Table{Policy: new(Policy), Models: map[string]*Model{m.Name: m}, Default: m})
	p.End(&Ended{Model: m, Priority: wire.Critical, Outcome: OutcomeOf(200), Endpoint: m.Endpoints[0], Whole: 3 * time.Second, First: time.Second, Expected: 7})
	p.End(&Ended{Model: m, Priority: "of a client's own", Outcome: OutcomeOf(502), Endpoint: m.Endpoints[1], Whole: time.Second})
	p.End(&Ended{Model: m, Priority: wire.Sheddable, Outcome: OutcomeOf(0)})
	m.Endpoints[0].served.answered(&Usage{Prompt: 30, Cached: 10, Completion: 5, DecodeMs: 500})
	a, b := m.Endpoints[0].Address, m.Endpoints[1].Address
	want := fmt.Sprintf(`
# HELP millrace_extproc_endpoint_decode_seconds_total Time that output tokens took the endpoint's engine, summed over answers: output tokens divided by it are the speed that a client sees.
# TYPE millrace_extproc_endpoint_decode_seconds_total counter
millrace_extproc_endpoint_decode_seconds_total{endpoint=%[1]q,replica=%[3]q} 0.5
millrace_extproc_endpoint_decode_seconds_total{endpoint=%[2]q,replica=%[4]q} 0
# HELP millrace_extproc_endpoint_request_seconds Time of good answers of the endpoint, from the request's arrival to the answer's end: how many, and their sum.
# TYPE millrace_extproc_endpoint_request_seconds summary
millrace_extproc_endpoint_request_seconds_sum{endpoint=%[1]q,replica=%[3]q} 3
millrace_extproc_endpoint_request_seconds_count{endpoint=%[1]q,replica=%[3]q} 1
millrace_extproc_endpoint_request_seconds_sum{endpoint=%[2]q,replica=%[4]q} 0
millrace_extproc_endpoint_request_seconds_count{endpoint=%[2]q,replica=%[4]q} 0
# HELP millrace_extproc_expected_cached_tokens_total Prompt tokens of answered requests that were expected to be in the cache of the engine that answered.
# TYPE millrace_extproc_expected_cached_tokens_total counter
millrace_extproc_expected_cached_tokens_total{model="m"} 7
`, a, b, m.Endpoints[0].Replica, m.Endpoints[1].Replica)
	err := testutil.GatherAndCompare(reg, strings.NewReader(want), "millrace_extproc_endpoint_decode_seconds_total",
		"millrace_extproc_endpoint_request_seconds", "millrace_extproc_expected_cached_tokens_total")
	if err != nil {
		t.Error(err)
	}
	for labels, want := range map[[2]string]float64{
		{wire.Critical, "ok"}: 1, {wire.Standard, "failed"}: 1, {wire.Sheddable, "gone"}: 1, {wire.Standard, "ok"}: 0,
	} {
		if got := testutil.ToFloat64(p.metrics.models.requests.WithLabelValues("m", labels[0], labels[1])); got != want {
			t.Errorf("%v: %v requests, want %v", labels, got, want)
		}
	}
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("GatherAndLint() = %v, %v", problems, err)
	}
}

// TestLabelsAreBounded serves more models and endpoints than have series of their own,
// and then others: what was counted of all is still all, and what is gone has no series.
func TestLabelsAreBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	p := New(reg)
	table := func(prefix string, models int) *Table {
		t := &Table{Policy: new(Policy), Models: map[string]*Model{}}
		for i := range models {
			m := model()
			m.Name = fmt.Sprintf("%s%d", prefix, i)
			m.Endpoints = nil
			for j := range 5 {
				m.Endpoints = append(m.Endpoints, endpoint(5*i+j))
			}
			t.Models[m.Name] = m
		}
		return t
	}
	for round, prefix := range []string{"a", "b"} {
		all := table(prefix, mostModels+20)
		p.Publish(all)
		for _, m := range all.Models {
			p.End(&Ended{Model: m, Outcome: OK, Endpoint: m.Endpoints[0], Whole: time.Second})
		}
		series, sum, stale := 0, 0.0, 0
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		endpoints, answers := 0, uint64(0)
		for _, f := range families {
			for _, m := range f.GetMetric() {
				switch f.GetName() {
				case "millrace_extproc_output_tokens_total":
					series++
				case "millrace_extproc_requests_total":
					sum += m.GetCounter().GetValue()
					for _, l := range m.GetLabel() {
						if l.GetName() == "model" && l.GetValue() != others && !strings.HasPrefix(l.GetValue(), prefix) {
							stale++
						}
					}
				case "millrace_extproc_endpoint_request_seconds":
					endpoints++
					answers += m.GetSummary().GetSampleCount()
				}
			}
		}
		if series != mostModels+1 || stale > 0 {
			t.Errorf("round %d: %d models have series, want %d; %d are of models that are gone", round, series, mostModels+1, stale)
		}
		// Those of the first round that had no series of their own stay counted as other.
		if want := float64(mostModels + 20 + 20*round); sum != want {
			t.Errorf("round %d: %v requests are counted, want %v", round, sum, want)
		}
		if endpoints != mostLabelled+1 || answers != mostModels+20 {
			t.Errorf("round %d: %d endpoints have series, want %d; they have answered %d times, want %d", round, endpoints, mostLabelled+1, answers, mostModels+20)
		}
	}
	p.Publish(table("c", 1))
	if got := testutil.CollectAndCount(p.metrics.models.output); got != 2 { // c0, and other
		t.Errorf("%d series of output tokens after all others are gone, want 2", got)
	}
}
