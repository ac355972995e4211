// Command pid1 is the first process of what the test cluster is made of: of a
// node (pid1 node NAME), of a Pod (pid1 pause: what Kubernetes calls so), and of a gateway of Istio (pid1 envoy BOOTSTRAP, which becomes Envoy).
// Static and of the standard library alone: it runs where nothing else is.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "pid1: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "envoy":
		return envoy(args[1])
	case len(args) == 2 && args[0] == "node":
		if err := node(args[1]); err != nil {
			return err
		}
		fmt.Println("up")
	case len(args) == 0 || args[0] != "pause":
		return fmt.Errorf("%q; must be pause, node NAME or envoy BOOTSTRAP", args)
	}
	return reap()
}

// reap waits for the children that nobody else waits for, until it is asked to end.
func reap() error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return nil
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 && err != syscall.EINTR {
				break
			}
		}
	}
	return nil
}

// sysctls are settings of the whole machine that kubelet writes. In a node they
// are files over the machine's own, which stay as they are.
var sysctls = map[string]string{"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1"}

// node makes the mount and host name namespaces that it runs in those of a node:
// a /proc of its processes, a /run of its own, and mounts that containers share
// with kubelet and nobody else.
func node(name string) error {
	mounts := []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{"", "/", "", syscall.MS_REC | syscall.MS_PRIVATE, ""},
		{"", "/", "", syscall.MS_REC | syscall.MS_SHARED, ""},
		{"proc", "/proc", "proc", syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC, ""},
		{"run", "/run", "tmpfs", 0, "mode=755"},
	}
	for _, m := range mounts {
		if err := syscall.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	for key, value := range sysctls {
		file := filepath.Join("/run/sysctl", strings.ReplaceAll(key, "/", "."))
		if err := os.MkdirAll("/run/sysctl", 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := syscall.Mount(file, filepath.Join("/proc/sys", key), "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount over sysctl %s: %w", key, err)
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return err
	}
	return syscall.Sethostname([]byte(name))
}

// envoy replaces itself by Envoy. In the bootstrap ${NAME} stands for a variable
// of the environment and ${file:PATH} for the text of a file: Envoy expands neither.
func envoy(bootstrap string) error {
	var missing []string
	text := os.Expand(bootstrap, func(key string) string {
		if path, is := strings.CutPrefix(key, "file:"); is {
			b, err := os.ReadFile(path)
			if err != nil {
				missing = append(missing, err.Error())
			}
			return strings.TrimSpace(string(b))
		}
		value, set := os.LookupEnv(key)
		if !set {
			missing = append(missing, key+" is not set")
		}
		return value
	})
	if missing != nil {
		return fmt.Errorf("bootstrap: %s", strings.Join(missing, "; "))
	}
	path := "/usr/local/bin/envoy"
	return syscall.Exec(path, []string{path, "--config-yaml", text, "--concurrency", "1"}, os.Environ())
}
