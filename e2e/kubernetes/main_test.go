//go:build kube

// Package kubernetes tests Millrace where it is used: in a Kubernetes cluster of two
// nodes, with the images and the chart that users get.
//
// Run by `make test-kube`. Its one rule: what a test leaves in the shared cluster goes
// with the test.
package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/cluster"
	"millrace.dev/millrace/e2e/rig"
)

// chart is the Helm chart, seen from this package's folder.
var chart = filepath.Join("..", "..", "manifests", "charts", "millrace")

// kube is the cluster of all tests, with Istio's control plane in it.
var kube *cluster.Cluster

func TestMain(m *testing.M) {
	code, err := withCluster(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// withCluster brings a cluster up, runs the tests, and takes it down.
func withCluster(run func() int) (code int, err error) {
	images, err := filepath.Glob(filepath.Join("..", "..", "bin", "images", "*.tar"))
	if err != nil || len(images) == 0 {
		return 0, fmt.Errorf("bin/images has no images; make images (%v)", err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx := context.Background()
	if kube, err = cluster.Up(ctx, cluster.Options{Nodes: 2, Istio: true, Images: images, Log: log}); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, kube.Down()) }()
	if _, err := kube.Kubectl(ctx, "label", "nodes", "--all", "millrace.dev/engine=true"); err != nil {
		return 0, err
	}
	return run(), nil
}

// kubectl runs kubectl, which must succeed, and returns what it prints.
func kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := kube.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// apply applies objects as a user does.
func apply(t testing.TB, yaml string) {
	t.Helper()
	if _, err := kube.Apply(t.Context(), yaml); err != nil {
		t.Fatal(err)
	}
}

// helm runs helm, which must succeed, and returns what it prints.
func helm(t testing.TB, args ...string) string {
	t.Helper()
	began := time.Now()
	out, err := kube.Helm(t.Context(), args...)
	if err != nil {
		pods, _ := kube.Kubectl(context.WithoutCancel(t.Context()), "get", "pods", "-A", "-o", "wide")
		t.Fatalf("%v\n%s\n%s", err, out, pods)
	}
	t.Logf("helm %s: %s", args[0], time.Since(began).Round(100*time.Millisecond))
	return out
}

// namespace makes a namespace, which goes with the test.
func namespace(t testing.TB, name string) {
	t.Helper()
	kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		if _, err := kube.Kubectl(context.WithoutCancel(t.Context()), "delete", "namespace", name, "--wait=false"); err != nil {
			t.Error(err)
		}
	})
	rig.Wait(t, time.Minute, "the namespace has an account", func() error {
		_, err := kube.Kubectl(t.Context(), "get", "serviceaccount", "default", "-n", name)
		return err
	})
}

// smollm2 is a file of `millrace up`: one replica on each of two nodes.
const smollm2 = `apiVersion: millrace.dev/v1alpha1
kind: Model
metadata: {name: smollm2}
spec: {replicas: 2, layout: [{stages: 1}]}
`

// in returns objects that name no namespace as objects of that one.
func in(ns, yaml string) string {
	return strings.ReplaceAll(yaml, "metadata: {name:", "metadata: {namespace: "+ns+", name:")
}

// backLimit is how long a whole installation may take until it answers.
const backLimit = 90 * time.Second

// install installs the chart in a namespace of its own as release "millrace", with smollm2
// on both nodes, and returns the address of its gateway on this machine once all of it
// serves. It goes with the test.
func install(t testing.TB, ns string, values ...string) (url string) {
	t.Helper()
	namespace(t, ns)
	args := []string{"install", "millrace", chart, "-n", ns}
	for _, v := range values {
		args = append(args, "--set", v)
	}
	helm(t, args...)
	t.Cleanup(func() {
		if out, err := kube.Helm(context.WithoutCancel(t.Context()), "uninstall", "millrace", "-n", ns, "--ignore-not-found"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	apply(t, in(ns, smollm2))
	gateway, err := kube.Forward("127.0.0.1:0", "millrace-gateway."+ns+":80")
	if err != nil {
		t.Fatal(err)
	}
	url = "http://" + gateway
	rig.Wait(t, backLimit, "the first answer", func() error {
		_, _, err := rig.Complete(t.Context(), url+rig.ChatPath, rig.ShortQuestions(0, 0))
		return err
	})
	ready(t, ns, "smollm2", "2/2")
	return url
}

// ready waits until so many replicas of a model serve, as its status has it.
func ready(t testing.TB, ns, model, want string) {
	t.Helper()
	rig.Wait(t, backLimit, "model "+model+" is "+want, func() error {
		got, err := kube.Kubectl(t.Context(), "get", "model", model, "-n", ns, "-o", "jsonpath={.status.ready} {.status.reason} {.status.message}")
		if err == nil && !strings.HasPrefix(got, want+" ") {
			err = errors.New(got)
		}
		return err
	})
}
