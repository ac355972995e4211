package report

import (
	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/xds/fleetpb"
)

// metrics counts what the reporter does. What is true now is read from its view
// when somebody asks.
type metrics struct {
	sent        prometheus.Counter
	invalid     prometheus.Counter
	connects    prometheus.Counter
	directives  prometheus.Counter
	statuses    prometheus.Counter
	assignments *prometheus.CounterVec // by result: taken, refused
}

func newMetrics(reg prometheus.Registerer, now func() *view) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_nodeagent_" + name, Help: help})
	}
	m := &metrics{
		sent:       counter("reports_sent_total", "Reports sent to xds."),
		invalid:    counter("reports_invalid_total", "Reports not sent because they would break the contract."),
		connects:   counter("xds_connects_total", "Streams to xds begun."),
		directives: counter("directives_total", "Directives received from xds."),
		statuses:   counter("engine_statuses_total", "Statuses received from the engine."),
		assignments: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_nodeagent_assignments_total", Help: "Assignments handed to the engine, by result.",
		}, []string{"result"}),
	}
	m.assignments.WithLabelValues("taken")
	m.assignments.WithLabelValues("refused")
	reg.MustRegister(m.sent, m.invalid, m.connects, m.directives, m.statuses, m.assignments, gauges{now})
	return m
}

// count counts an event.
func (m *metrics) count(ev Event) {
	switch ev := ev.(type) {
	case Up:
		m.connects.Inc()
	case Directed:
		m.directives.Inc()
	case Received:
		m.statuses.Inc()
	case Assigned:
		result := "taken"
		if ev.Err != nil {
			result = "refused"
		}
		m.assignments.WithLabelValues(result).Inc()
	}
}

// gauges shows the latest view. The GPU's mean what those of NVIDIA's DCGM
// exporter mean, in base units.
type gauges struct{ now func() *view }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("millrace_nodeagent_"+name, help, labels, nil)
}

var (
	xdsConnected = desc("xds_connected", "Whether the stream to xds is up.")
	engineState  = desc("engine_state", "1 for the engine's state, 0 for all others; none is 1 while it does not answer.", "state")
	sourceUp     = desc("source_up", "Whether a source of readings (NVML, host) was read without faults.", "source")
	cpuUsed      = desc("cpu_utilization_ratio", "Share of the host's CPU time in use.")
	cpus         = desc("cpus", "CPUs that the node may use.")
	memoryUsed   = desc("memory_used_bytes", "Memory of the host in use.")
	memoryTotal  = desc("memory_total_bytes", "Memory that the node may use.")
)

// gpuGauges are the figures of one GPU. The name of what is missing keeps a
// gauge from showing a 0 that nobody read.
var gpuGauges = []struct {
	missing string
	desc    *prometheus.Desc
	value   func(*fleetpb.Gpu) float64
}{
	{"utilization", gpuDesc("utilization_ratio", "Share of time in which a kernel ran."), (*fleetpb.Gpu).GetUtilization},
	{"memory", gpuDesc("memory_used_bytes", "Framebuffer memory in use."), func(g *fleetpb.Gpu) float64 { return float64(g.GetMemoryUsedBytes()) }},
	{"memory", gpuDesc("memory_total_bytes", "Framebuffer memory in all."), func(g *fleetpb.Gpu) float64 { return float64(g.GetMemoryTotalBytes()) }},
	{"temperature", gpuDesc("temperature_celsius", "Temperature of the GPU."), (*fleetpb.Gpu).GetTemperatureCelsius},
	{"power", gpuDesc("power_watts", "Power drawn now."), (*fleetpb.Gpu).GetPowerWatts},
	{"clock", gpuDesc("sm_clock_ratio", "Present SM clock as a share of its maximum."), (*fleetpb.Gpu).GetClockRatio},
	{"clocks_event_reasons", gpuDesc("clocks_event_reasons", "NVML's bit mask of why clocks are held back."), func(g *fleetpb.Gpu) float64 { return float64(g.GetClocksEventReasons()) }},
	{"ecc_uncorrected", gpuDesc("ecc_uncorrected_errors", "Uncorrected ECC errors since the driver was loaded."), func(g *fleetpb.Gpu) float64 { return float64(g.GetEccUncorrected()) }},
	{"", gpuDesc("lost", "Whether the driver reports the GPU as lost."), func(g *fleetpb.Gpu) float64 { return obs.Number(g.GetLost()) }},
}

func gpuDesc(name, help string) *prometheus.Desc { return desc("gpu_"+name, help, "uuid", "name") }

// Describe implements prometheus.Collector.
func (g gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{xdsConnected, engineState, sourceUp, cpuUsed, cpus, memoryUsed, memoryTotal} {
		ch <- d
	}
	for _, f := range gpuGauges {
		ch <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (g gauges) Collect(ch chan<- prometheus.Metric) {
	v := g.now()
	show := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	show(xdsConnected, obs.Number(v.up))
	for n, name := range enginepb.State_name {
		if n != 0 {
			show(engineState, obs.Number(v.engine.state == enginepb.State(n)), name)
		}
	}
	t := v.telemetry
	show(sourceUp, obs.Number(t.GetSource() == fleetpb.Telemetry_NVML && t.GetError() == ""), "nvml")
	show(sourceUp, obs.Number(t.GetMemoryTotalBytes() > 0), "host")
	show(cpuUsed, t.GetCpuUtilization())
	show(cpus, float64(t.GetCpus()))
	show(memoryUsed, float64(t.GetMemoryUsedBytes()))
	show(memoryTotal, float64(t.GetMemoryTotalBytes()))
	for _, gpu := range t.GetGpus() {
		collectGPU(gpu, show)
	}
}

func collectGPU(gpu *fleetpb.Gpu, show func(*prometheus.Desc, float64, ...string)) {
	missing := map[string]bool{}
	for _, name := range gpu.GetMissing() {
		missing[name] = true
	}
	for _, f := range gpuGauges {
		if !missing[f.missing] {
			show(f.desc, f.value(gpu), gpu.GetUuid(), gpu.GetName())
		}
	}
}
