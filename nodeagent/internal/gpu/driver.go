package gpu

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/dl"
	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/xds/fleetpb"
)

// libraries are where the driver's library is, in this order: by the name that the
// system's linker finds it by, and where device plugins and the GPU operator mount it
// into containers that have no linker's cache of it.
var libraries = []string{
	"libnvidia-ml.so.1",
	"/usr/local/nvidia/lib64/libnvidia-ml.so.1",
	"/run/nvidia/driver/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
	"/run/nvidia/driver/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.1",
}

// maxGPUs is how many GPUs one report holds.
const maxGPUs = 64

// maxText is how long a name in a report may be, in bytes.
const maxText = 96

// errNoLibrary is returned when there is no driver's library at all.
var errNoLibrary = errors.New("no NVML library")

// problem says what is wrong with the driver, or nothing if there simply is
// none and nobody named one.
func problem(path string, err error) string {
	if path == "" && errors.Is(err, errNoLibrary) {
		return ""
	}
	return "nvml: " + err.Error()
}

// driver is an initialised NVML library.
type driver struct {
	api     nvml.Interface
	version string
	figures []figure // those that the library has
	missing []string // names of the figures that it lacks
	devices []*device
	// failing is whether the last reading met a GPU that only a new
	// initialisation can bring back.
	failing bool
}

// device is one GPU.
type device struct {
	nvml.Device        // nil: it was lost already when the driver was initialised
	uuid        string // never empty
	name        string
	maxClock    uint32 // SM clock, in MHz; 0: unknown
}

// required are the symbols without which nothing can be read; one name of each
// entry must be there.
var required = [][]string{
	{"nvmlInit_v2", "nvmlInit"},
	{"nvmlShutdown"},
	{"nvmlErrorString"},
	{"nvmlDeviceGetCount_v2", "nvmlDeviceGetCount"},
	{"nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByIndex"},
	{"nvmlDeviceGetUUID"},
}

// symbols are those of a loaded library. A call of one that is not there kills
// the process, so each is looked up before.
type symbols struct{ lib *dl.DynamicLibrary }

func (s symbols) has(names ...string) bool {
	for _, name := range names {
		if s.lib.Lookup(name) != nil {
			return false
		}
	}
	return true
}

// load loads the library for good: calls are bound to it once and must not lose
// it when go-nvml closes its own handle.
func load(path string) (symbols, error) {
	if strings.Contains(path, "/") { // the loader would wait for a pipe
		if err := regular.Check(path); errors.Is(err, regular.ErrKind) || errors.Is(err, regular.ErrSlow) {
			return symbols{}, fmt.Errorf("%w: %w", errNoLibrary, err)
		}
	}
	lib := dl.New(path, dl.RTLD_LAZY|dl.RTLD_GLOBAL)
	if err := lib.Open(); err != nil {
		return symbols{}, fmt.Errorf("%w: %w", errNoLibrary, err)
	}
	s := symbols{lib}
	for _, names := range required {
		found := false
		for _, name := range names {
			found = found || s.has(name)
		}
		if !found {
			return symbols{}, fmt.Errorf("%s lacks %s", path, names[0])
		}
	}
	return s, nil
}

// first loads the library at path, or if that is empty the first one that is there.
func first(path string) (string, symbols, error) {
	if path != "" {
		s, err := load(path)
		return path, s, err
	}
	var s symbols
	var err error
	for _, path := range libraries {
		if s, err = load(path); !errors.Is(err, errNoLibrary) {
			return path, s, err
		}
	}
	return "", s, err
}

// open loads and initialises the library at path and finds its GPUs.
func open(path string) (*driver, error) {
	path, s, err := first(path)
	if err != nil {
		return nil, err
	}
	d := &driver{api: nvml.New(nvml.WithLibraryPath(path))}
	if ret := d.api.Init(); ret != nvml.SUCCESS {
		return nil, fmt.Errorf("init: %w", ret) // any further call would kill the process
	}
	if s.has("nvmlSystemGetDriverVersion") {
		d.version, _ = d.api.SystemGetDriverVersion()
	}
	d.choose(s)
	if err := d.find(s); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// choose picks the figures that the library can give.
func (d *driver) choose(s symbols) {
	for _, f := range figures {
		for _, w := range f.ways {
			if s.has(w.symbols...) {
				d.figures = append(d.figures, figure{name: f.name, ways: []way{w}})
				break
			}
		}
		if n := len(d.figures); n == 0 || d.figures[n-1].name != f.name {
			d.missing = append(d.missing, f.name)
		}
	}
}

// find gets a handle for each GPU.
func (d *driver) find(s symbols) error {
	n, ret := d.api.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return fmt.Errorf("count GPUs: %w", ret)
	}
	for i := range min(n, maxGPUs) {
		d.devices = append(d.devices, d.device(s, i))
	}
	return nil
}

func (d *driver) device(s symbols, index int) *device {
	g := &device{uuid: "unknown-" + strconv.Itoa(index)}
	handle, ret := d.api.DeviceGetHandleByIndex(index)
	if ret != nvml.SUCCESS {
		return g
	}
	g.Device = handle
	if uuid, ret := handle.GetUUID(); ret == nvml.SUCCESS && uuid != "" {
		g.uuid = printable(uuid)
	}
	if s.has("nvmlDeviceGetName") {
		name, _ := handle.GetName()
		g.name = printable(name)
	}
	if s.has("nvmlDeviceGetMaxClockInfo") {
		g.maxClock, _ = handle.GetMaxClockInfo(nvml.CLOCK_SM)
	}
	return g
}

// printable makes a text of the driver fit for a report.
func printable(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), maxText)], "")
}

// read reads every GPU.
func (d *driver) read() Reading {
	r := Reading{Present: true, Driver: d.version}
	d.failing = false
	for _, g := range d.devices {
		reading, err := d.readDevice(g)
		r.GPUs = append(r.GPUs, reading)
		if err != nil {
			r.Problem = "nvml: " + err.Error()
			d.failing = true
		}
	}
	return r
}

// readDevice reads one GPU. Figures that it doesn't have are missing; only what
// is no normal answer of a working GPU is an error.
func (d *driver) readDevice(g *device) (*fleetpb.Gpu, error) {
	out := &fleetpb.Gpu{Uuid: g.uuid, Name: g.name, Missing: append([]string(nil), d.missing...)}
	if g.Device == nil {
		out.Lost, out.Missing = true, figureNames()
		return out, fmt.Errorf("GPU %s: no handle", g.uuid)
	}
	var err error
	for _, f := range d.figures {
		ret := f.ways[0].read(g, out)
		if ret == nvml.ERROR_GPU_IS_LOST {
			out.Lost, out.Missing = true, figureNames()
			return out, fmt.Errorf("GPU %s: %w", g.uuid, ret)
		}
		if ret != nvml.SUCCESS {
			out.Missing = append(out.Missing, f.name)
		}
		if ret != nvml.SUCCESS && !absent(ret) {
			err = fmt.Errorf("GPU %s: %s: %w", g.uuid, f.name, ret)
		}
	}
	return out, err
}

// absent is whether a working GPU may answer so: it lacks the figure, or keeps
// it from us.
func absent(ret nvml.Return) bool {
	switch ret {
	case nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_NO_PERMISSION, nvml.ERROR_FUNCTION_NOT_FOUND,
		nvml.ERROR_NO_DATA, nvml.ERROR_DEPRECATED, nvml.ERROR_ARGUMENT_VERSION_MISMATCH:
		return true
	}
	return false
}

func (d *driver) close() { _ = d.api.Shutdown() }
