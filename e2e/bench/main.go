// Command bench measures Millrace against floors and bare parts, row by row; -h
// explains every row.
//
// It prints one JSON line a figure and a table at the end, which say by themselves
// what was measured, how, and what the floor is. Figures are CPU time per operation
// where a goal is one, medians of interleaved rounds, and ratios taken within one
// run: wall-clock figures prove little on shared machines.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"millrace.dev/millrace/e2e/bench/echo"
	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/obs"
)

// echoEnv makes this program play the echo picker: its value is the address to
// listen on, that of its metrics, and the host to name, with spaces between them.
const echoEnv = "MILLRACE_BENCH_ECHO"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		obs.PrintError(os.Stderr, "bench", err)
		stop()
		os.Exit(1)
	}
}

// bench is one run of the benchmark.
type bench struct {
	// rows are those to measure.
	rows map[string]bool
	// rounds is how often each figure is taken; the median counts.
	rounds int
	// each is how long one measurement sends.
	each time.Duration
	// whole is whether to measure what is left out by default.
	whole bool
	// match is what the descriptions of decisions must contain.
	match string
	// bin and cache are where the programs and set-up's parts are, envoy is Envoy.
	bin, cache, envoy string
	// dir is where what the run writes goes.
	dir string
	out *report
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	if at := os.Getenv(echoEnv); at != "" {
		return playEcho(at)
	}
	b := &bench{out: newReport(stdout)}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.Usage = func() {
		explain(fs.Output())
		fmt.Fprintln(fs.Output(), "\nFlags:")
		fs.PrintDefaults()
	}
	only := fs.String("rows", names(), "rows to measure, with commas between them; P is P1 to P6")
	fs.IntVar(&b.rounds, "rounds", 3, "times that each figure is taken; the median counts")
	fs.DurationVar(&b.each, "d", 3*time.Second, "length of one measurement")
	fs.BoolVar(&b.whole, "all", false, "measure every size, mode and number of endpoints of P, which takes half an hour")
	fs.StringVar(&b.match, "match", "", "measure only those decisions of P whose description contains this text")
	fs.StringVar(&b.bin, "bin", "bin", "folder of the programs; that of another version compares the two")
	fs.StringVar(&b.cache, "cache", os.Getenv("MILLRACE_CACHE"), "set-up's folder (default .cache)")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if b.cache == "" {
		b.cache = ".cache"
	}
	var err error
	if b.rows, err = chosen(*only); err != nil {
		return err
	}
	return b.all(ctx)
}

func (b *bench) all(ctx context.Context) error {
	if err := b.locate(); err != nil {
		return err
	}
	var err error
	if b.dir, err = os.MkdirTemp("", "millrace-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	defer b.out.table() // of what there is, whatever happens
	for i, r := range rows() {
		if r.run == nil {
			continue
		}
		// What follows without a run of its own belongs to the same measurement.
		wanted := b.rows[r.name]
		for _, more := range rows()[i+1:] {
			if more.run != nil {
				break
			}
			wanted = wanted || b.rows[more.name]
		}
		if !wanted {
			continue
		}
		if err := r.run(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}

// locate makes paths absolute, for programs that run in the run's own folder, and
// leaves them to the rig.
func (b *bench) locate() error {
	var err error
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	if b.cache, err = filepath.Abs(b.cache); err != nil {
		return err
	}
	if err := errors.Join(os.Setenv("MILLRACE_BIN", b.bin), os.Setenv("MILLRACE_CACHE", b.cache)); err != nil {
		return err
	}
	b.envoy, err = rig.Cached("envoy-*/envoy")
	return err
}

// playEcho serves the echo picker until this process is killed.
func playEcho(at string) error {
	addr, rest, _ := strings.Cut(at, " ")
	admin, dest, _ := strings.Cut(rest, " ")
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	metrics, err := net.Listen("tcp", admin)
	if err != nil {
		return err
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector())
	go func() { _ = http.Serve(metrics, promhttp.HandlerFor(reg, promhttp.HandlerOpts{})) }()
	if dest == bare {
		return echo.ServeBare(ln)
	}
	return echo.Serve(ln, dest)
}
