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
	"time"

	"millrace.dev/millrace/e2e/cluster"
	"millrace.dev/millrace/e2e/rig"
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

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("kube", flag.ContinueOnError)
	build := flags.Bool("build", false, "build the programs of clusters, if they are not there, and nothing else")
	nodes := flags.Int("nodes", 1, "how many nodes")
	suites := flags.Bool("suites", false, "with -build, the conformance suites, too")
	istio := flags.Bool("istio", false, "with Istio's control plane, Gateway API and InferencePools")
	bare := flags.Bool("bare", false, "without Millrace")
	if err := flags.Parse(args); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := cluster.Build(ctx, log); err != nil {
		return err
	}
	if *suites {
		if err := cluster.BuildSuites(ctx, log); err != nil {
			return err
		}
	}
	if *build {
		return nil
	}
	images, err := filepath.Glob(filepath.Join(rig.Root(), "bin", "images", "*.tar"))
	if err != nil || len(images) == 0 && !*bare {
		return fmt.Errorf("bin/images has no images; make images (%v)", err)
	}
	c, err := cluster.Up(ctx, cluster.Options{Nodes: *nodes, Istio: *istio, Images: images, Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Down()) }()
	if !*bare {
		if err := install(ctx, c, out, *nodes, *istio); err != nil {
			return ended(ctx, err)
		}
	}
	_, _ = fmt.Fprintf(out, "export KUBECONFIG=%s PATH=%s:$PATH\n", c.Kubeconfig(), c.Tools())
	<-ctx.Done()
	return nil
}

// ended returns the error of a step, or nil when the step was broken off by Ctrl-C.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// answerLimit is how long an installation may take until it answers.
const answerLimit = 3 * time.Minute

// install installs the chart with the default model on every node, and prints how to
// chat with it once it answers.
func install(ctx context.Context, c *cluster.Cluster, out io.Writer, nodes int, istio bool) error {
	if _, err := c.Kubectl(ctx, "label", "nodes", "--all", "millrace.dev/engine=true"); err != nil {
		return err
	}
	chart := filepath.Join(rig.Root(), "manifests", "charts", "millrace")
	if _, err := c.Helm(ctx, "install", "millrace", chart, "--set", fmt.Sprintf("istio.enabled=%v", istio)); err != nil {
		return err
	}
	model := fmt.Sprintf("apiVersion: millrace.dev/v1alpha1\nkind: Model\nmetadata: {name: %s, namespace: default}\nspec: {replicas: %d, layout: [{stages: 1}]}\n", rig.Model, nodes)
	if _, err := c.Apply(ctx, model); err != nil {
		return err
	}
	api, err := c.Forward("127.0.0.1:0", "millrace-gateway.default:80")
	if err != nil {
		return err
	}
	url := "http://" + api
	if err := rig.PollContext(ctx, answerLimit, func() error {
		_, _, err := rig.Complete(ctx, url+rig.ChatPath, rig.ShortQuestions(0, 0))
		return err
	}); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "ready %s\n", url)
	_, _ = fmt.Fprintf(out, "curl %s%s -H 'content-type: application/json' -d '{\"model\": %q, \"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}]}'\n", url, rig.ChatPath, rig.Model)
	return nil
}
