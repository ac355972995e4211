package report

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/nodeagent/internal/gpu"
	"millrace.dev/millrace/nodeagent/internal/host"
	"millrace.dev/millrace/xds/fleetpb"
)

func TestWithoutADriverTheHostIsTheSource(t *testing.T) {
	machine, err := host.New("/proc", "/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	s := &Sensors{GPU: gpu.New("/nowhere/libnvidia-ml.so.1"), Host: machine, Capacity: 7}
	s.GPU.Read(time.Now())
	got := s.Telemetry(time.Now())
	if err := got.ValidateAll(); err != nil {
		t.Error(err)
	}
	if got.GetSource() != fleetpb.Telemetry_HOST || got.GetCapacity() != 7 || !strings.HasPrefix(got.GetError(), "nvml: ") {
		t.Errorf("telemetry %v; want the host's, and that the named library is not there", got)
	}
}

// TestTelemetryOfEightGPUsIsSmall bounds the part of a report that grows with
// the node. The engine's status comes on top, about 250 bytes of it.
func TestTelemetryOfEightGPUsIsSmall(t *testing.T) {
	tel := telemetry()
	tel.Source, tel.CpuUtilization, tel.MemoryUsedBytes = fleetpb.Telemetry_NVML, 0.123456, 17<<30
	for i := range 8 {
		tel.Gpus = append(tel.Gpus, &fleetpb.Gpu{
			Uuid: fmt.Sprintf("GPU-4a1b2c3d-0000-1111-2222-33334444555%d", i), Name: "NVIDIA H200", Utilization: 0.87,
			MemoryUsedBytes: 120 << 30, MemoryTotalBytes: 140 << 30, TemperatureCelsius: 71, PowerWatts: 655.2, ClockRatio: 0.97, ClocksEventReasons: 4,
		})
	}
	if n := proto.Size(tel); n > 1<<10 {
		t.Errorf("%d bytes, want at most 1024", n)
	}
}
