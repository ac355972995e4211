package report

import (
	"strings"
	"time"

	"millrace.dev/millrace/nodeagent/internal/gpu"
	"millrace.dev/millrace/nodeagent/internal/host"
	"millrace.dev/millrace/xds/fleetpb"
)

// Sensors reads the node: its GPUs where there is a driver, and its host.
type Sensors struct {
	// GPU is read by its own goroutine, so that a driver that hangs delays no
	// heartbeat.
	GPU *gpu.Reader
	// Host is read with every heartbeat.
	Host *host.Reader
	// Capacity is the operator's figure for the node, in tokens per second; 0:
	// as measured by the engine.
	Capacity float64
	// Memory is what models may take here as the operator says, in bytes; 0: they may take
	// nine tenths of what there is.
	Memory uint64
}

// Telemetry returns what is known of the node now.
func (s *Sensors) Telemetry(now time.Time) *fleetpb.Telemetry {
	h, err := s.Host.Read(now)
	g := s.GPU.Latest(now)
	t := &fleetpb.Telemetry{
		Source:           fleetpb.Telemetry_HOST,
		Capacity:         s.Capacity,
		CpuUtilization:   h.Utilization,
		Cpus:             uint32(h.CPUs),
		MemoryUsedBytes:  h.MemoryUsed,
		MemoryTotalBytes: h.MemoryTotal,
		Gpus:             g.GPUs,
		Error:            clip(problems(g.Problem, err)),
		ModelMemoryBytes: s.Memory,
	}
	if g.Present {
		t.Source = fleetpb.Telemetry_NVML
	}
	return t
}

func problems(driver string, host error) string {
	var list []string
	if host != nil {
		list = append(list, "host: "+host.Error())
	}
	if driver != "" {
		list = append(list, driver)
	}
	return strings.ReplaceAll(strings.Join(list, "; "), "\n", "; ")
}
