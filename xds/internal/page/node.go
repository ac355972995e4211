package page

import (
	"math"
	"time"

	"millrace.dev/millrace/xds/fleetpb"
)

// silentAfter is how long a node may be silent, at least, before the page says so: reports come
// twice a second.
const silentAfter = 2 * time.Second

// reasons of NVML (nvml.h, nvmlClocksEventReason*) that slow a GPU down, in words; idle clocks
// and settings of applications are none.
var reasons = []struct {
	mask uint64
	text string
}{
	{0x04, "power cap"},
	{0x08, "hardware slowdown"},
	{0x20, "software thermal slowdown"},
	{0x40, "hardware thermal slowdown"},
	{0x80, "power brake"},
}

// node is a node as the page shows it; at is when the view was made.
func node(v *fleetpb.NodeView, at time.Time) Node {
	t, e := v.GetReport().GetTelemetry(), v.GetReport().GetEngine()
	a := e.GetAssignment()
	n := Node{
		Name: v.GetNode(), Zone: v.GetReport().GetZone(), State: state(v.GetState()), Reason: v.GetReason(), Since: v.GetSince().AsTime(),
		Replica: a.GetReplica(), Stages: len(a.GetStages()), CPU: math.Round(100*t.GetCpuUtilization()) / 100, CPUs: t.GetCpus(),
		MemoryUsed: coarse(t.GetMemoryUsedBytes(), 256<<20), MemoryTotal: t.GetMemoryTotalBytes(), GPUs: []GPU{}, Unread: t.GetError(),
	}
	if n.Replica != "" {
		n.Stage = int(a.GetStage()) + 1
	}
	if last := v.GetLastReport(); set(last) && at.Sub(last.AsTime()) > max(silentAfter, v.GetReport().GetTimeout().AsDuration()) {
		n.Silent = last.AsTime()
	}
	if n.Reason == "" && n.State == NotReady {
		n.Reason = v.GetReport().GetEngineError()
	}
	if n.Replica == "" && e != nil && n.Silent.IsZero() && n.State == NotReady && v.GetDrain() == nil {
		n.State = Free
	}
	n.State = drained(v, n.State)
	if d := v.GetDrain(); d != nil {
		n.Reason = d.GetText()
	}
	for _, g := range t.GetGpus() {
		n.GPUs = append(n.GPUs, gpu(g))
	}
	return n
}

// drained is the state of a node, which may be emptied.
func drained(v *fleetpb.NodeView, s State) State {
	switch d := v.GetDrain(); {
	case d == nil:
		return s
	case d.GetDone():
		return Drained
	}
	return Draining
}

func state(s fleetpb.EndpointState_State) State {
	switch s {
	case fleetpb.EndpointState_READY:
		return Ready
	case fleetpb.EndpointState_SUSPECT:
		return Suspect
	}
	return NotReady
}

func gpu(g *fleetpb.Gpu) GPU {
	one := GPU{
		Name: g.GetName(), Utilization: math.Round(100*g.GetUtilization()) / 100, Clock: math.Round(100*g.GetClockRatio()) / 100,
		MemoryUsed: coarse(g.GetMemoryUsedBytes(), 64<<20), MemoryTotal: g.GetMemoryTotalBytes(),
		Celsius: math.Round(g.GetTemperatureCelsius()), Watts: math.Round(g.GetPowerWatts()), Slowed: []string{}, Lost: g.GetLost(), Missing: g.GetMissing(),
	}
	if one.Missing == nil {
		one.Missing = []string{}
	}
	for _, r := range reasons {
		// At its power cap alone a busy GPU is as it should be.
		if g.GetClocksEventReasons()&r.mask != 0 && (r.mask != 0x04 || one.Clock > 0 && one.Clock < 0.9) {
			one.Slowed = append(one.Slowed, r.text)
		}
	}
	return one
}

// coarse rounds to steps.
func coarse(v, step uint64) uint64 { return (v + step/2) / step * step }
