package status

import (
	"fmt"
	"strings"
	"time"

	"millrace.dev/millrace/xds/fleetpb"
)

// Endpoint is an endpoint that somebody else runs.
type Endpoint struct {
	Address string `json:"address"`
	// Source is the object that names it, Type the kind of engine.
	Source string   `json:"source"`
	Type   string   `json:"type"`
	Models []string `json:"models"`
	// State is READY, SUSPECT or NOT_READY.
	State  string    `json:"state"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	// Weight at Envoy; 0 is not in use.
	Weight  uint32 `json:"weight"`
	Running uint32 `json:"running"`
	Waiting uint32 `json:"waiting"`
	// Decode and Prefill are tokens per second of one sequence, as measured.
	Decode  float64 `json:"decode_tokens_per_second"`
	Prefill float64 `json:"prefill_tokens_per_second"`
}

func endpoint(v *fleetpb.EndpointView) Endpoint {
	e := Endpoint{
		Address: v.GetAddress(), Source: v.GetSource(), Type: v.GetType(), Models: v.GetModels(),
		State: v.GetState().String(), Reason: v.GetReason(), Since: v.GetSince().AsTime(), Weight: v.GetWeight(),
		Running: v.GetLoad().GetRunning(), Waiting: v.GetLoad().GetWaiting(),
		Decode: v.GetSpeed().GetDecode(), Prefill: v.GetSpeed().GetPrefill(),
	}
	for _, fault := range []string{v.GetMetricsError(), v.GetEventsError()} {
		if e.Reason == "" {
			e.Reason = fault
		}
	}
	return e
}

// maxModels is how many models a row names.
const maxModels = 2

func endpoints(all []Endpoint, now time.Time) table {
	t := table{{"ENDPOINT", "MODEL", "SOURCE", "TYPE", "STATE", "FOR", "WEIGHT", "RUN/WAIT", "TOK/S", "REASON"}}
	for _, e := range all {
		models := strings.Join(e.Models[:min(len(e.Models), maxModels)], ",")
		if n := len(e.Models) - maxModels; n > 0 {
			models += fmt.Sprintf(",+%d", n)
		}
		t = append(t, []string{
			e.Address, dash(models), e.Source, e.Type, e.State, since(e.Since, now), fmt.Sprint(e.Weight),
			fmt.Sprintf("%d/%d", e.Running, e.Waiting), figure(e.Decode), e.Reason,
		})
	}
	return t
}
