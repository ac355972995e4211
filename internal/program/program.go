// Package program is what the programs of Millrace do in the same way: signals and
// exit codes, the flags that all have, the version, listeners, the admin page.
//
// Called by each main. Its one rule: a program declares what differs about it in one
// value, a Program, and nothing in here is global, so that tests run several of
// them in one process.
package program

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/obs"
)

// Program is one program: what is its own.
type Program struct {
	// Name is how it calls itself.
	Name string
	// Metrics is the default address of its admin page.
	Metrics string
	// Identity returns the role, and the node if it has one, of which its certificate
	// must be. It is called after Validate.
	Identity func() mtls.ID
	// Flags adds its flags to those that every program has.
	Flags func(*Flags)
	// Validate returns all that is wrong with the flags' values, each error with the
	// name of its flag; nil: nothing can be.
	Validate func() error
	// Load reads what the flags name, before Check and Serve; nil: nothing.
	Load func() error
	// Check is -check: it shows what there is to show, and returns what is wrong;
	// nil: what Validate and Load find is all.
	Check func(stderr io.Writer) error
	// Usable says what is wrong with what the flags and the configuration name, for -check, before
	// Check; nil: they name nothing that Load has not read. The program's own addresses are
	// checked in any case.
	Usable func() error
	// Shared is whether others that are no part of it run in its container, such as a
	// backend: then the container's limit of memory is not its own.
	Shared bool
	// Serve builds the parts in order and runs them until ctx ends.
	Serve func(ctx context.Context, env *Env) error
	// Grace is how long Serve may take to end once ctx has, by the flags' values; nil: no
	// time of its own. What takes much longer is stuck: the program ends without it.
	Grace func() time.Duration
}

// endMargin is how long a program may take to end beyond its grace time.
const endMargin = 8 * time.Second

// Main runs a program until it ends by itself or a signal ends it, and returns the
// exit code. A second signal ends it at once.
func Main(name string, run func(ctx context.Context, args []string, stderr io.Writer) error) (code int) {
	ctx, stop := signal.NotifyContext(context.Background(), endSignals()...)
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Stderr)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	obs.PrintError(os.Stderr, name, advise(err))
	return ExitCode(err)
}

// endSignals are those that end a program in order: also that of a terminal that
// goes away, unless the user said by nohup that it must not matter.
func endSignals() []os.Signal {
	if signal.Ignored(syscall.SIGHUP) {
		return []os.Signal{os.Interrupt, syscall.SIGTERM}
	}
	return []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}
}

// Run obeys the command line: it shows the version, checks, or serves until ctx ends.
func (p Program) Run(ctx context.Context, args []string, stderr io.Writer) error {
	f := NewFlags(p.Name, stderr)
	f.StringVar(&f.metrics, "metrics", p.Metrics, "`ip:port` of /metrics, /healthz, /readyz, /debug/pprof/; with TLS, other addresses than loopback ask for an operator's certificate")
	f.addresses = append(f.addresses, address{"metrics", &f.metrics, admin})
	f.StringVar(&f.probes, "probes", "", "`ip:port` of /healthz, /readyz and /metrics alone, in plain text even with TLS, for kubelet and Prometheus; if empty, only -metrics has them")
	f.addresses = append(f.addresses, address{"probes", &f.probes, probes})
	f.StringVar(&f.tls.Cert, "tls-cert", "", "`file` with the program's certificate, PEM, read again when it changes; if empty, there is no TLS")
	f.StringVar(&f.tls.Key, "tls-key", "", "`file` with the key of -tls-cert; may be the same file")
	f.StringVar(&f.tls.CA, "tls-ca", "", "`file` with the authorities (CA certificates) of the mesh; with it every link is mutual TLS")
	f.BoolVar(&f.insecure, "insecure", false, "allow plain text on other addresses than loopback")
	f.BoolVar(&f.check, "check", false, "check the flags and the files that they name, and exit")
	f.BoolVar(&f.version, "version", false, "print the version and exit")
	p.Flags(f)
	if err := f.Read(args); err != nil {
		return err
	}
	if f.version {
		fmt.Fprintln(stderr, p.Name, Version())
		return nil
	}
	if err := f.validate(p.Validate); err != nil {
		return err
	}
	log := obs.Logger(stderr, p.Name)
	source, err := p.identity(f.tls, log)
	if err != nil {
		return err
	}
	if source != nil {
		f.id = source.ID()
	}
	if p.Load != nil {
		if err := p.Load(); err != nil {
			return err
		}
	}
	if f.check {
		return p.checked(f, stderr)
	}
	return p.serve(ctx, f, log, source)
}

// checked says whether all is in order that the flags name.
func (p Program) checked(f *Flags, stderr io.Writer) error {
	err := f.usable(stderr)
	if p.Usable != nil {
		err = errors.Join(err, p.Usable())
	}
	switch {
	case err != nil:
		return Config(err)
	case p.Check != nil:
		return p.Check(stderr)
	}
	fmt.Fprintf(stderr, "%s: flags and configuration are in order\n", p.Name)
	return nil
}

// identity reads the program's certificate; nil if it has none.
func (p Program) identity(f mtls.Files, log *slog.Logger) (*mtls.Source, error) {
	if f.CA == "" {
		return nil, nil
	}
	source, err := mtls.Load(f, log)
	if err == nil {
		want := p.Identity()
		want.Domain = source.ID().Domain
		if source.ID() != want {
			err = fmt.Errorf("-tls-cert %s: it is of %s; must be of %s", f.Cert, source.ID(), want)
		}
	}
	if err != nil {
		return nil, Usage(&obs.Hint{Err: err, Next: "give the program a certificate of its own; envoy/README.md says what names they have"})
	}
	return source, nil
}

func (p Program) serve(ctx context.Context, f *Flags, log *slog.Logger, source *mtls.Source) error {
	e := &Env{Log: log, Metrics: prometheus.NewRegistry(), Watch: obs.NewWatch(log), Identity: source, Memory: newMemory(log, p.Shared), name: p.Name, flags: f}
	e.Metrics.MustRegister(e.Memory, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo(p.Name))
	var err error
	if e.admin, err = e.listen("metrics", f.metrics, admin); err != nil {
		return err
	}
	defer e.admin.Close()
	if f.probes != "" {
		if e.probes, err = e.listen("probes", f.probes, probes); err != nil {
			return err
		}
		defer e.probes.Close()
	}
	return p.within(ctx, func() error { return p.Serve(ctx, e) }, log)
}

// within runs serve, and leaves it alone where it does not end in time.
func (p Program) within(ctx context.Context, serve func() error, log *slog.Logger) error {
	limit := endMargin
	if p.Grace != nil {
		limit += p.Grace()
	}
	ended := make(chan error, 1)
	go func() { ended <- serve() }() // ends, or the process does without it
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case err := <-ended:
		return err
	case <-t.C:
		var all strings.Builder
		_ = pprof.Lookup("goroutine").WriteTo(&all, 1)
		log.Error("stuck at the end", "goroutines", all.String())
		return fmt.Errorf("some of it has not ended within %s, and is left: the log says what", limit)
	}
}
