package gpu

import (
	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"millrace.dev/millrace/xds/fleetpb"
)

// figure is something that is read of a GPU. Its name is what stands in
// Gpu.missing if it can't be.
type figure struct {
	name string
	// ways to read it, the best first; the first whose symbols the library has
	// is used.
	ways []way
}

type way struct {
	symbols []string // that it calls
	read    func(*device, *fleetpb.Gpu) nvml.Return
}

var figures = []figure{
	{"utilization", []way{{[]string{"nvmlDeviceGetUtilizationRates"}, readUtilization}}},
	{"memory", []way{
		// The second version separates what the driver keeps for itself from what is used.
		{[]string{"nvmlDeviceGetMemoryInfo_v2"}, readMemory2},
		{[]string{"nvmlDeviceGetMemoryInfo"}, readMemory1},
	}},
	{"temperature", []way{{[]string{"nvmlDeviceGetTemperature"}, readTemperature}}},
	{"power", []way{{[]string{"nvmlDeviceGetPowerUsage"}, readPower}}},
	{"clock", []way{{[]string{"nvmlDeviceGetClockInfo", "nvmlDeviceGetMaxClockInfo"}, readClock}}},
	{"clocks_event_reasons", []way{
		{[]string{"nvmlDeviceGetCurrentClocksEventReasons"}, readEventReasons},
		{[]string{"nvmlDeviceGetCurrentClocksThrottleReasons"}, readThrottleReasons}, // the same before driver 535
	}},
	{"ecc_uncorrected", []way{{[]string{"nvmlDeviceGetTotalEccErrors"}, readECC}}},
}

// figureNames returns the names of all figures.
func figureNames() []string {
	names := make([]string, len(figures))
	for i, f := range figures {
		names[i] = f.name
	}
	return names
}

func readUtilization(d *device, out *fleetpb.Gpu) nvml.Return {
	rates, ret := d.GetUtilizationRates()
	if ret == nvml.SUCCESS {
		out.Utilization = min(float64(rates.Gpu)/100, 1)
	}
	return ret
}

func readMemory2(d *device, out *fleetpb.Gpu) nvml.Return {
	m, ret := d.GetMemoryInfo_v2()
	if ret != nvml.SUCCESS {
		return ret
	}
	out.MemoryUsedBytes, out.MemoryTotalBytes = m.Used, m.Total
	return ret
}

func readMemory1(d *device, out *fleetpb.Gpu) nvml.Return {
	m, ret := d.GetMemoryInfo()
	if ret != nvml.SUCCESS {
		return ret
	}
	out.MemoryUsedBytes, out.MemoryTotalBytes = m.Used, m.Total
	return ret
}

func readTemperature(d *device, out *fleetpb.Gpu) nvml.Return {
	celsius, ret := d.GetTemperature(nvml.TEMPERATURE_GPU)
	if ret == nvml.SUCCESS {
		out.TemperatureCelsius = min(float64(celsius), 1000)
	}
	return ret
}

func readPower(d *device, out *fleetpb.Gpu) nvml.Return {
	milliwatts, ret := d.GetPowerUsage()
	if ret == nvml.SUCCESS {
		out.PowerWatts = min(float64(milliwatts)/1000, 100_000)
	}
	return ret
}

func readClock(d *device, out *fleetpb.Gpu) nvml.Return {
	megahertz, ret := d.GetClockInfo(nvml.CLOCK_SM)
	switch {
	case ret != nvml.SUCCESS:
		return ret
	case d.maxClock == 0:
		return nvml.ERROR_NOT_SUPPORTED
	}
	out.ClockRatio = min(float64(megahertz)/float64(d.maxClock), 1)
	return ret
}

func readEventReasons(d *device, out *fleetpb.Gpu) nvml.Return {
	reasons, ret := d.GetCurrentClocksEventReasons()
	if ret == nvml.SUCCESS {
		out.ClocksEventReasons = reasons
	}
	return ret
}

func readThrottleReasons(d *device, out *fleetpb.Gpu) nvml.Return {
	reasons, ret := d.GetCurrentClocksThrottleReasons()
	if ret == nvml.SUCCESS {
		out.ClocksEventReasons = reasons
	}
	return ret
}

// readECC reads the errors since the driver was loaded: those of the GPU's life
// say nothing of its state now.
func readECC(d *device, out *fleetpb.Gpu) nvml.Return {
	count, ret := d.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC)
	if ret == nvml.SUCCESS {
		out.EccUncorrected = count
	}
	return ret
}
