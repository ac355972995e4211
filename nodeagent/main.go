// Command nodeagent reports one node: it streams the state of the engine, the GPUs and the
// host to xds, and hands the directives of xds to the engine.
//
// One runs on every node, beside the node's engine. It stores nothing: killed and started
// again, it has read everything anew within a second.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/program"
	"millrace.dev/millrace/internal/trust"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/nodeagent/internal/gpu"
	"millrace.dev/millrace/nodeagent/internal/host"
	"millrace.dev/millrace/nodeagent/internal/report"
)

func main() { os.Exit(program.Main("nodeagent", run)) }

// options are the flags.
type options struct {
	report   report.Config
	capacity float64
	memory   config.Bytes
	nvml     string
	leave    time.Duration
	sensors  *report.Sensors
}

// run obeys the command line.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	o := &options{}
	return program.Program{
		Name: "nodeagent", Metrics: "127.0.0.1:0", Flags: o.flags, Validate: o.validate, Load: o.load, Check: o.check, Serve: o.serve,
		Identity: func() mtls.ID { return mtls.ID{Role: mtls.NodeAgent, Node: o.report.Node} },
		Grace:    func() time.Duration { return o.leave },
	}.Run(ctx, args, stderr)
}

func (o *options) flags(f *program.Flags) {
	f.StringVar(&o.report.Node, "node", hostName(), "name of this node; of a Kubernetes node's name, each \".\" becomes \"-\"")
	f.StringVar(&o.report.Zone, "zone", "", "failure domain of this node, such as a rack")
	f.Dial(&o.report.Engine, "engine", "", "`ip:port` of the engine's gRPC service")
	f.Dial(&o.report.XDS, "xds", "", "`host:port` of xds; a name for every xds behind it")
	f.Float64Var(&o.capacity, "capacity", 0, "speed of this node in tokens per second, by which requests are shared out; 0: as measured")
	f.Func("memory", "what models may take of this node's memory, or its GPUs', such as `20Gi`; 0: nine tenths", func(text string) error {
		return o.memory.UnmarshalText([]byte(text))
	})
	f.StringVar(&o.nvml, "nvml", "", "`path` of the NVML library; if empty, the system's, if there is one")
	f.DurationVar(&o.report.Interval, "interval", 500*time.Millisecond, "time between heartbeats")
	f.DurationVar(&o.report.Timeout, "timeout", 1500*time.Millisecond, "how long after its last heartbeat xds takes this node for hung")
	f.DurationVar(&o.leave, "leave", 0, "how long it continues to report after SIGTERM, unless its engine ends before")
}

// load finds what there is to read here.
func (o *options) load() error {
	machine, err := host.New("/proc", "/sys/fs/cgroup")
	if err != nil {
		return fmt.Errorf("host: %w", err)
	}
	o.sensors = &report.Sensors{GPU: gpu.New(o.nvml), Host: machine, Capacity: o.capacity, Memory: uint64(o.memory)}
	return nil
}

func (o *options) serve(ctx context.Context, env *program.Env) error {
	log := env.Log.With("node", o.report.Node)
	o.report.Identity = env.Identity
	reporter := report.New(o.report, o.sensors, log, env.Metrics)
	g, ctx := errgroup.WithContext(o.stay(ctx, reporter))
	g.Go(func() error { return o.sensors.GPU.Run(ctx) })
	g.Go(func() error { return reporter.Run(ctx) })
	g.Go(func() error { return env.Memory.Follow(ctx, memory) })
	g.Go(func() error { return env.Admin(ctx, reporter.Conditions) })
	log.Info("ready", "metrics", env.AdminAddress(), "engine", o.report.Engine, "xds", o.report.XDS)
	return g.Wait()
}

// memory returns what nodeagent may take: manifests/memory.md.
func memory() []program.Part {
	return []program.Part{
		{Name: "program", Most: 48 << 20},
		{Name: "reports", Most: 32 << 20}, // of what the engine has cached: as it comes, as it is known, and as it goes
	}
}

// stay returns a context that ends after ctx: an engine that ends with it, and drains, is
// reported on.
func (o *options) stay(ctx context.Context, r *report.Reporter) context.Context {
	if o.leave == 0 {
		return ctx
	}
	staying, end := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		defer end()
		last, cancel := context.WithTimeout(staying, o.leave)
		defer cancel()
		r.AwaitEngineEnd(last)
	})
	return staying
}

var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// validate returns all that is wrong with the flags.
func (o *options) validate() error {
	o.report.Node = wire.NodeName(o.report.Node)
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !nodeName.MatchString(o.report.Node) {
		fault(`-node: %q; must be 1 to 63 lower-case letters, digits or "-"`, o.report.Node)
	}
	if len(o.report.Zone) > 63 {
		fault("-zone: %d bytes; must be ≤ 63", len(o.report.Zone))
	}
	if o.capacity != 0 && !trust.Within(o.capacity, 1e-3, 1e9) {
		fault("-capacity: %g; must be 0, or ≥ 0.001 and ≤ 1e9", o.capacity)
	}
	if o.memory < 0 || o.memory > 1<<50 {
		fault("-memory: %d bytes; must be ≥ 0 and ≤ %d", o.memory, int64(1)<<50)
	}
	if o.report.Interval < 50*time.Millisecond || o.report.Interval > time.Minute {
		fault("-interval: %s; must be ≥ 50ms and ≤ 1m", o.report.Interval)
	}
	if o.report.Timeout < 2*o.report.Interval || o.report.Timeout < 200*time.Millisecond || o.report.Timeout > 5*time.Minute {
		fault("-timeout: %s; must be ≥ 200ms, ≥ 2 × -interval and ≤ 5m", o.report.Timeout)
	}
	if o.leave < 0 {
		fault("-leave: %s; must be ≥ 0", o.leave)
	}
	return errors.Join(errs...)
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
