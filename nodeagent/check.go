package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"millrace.dev/millrace/internal/obs"
)

// check prints what would be read here.
func (o *options) check(w io.Writer) error {
	g := o.sensors.GPU.Read(time.Now())
	t := o.sensors.Telemetry(time.Now())
	fmt.Fprintf(w, "node %s: readings come from %s\n", o.report.Node, t.GetSource())
	fmt.Fprintf(w, "host: %d CPUs, %d of %d MiB of memory used\n", t.GetCpus(), t.GetMemoryUsedBytes()>>20, t.GetMemoryTotalBytes()>>20)
	switch {
	case g.Present:
		fmt.Fprintf(w, "driver: %s, %d GPUs, read in %s\n", orNone(g.Driver), len(g.GPUs), g.Took.Round(time.Microsecond))
	default:
		fmt.Fprintln(w, "driver: none")
	}
	for _, d := range g.GPUs {
		fmt.Fprintf(w, "GPU %s: %s, %.0f %% used, %d of %d MiB, %.0f °C, %.0f W, missing: %s\n", d.GetUuid(), orNone(d.GetName()),
			100*d.GetUtilization(), d.GetMemoryUsedBytes()>>20, d.GetMemoryTotalBytes()>>20, d.GetTemperatureCelsius(), d.GetPowerWatts(),
			orNone(strings.Join(d.GetMissing(), ", ")))
	}
	if t.GetError() != "" {
		return &obs.Hint{Err: errors.New(t.GetError()), Next: "check the driver with nvidia-smi, or give its library with -nvml"}
	}
	return nil
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
