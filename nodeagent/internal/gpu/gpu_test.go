package gpu

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"millrace.dev/millrace/xds/fleetpb"
)

// TestMain lets the test binary play an agent with another library: calls are
// bound to the first one that a process loads, so each needs its own process.
func TestMain(m *testing.M) {
	if path := os.Getenv("MILLRACE_GPU_TEST"); path != "" {
		reading := New(path).Read(time.Now())
		reading.Took = 0
		_ = json.NewEncoder(os.Stdout).Encode(reading)
		os.Exit(0)
	}
	code := m.Run()
	if lib.dir != "" {
		_ = os.RemoveAll(lib.dir)
	}
	os.Exit(code)
}

// lib holds the fake libraries built by this run.
var lib struct {
	dir   string
	built map[string]string // path by variant
}

// fake returns the path of the fake library in one variant: "" or what is
// defined for the compiler.
func fake(t *testing.T, variant string) string {
	t.Helper()
	if path, ok := lib.built[variant]; ok {
		return path
	}
	if lib.dir == "" {
		dir, err := os.MkdirTemp("", "fakenvml")
		if err != nil {
			t.Fatal(err)
		}
		lib.dir, lib.built = dir, map[string]string{}
	}
	path := filepath.Join(lib.dir, "libnvidia-ml"+variant+".so.1")
	args := []string{"-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-Wno-unused-function", "-Wl,-soname,libnvidia-ml.so.1", "-o", path}
	if variant != "" {
		args = append(args, "-D"+variant)
	}
	if out, err := exec.Command("gcc", append(args, "testdata/fakenvml.c")...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	lib.built[variant] = path
	return path
}

// state is what the fake library says from now on.
func state(t *testing.T, lines ...string) {
	t.Helper()
	path := os.Getenv("FAKE_NVML_STATE")
	if path == "" {
		path = filepath.Join(t.TempDir(), "state")
		t.Setenv("FAKE_NVML_STATE", path)
	}
	if err := os.WriteFile(path+".new", []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil { // never half a state
		t.Fatal(err)
	}
}

// good is a state with one GPU that works.
var good = []string{
	"driver 580.95", "count 1",
	"0.uuid GPU-aaaa", "0.name Fake H200", "0.util 55", "0.memory.total 1000000", "0.memory.used 250000",
	"0.memory.reserved 5000", "0.temperature 71", "0.power 350500", "0.clock 990", "0.maxclock 1980",
	"0.reasons 0x48", "0.ecc 2",
}

func goodGPU() *fleetpb.Gpu {
	return &fleetpb.Gpu{
		Uuid: "GPU-aaaa", Name: "Fake H200", Utilization: 0.55, MemoryUsedBytes: 250000, MemoryTotalBytes: 1000000,
		TemperatureCelsius: 71, PowerWatts: 350.5, ClockRatio: 0.5, ClocksEventReasons: 0x48, EccUncorrected: 2,
	}
}

func check(t *testing.T, got, want Reading) {
	t.Helper()
	got.Took = 0
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("reading (-want +got):\n%s", diff)
	}
	for _, g := range got.GPUs {
		if err := g.Validate(); err != nil {
			t.Errorf("a report of this GPU would be refused: %v", err)
		}
	}
}

func TestReadsEveryFigure(t *testing.T) {
	state(t, good...)
	r := New(fake(t, ""))
	defer r.close()
	want := Reading{Present: true, Driver: "580.95", GPUs: []*fleetpb.Gpu{goodGPU()}}
	check(t, r.Read(time.Now()), want)
	check(t, r.Latest(time.Now()), want)
}

func TestWhatAGPUDoesNotGiveIsMissing(t *testing.T) {
	state(t, append(good, "0.power.return 3", "0.ecc.return 4", "0.maxclock.return 3")...)
	r := New(fake(t, ""))
	defer r.close()
	want := goodGPU()
	want.PowerWatts, want.EccUncorrected, want.ClockRatio = 0, 0, 0
	want.Missing = []string{"power", "clock", "ecc_uncorrected"}
	check(t, r.Read(time.Now()), Reading{Present: true, Driver: "580.95", GPUs: []*fleetpb.Gpu{want}})
}

func TestAFigureThatFailsIsAProblem(t *testing.T) {
	state(t, append(good, "0.temperature.return 999")...)
	r := New(fake(t, ""))
	defer r.close()
	want := goodGPU()
	want.TemperatureCelsius, want.Missing = 0, []string{"temperature"}
	check(t, r.Read(time.Now()), Reading{Present: true, Driver: "580.95", GPUs: []*fleetpb.Gpu{want},
		Problem: "nvml: GPU GPU-aaaa: temperature: Unknown Error"})
}

func TestLostGPUIsLostUntilItIsBack(t *testing.T) {
	state(t, good...)
	r := New(fake(t, ""))
	defer r.close()
	now := time.Now()
	r.Read(now)
	state(t, append(good, "0.return 15")...)
	lost := Reading{Present: true, Driver: "580.95", Problem: "nvml: GPU GPU-aaaa: GPU is lost",
		GPUs: []*fleetpb.Gpu{{Uuid: "GPU-aaaa", Name: "Fake H200", Lost: true, Missing: figureNames()}}}
	check(t, r.Read(now.Add(Every)), lost)

	state(t, "init 9") // its driver is being loaded anew
	lost.Problem = "nvml: init: Driver Not Loaded"
	check(t, r.Read(now.Add(retryEvery)), lost)
	state(t, good...)
	check(t, r.Read(now.Add(retryEvery+Every)), lost) // not tried at once
	check(t, r.Read(now.Add(2*retryEvery)), Reading{Present: true, Driver: "580.95", GPUs: []*fleetpb.Gpu{goodGPU()}})
}

func TestGPULostBeforeTheStartHasNoName(t *testing.T) {
	state(t, append(good, "0.return 15")...)
	r := New(fake(t, ""))
	defer r.close()
	check(t, r.Read(time.Now()), Reading{Present: true, Driver: "580.95", Problem: "nvml: GPU unknown-0: no handle",
		GPUs: []*fleetpb.Gpu{{Uuid: "unknown-0", Lost: true, Missing: figureNames()}}})
}

func TestFailedInitIsAProblemUntilItWorks(t *testing.T) {
	state(t, "init 9")
	r := New(fake(t, ""))
	defer r.close()
	now := time.Now()
	check(t, r.Read(now), Reading{Problem: "nvml: init: Driver Not Loaded"})
	state(t, good...)
	check(t, r.Read(now.Add(retryEvery)), Reading{Present: true, Driver: "580.95", GPUs: []*fleetpb.Gpu{goodGPU()}})
}

func TestNoGPUs(t *testing.T) {
	state(t, "count 0")
	r := New(fake(t, ""))
	defer r.close()
	check(t, r.Read(time.Now()), Reading{Present: true})
}

func TestMoreGPUsThanAReportHolds(t *testing.T) {
	state(t, "count 999")
	r := New(fake(t, ""))
	defer r.close()
	if got := r.Read(time.Now()); len(got.GPUs) != maxGPUs {
		t.Errorf("%d GPUs, want %d", len(got.GPUs), maxGPUs)
	}
}

func TestNamedLibraryThatIsNotThereIsAProblem(t *testing.T) {
	got := New("/nowhere/libnvidia-ml.so.1").Read(time.Now())
	if got.Present || !strings.HasPrefix(got.Problem, "nvml: no NVML library: /nowhere/libnvidia-ml.so.1") {
		t.Errorf("reading %+v", got)
	}
}

func TestNoLibraryNamedAndNoneThereIsFine(t *testing.T) {
	if p := problem("", fmt.Errorf("%w: not found", errNoLibrary)); p != "" {
		t.Errorf("problem %q, want none", p)
	}
	if p := problem("", fmt.Errorf("init: x")); p == "" {
		t.Error("a system library that fails is no problem")
	}
}

// child reads once with one variant of the library in a process of its own.
func child(t *testing.T, variant string) Reading {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "MILLRACE_GPU_TEST="+fake(t, variant))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var got Reading
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return got
}

func TestOldDriver(t *testing.T) {
	state(t, good...)
	want := goodGPU()
	want.MemoryUsedBytes = 255000 // the first version counts what is reserved as used
	check(t, child(t, "OLD"), Reading{Present: true, Driver: "580.95", GPUs: []*fleetpb.Gpu{want}})
}

func TestLibraryWithoutOptionalSymbols(t *testing.T) {
	state(t, good...)
	check(t, child(t, "BARE"), Reading{Present: true,
		GPUs: []*fleetpb.Gpu{{Uuid: "GPU-aaaa", Missing: figureNames()}}})
}

func TestLibraryWithoutARequiredSymbol(t *testing.T) {
	state(t, good...)
	got := child(t, "BROKEN")
	want := fmt.Sprintf("nvml: %s lacks nvmlDeviceGetCount_v2", fake(t, "BROKEN"))
	check(t, got, Reading{Problem: want})
}

// hang makes the driver hang. The function returned waits until a call does;
// the one that it returns releases it.
func hang(t *testing.T) (hangs func() (release func())) {
	t.Helper()
	fifo := filepath.Join(t.TempDir(), "hang")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	state(t, append(good, "hang "+fifo)...)
	return func() func() {
		f, err := os.OpenFile(fifo, os.O_WRONLY, 0) // until the library has opened it too
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			state(t, good...)
			_ = f.Close()
		}
	}
}

func TestHungDriverIsReported(t *testing.T) {
	state(t, good...)
	r := New(fake(t, ""))
	defer r.close()
	now := time.Now()
	r.Read(now)
	hangs := hang(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Read(now)
	}()
	release := hangs()
	if got := r.Latest(now.Add(Deadline - 1)); got.Problem != "" {
		t.Errorf("problem %q before the deadline", got.Problem)
	}
	check(t, r.Latest(now.Add(Deadline)), Reading{Present: true, Driver: "580.95", Problem: "nvml: no answer for 3s",
		GPUs: []*fleetpb.Gpu{{Uuid: "GPU-aaaa", Name: "Fake H200", Missing: figureNames()}}})
	release()
	<-done
	check(t, r.Latest(now.Add(Deadline)), Reading{Present: true, Driver: "580.95", GPUs: []*fleetpb.Gpu{goodGPU()}})
}

func TestRunEndsWithItsContext(t *testing.T) {
	hangs := hang(t)
	r := New(fake(t, ""))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	release := hangs()
	cancel()
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if r.driver != nil {
		t.Error("the driver was left open")
	}
}

// TestFindsTheDriversMount has the library only where a container gets it mounted.
func TestFindsTheDriversMount(t *testing.T) {
	mounted := fake(t, "")
	system := libraries
	t.Cleanup(func() { libraries = system })
	libraries = []string{"libmillrace-no-such.so.1", mounted, "libmillrace-no-such.so.2"}
	if path, _, err := first(""); err != nil || path != mounted {
		t.Errorf("first() = %q, %v; want %s", path, err, mounted)
	}
	libraries = []string{"libmillrace-no-such.so.1", "libmillrace-no-such.so.2"}
	if _, _, err := first(""); problem("", err) != "" || err == nil {
		t.Errorf("without a driver: %v; must be an error that is no problem", err)
	}
	if _, _, err := first("libmillrace-no-such.so.1"); problem("libmillrace-no-such.so.1", err) == "" {
		t.Error("a library that was named and is not there must be a problem")
	}
}
