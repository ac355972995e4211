// Command kube is `make kube`: a Kubernetes cluster on this machine with Millrace
// in it, until Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"millrace.dev/millrace/e2e/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "kube: %v\n", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("kube", flag.ContinueOnError)
	build := flags.Bool("build", false, "build the programs of clusters, if they are not there, and nothing else")
	nodes := flags.Int("nodes", 1, "how many nodes")
	istio := flags.Bool("istio", false, "with istiod")
	if err := flags.Parse(args); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := cluster.Build(ctx, log); err != nil {
		return err
	}
	if *build {
		return cluster.BuildSuites(ctx, log)
	}
	images, err := filepath.Glob("bin/images/*.tar")
	if err != nil {
		return err
	}
	c, err := cluster.Up(ctx, cluster.Options{Nodes: *nodes, Istio: *istio, Images: images, Log: log})
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "KUBECONFIG=%s\n", c.Kubeconfig())
	<-ctx.Done()
	return c.Down()
}
