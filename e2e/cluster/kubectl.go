package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Kubeconfig returns the path of the file for kubectl, helm and clients on this
// machine. They connect by loopback, as cluster-admin.
func (c *Cluster) Kubeconfig() string { return c.kubeconfig }

// Tools returns the folder of the cluster's kubectl and helm.
func (c *Cluster) Tools() string { return c.programs }

// Env returns the environment in which the cluster's kubectl and helm come first in
// PATH and find the cluster.
func (c *Cluster) Env() []string {
	return append(os.Environ(),
		"KUBECONFIG="+c.kubeconfig,
		"PATH="+c.programs+string(os.PathListSeparator)+os.Getenv("PATH"),
		// What helm would put in the user's folders.
		"HELM_CACHE_HOME="+filepath.Join(c.dir, "helm"), "HELM_CONFIG_HOME="+filepath.Join(c.dir, "helm"), "HELM_DATA_HOME="+filepath.Join(c.dir, "helm"))
}

// Kubectl runs kubectl and returns what it prints; the error holds what it prints as
// errors.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.tool(ctx, "kubectl", "", args...)
}

// Helm runs helm as Kubectl runs kubectl.
func (c *Cluster) Helm(ctx context.Context, args ...string) (string, error) {
	return c.tool(ctx, "helm", "", args...)
}

// Apply applies YAML: server-side, as a field manager of its own, which takes fields
// from others.
func (c *Cluster) Apply(ctx context.Context, yaml string) (string, error) {
	return c.tool(ctx, "kubectl", yaml, "apply", "--server-side", "--force-conflicts", "--field-manager=test", "-f", "-")
}

// Rollout waits until a Deployment, DaemonSet or StatefulSet (deployment/NAME) has
// all its Pods ready.
func (c *Cluster) Rollout(ctx context.Context, namespace, resource string) error {
	_, err := c.Kubectl(ctx, "-n", namespace, "rollout", "status", resource, "--timeout="+readyLimit.String())
	if err != nil {
		pods, _ := c.Kubectl(context.WithoutCancel(ctx), "-n", namespace, "get", "pods", "-o", "wide")
		events, _ := c.Kubectl(context.WithoutCancel(ctx), "-n", namespace, "get", "events", "--sort-by=.lastTimestamp")
		return fmt.Errorf("%w\n%s\n%s", err, pods, events)
	}
	return nil
}

// Wait runs kubectl wait: Wait(ctx, "-n", "ns", "--for=condition=Ready", "pod/x").
func (c *Cluster) Wait(ctx context.Context, args ...string) error {
	_, err := c.Kubectl(ctx, append([]string{"wait", "--timeout=" + readyLimit.String()}, args...)...)
	return err
}

func (c *Cluster) tool(ctx context.Context, name, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.program(name), args...)
	cmd.Env = c.Env()
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}
