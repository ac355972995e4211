// Command nodeagent reports one node: the state of its engine, its GPUs and its
// host go up to xds in one stream, and what xds wants comes back to the engine.
//
// One runs on every node, beside the node's engine. It holds nothing that
// outlives it: killed and started again, it knows everything within a second.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"regexp"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/nodeagent/internal/gpu"
	"millrace.dev/millrace/nodeagent/internal/host"
	"millrace.dev/millrace/nodeagent/internal/report"
)

const program = "nodeagent"

// Exit codes, the same in every program of Millrace.
const (
	exitRuntime = 1
	exitUsage   = 2
	exitInUse   = 5
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		if !errors.Is(err, errParse) { // the flag package has printed its own
			obs.PrintError(os.Stderr, program, err)
		}
		stop()
		os.Exit(exitCode(err))
	}
}

var (
	// errParse marks flags that the flag package could not read.
	errParse = errors.New("usage")
	// errFlags marks flags with wrong values.
	errFlags = errors.New("flags")
)

func exitCode(err error) int {
	switch {
	case errors.Is(err, errParse), errors.Is(err, errFlags):
		return exitUsage
	case errors.Is(err, syscall.EADDRINUSE):
		return exitInUse
	default:
		return exitRuntime
	}
}

// options are the flags.
type options struct {
	report   report.Config
	metrics  string
	capacity float64
	nvml     string
	check    bool
	version  bool
}

// run is the program: it returns when ctx ends or the program cannot go on.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if o.version {
		fmt.Fprintln(stderr, program, version())
		return nil
	}
	machine, err := host.New("/proc", "/sys/fs/cgroup")
	if err != nil {
		return fmt.Errorf("host: %w", err)
	}
	sensors := &report.Sensors{GPU: gpu.New(o.nvml), Host: machine, Capacity: o.capacity}
	if o.check {
		return check(stderr, o.report.Node, sensors)
	}
	return serve(ctx, o, sensors, stderr)
}

func serve(ctx context.Context, o options, sensors *report.Sensors, stderr io.Writer) error {
	log := obs.Logger(stderr, program).With("node", o.report.Node)
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	reporter := report.New(o.report, sensors, log, reg)
	ln, err := net.Listen("tcp", o.metrics)
	if err != nil {
		return &obs.Hint{Err: fmt.Errorf("metrics: %w", err), Next: "give another address with -metrics, for example 127.0.0.1:0"}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return sensors.GPU.Run(ctx) })
	g.Go(func() error { return reporter.Run(ctx) })
	g.Go(func() error { return obs.Serve(ctx, ln, obs.Admin(reg, reporter.Conditions)) })
	log.Info("ready", "metrics", ln.Addr().String(), "engine", o.report.Engine, "xds", o.report.XDS)
	return g.Wait()
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet(program, flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.report.Node, "node", hostName(), "name of this node")
	fs.StringVar(&o.report.Zone, "zone", "", "failure domain of this node, for example a rack")
	fs.StringVar(&o.report.Engine, "engine", "", "`ip:port` of the engine's gRPC service")
	fs.StringVar(&o.report.XDS, "xds", "", "`ip:port` of xds")
	fs.StringVar(&o.metrics, "metrics", "127.0.0.1:0", "`ip:port` for metrics, health and profiles")
	fs.Float64Var(&o.capacity, "capacity", 0, "what this node is worth, in tokens per second; 0: as measured")
	fs.StringVar(&o.nvml, "nvml", "", "`path` of the NVML library; empty: the system's, if there is one")
	fs.DurationVar(&o.report.Interval, "interval", 500*time.Millisecond, "time between heartbeats")
	fs.DurationVar(&o.report.Timeout, "timeout", 1500*time.Millisecond, "silence after which xds counts this node as hung")
	fs.BoolVar(&o.check, "check", false, "say what would be read, and exit")
	fs.BoolVar(&o.version, "version", false, "say the version, and exit")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, fmt.Errorf("%w: %w", errParse, err)
	}
	if o.version {
		return o, nil
	}
	if err := o.validate(fs.Args()); err != nil {
		return o, &obs.Hint{Err: fmt.Errorf("%w: %w", errFlags, err), Next: "run nodeagent -help for all flags"}
	}
	return o, nil
}

var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// validate returns all faults of the flags at once, in one line.
func (o options) validate(rest []string) error {
	var faults []string
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	if len(rest) > 0 {
		fault("%q; no arguments are expected", rest)
	}
	if !nodeName.MatchString(o.report.Node) {
		fault(`-node: %q; must be 1 to 63 lower-case letters, digits or "-"`, o.report.Node)
	}
	for _, a := range []struct{ name, addr string }{{"-engine", o.report.Engine}, {"-xds", o.report.XDS}} {
		if a.addr == "" && o.check {
			continue // what is read does not depend on it
		}
		if _, _, err := net.SplitHostPort(a.addr); err != nil {
			fault("%s: %q; must be ip:port", a.name, a.addr)
		}
	}
	if _, err := net.ResolveTCPAddr("tcp", o.metrics); err != nil || o.metrics == "" {
		fault("-metrics: %q; must be ip:port", o.metrics)
	}
	if len(o.report.Zone) > 63 {
		fault("-zone: %d bytes; must be ≤ 63", len(o.report.Zone))
	}
	if !(o.capacity >= 0 && o.capacity <= 1e9) {
		fault("-capacity: %g; must be ≥ 0 and ≤ 1e9", o.capacity)
	}
	if o.report.Interval < 50*time.Millisecond || o.report.Interval > time.Minute {
		fault("-interval: %s; must be ≥ 50ms and ≤ 1m", o.report.Interval)
	}
	if o.report.Timeout < 2*o.report.Interval || o.report.Timeout < 200*time.Millisecond || o.report.Timeout > 5*time.Minute {
		fault("-timeout: %s; must be ≥ 200ms, ≥ 2 × -interval and ≤ 5m", o.report.Timeout)
	}
	if len(faults) == 0 {
		return nil
	}
	return errors.New(strings.Join(faults, "; "))
}

// hostName returns the first label of the host's name, the default of -node.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	return name
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return info.Main.Version + " " + s.Value
		}
	}
	return info.Main.Version
}
