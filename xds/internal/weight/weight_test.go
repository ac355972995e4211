package weight

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace.dev/millrace/xds/fleetpb"
)

func TestOf(t *testing.T) {
	well := func(capacity float64) Replica { return Replica{Capacity: capacity, Health: 1, Freshness: 1} }
	tests := []struct {
		name     string
		replicas []Replica
		want     []uint32
	}{
		{name: "nobody", want: []uint32{}},
		{name: "one alone has all", replicas: []Replica{well(7)}, want: []uint32{1000}},
		{name: "half the capacity is half the weight", replicas: []Replica{well(100), well(50)}, want: []uint32{1000, 500}},
		{name: "nothing is known", replicas: []Replica{well(0), well(0)}, want: []uint32{1000, 1000}},
		{name: "unknown counts as the mean", replicas: []Replica{well(100), well(50), well(0)}, want: []uint32{1000, 500, 750}},
		{
			name:     "trouble of the largest changes no other",
			replicas: []Replica{{Capacity: 100, Health: 0.5, Freshness: 0.5}, well(50)},
			want:     []uint32{250, 500},
		},
		{name: "never below one", replicas: []Replica{well(1000), {Capacity: 1, Health: 0.1, Freshness: 0.1}}, want: []uint32{1000, 1}},
		{name: "who claims everything takes little from another", replicas: []Replica{well(1e9), well(50)}, want: []uint32{1000, 63}},
		{name: "nor from several", replicas: []Replica{well(60), well(1e9), well(50)}, want: []uint32{75, 1000, 63}},
		{name: "nor are those who claim nothing taken to be like that", replicas: []Replica{well(50), well(1e9), well(0), well(50)}, want: []uint32{63, 1000, 375, 63}},
		{name: "no number is no weight of 0", replicas: []Replica{well(math.NaN()), well(math.Inf(1)), {Capacity: 50, Health: math.NaN(), Freshness: 1}, well(50)}, want: []uint32{1000, 1000, 1, 1000}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Of(tt.replicas)); diff != "" {
				t.Errorf("Of() differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCapacity(t *testing.T) {
	tests := []struct {
		name   string
		stages []Stage
		decode float64
		want   float64
	}{
		{name: "nothing known"},
		{name: "measured", stages: []Stage{{Share: 1}}, decode: 42, want: 42},
		{name: "the operator knows better", stages: []Stage{{Share: 1, Capacity: 100}}, decode: 42, want: 100},
		{name: "equal nodes are worth one", stages: []Stage{{Share: 1, Capacity: 100}, {Share: 1, Capacity: 100}}, want: 100},
		{name: "a slow stage slows the whole", stages: []Stage{{Share: 1, Capacity: 100}, {Share: 1, Capacity: 50}}, want: 66.67},
		{name: "less so with fewer layers", stages: []Stage{{Share: 3, Capacity: 100}, {Share: 1, Capacity: 50}}, want: 80},
		{name: "the silent one is left out", stages: []Stage{{Share: 1, Capacity: 100}, {Share: 1}}, decode: 42, want: 100},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Capacity(tt.stages, tt.decode); math.Abs(got-tt.want) > 0.01 {
				t.Errorf("Capacity() = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestFreshness(t *testing.T) {
	tests := map[time.Duration]float64{
		-time.Second:     0.5,
		0:                0.5,
		4 * time.Second:  0.5,
		5 * time.Second:  0.25,
		10 * time.Second: 0.125,
		time.Hour:        0,
	}
	for d, want := range tests {
		if got := Freshness(d); math.Abs(got-want) > 1e-9 {
			t.Errorf("Freshness(%v) = %v, want %v", d, got, want)
		}
	}
}

func TestHealth(t *testing.T) {
	gpu := func(reasons uint64, ratio float64, lost bool) *fleetpb.Telemetry {
		return &fleetpb.Telemetry{Gpus: []*fleetpb.Gpu{
			{Uuid: "GPU-a", ClockRatio: 1},
			{Uuid: "GPU-b", ClocksEventReasons: reasons, ClockRatio: ratio, Lost: lost},
		}}
	}
	memory := func(used uint64) *fleetpb.Telemetry {
		return &fleetpb.Telemetry{MemoryUsedBytes: used, MemoryTotalBytes: 100}
	}
	tests := []struct {
		name   string
		t      *fleetpb.Telemetry
		want   float64
		reason string
	}{
		{name: "nothing known", t: nil, want: 1},
		{name: "low clocks of an idle GPU", t: gpu(0x1, 0.2, false), want: 1},
		{name: "thermal throttling", t: gpu(0x40, 0.6, false), want: 0.6, reason: "GPU-b"},
		{name: "throttled by nobody knows how much", t: gpu(0x8, 0, false), want: 0.5, reason: "0x8"},
		{name: "power cap", t: gpu(0x4, 0.9, false), want: 0.9, reason: "throttled"},
		{name: "power cap, clock unknown", t: gpu(0x4, 0, false), want: 1},
		{name: "off the bus", t: gpu(0x40, 0.6, true), want: 0, reason: "lost"},
		{name: "memory in use", t: memory(90), want: 1},
		{name: "memory tight", t: memory(97), want: 0.625, reason: "97 %"},
		{name: "memory full", t: memory(100), want: 0.25, reason: "full"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, reason := Health(tt.t)
			if math.Abs(got-tt.want) > 1e-9 || !strings.Contains(reason, tt.reason) || (reason == "") != (tt.reason == "") {
				t.Errorf("Health() = %v, %q, want %v, …%q…", got, reason, tt.want, tt.reason)
			}
		})
	}
}
