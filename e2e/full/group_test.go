// Package full has programs hold all that they may at once, in a container of the size that
// the chart gives them.
//
// Its one rule: the container is real. Where the kernel lets nobody make one, the program is
// given GOMEMLIMIT alone, and the most that it ever took is compared with the size.
package full

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"millrace.dev/millrace/e2e/rig"
)

// chartLimit is a program's limit of memory in the chart, in bytes.
func chartLimit(t *testing.T, program string) int64 {
	t.Helper()
	text := rig.Read(t, "../../manifests/charts/millrace/values.yaml")
	m := regexp.MustCompile(`(?ms)^` + program + `:$.*?limits: \{memory: (\d+)(Mi|Gi)\}`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no limit of %s in the chart", program)
	}
	n, _ := strconv.ParseInt(m[1], 10, 64)
	if m[2] == "Gi" {
		n <<= 10
	}
	return n << 20
}

// container is a cgroup of one program.
type container struct {
	dir  string // empty: nobody may make one
	v2   bool
	size int64
}

// newContainer makes a cgroup of a size.
func newContainer(t *testing.T, size int64) *container {
	t.Helper()
	name := fmt.Sprintf("millrace-full-%d-%s", os.Getpid(), filepath.Base(t.Name()))
	for _, c := range []*container{{dir: "/sys/fs/cgroup/memory/" + name}, {dir: "/sys/fs/cgroup/" + name, v2: true}} {
		c.size = size
		if c.make() == nil {
			t.Cleanup(func() {
				if err := rig.Poll(processEnds, func() error { return os.Remove(c.dir) }); err != nil {
					t.Errorf("cgroup: %v", err)
				}
			})
			return c
		}
		_ = os.Remove(c.dir)
	}
	t.Logf("no cgroup can be made here: the size is kept by GOMEMLIMIT")
	return &container{size: size}
}

func (c *container) make() error {
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.dir, c.file("memory.limit_in_bytes", "memory.max")), strconv.AppendInt(nil, c.size, 10), 0)
}

// file is the name of a file in either version.
func (c *container) file(v1, v2 string) string {
	if c.v2 {
		return v2
	}
	return v1
}

// start starts a program in the container.
func (c *container) start(t *testing.T, name string, args ...string) *rig.Process {
	t.Helper()
	path, err := rig.Program(name)
	if err != nil {
		t.Fatal(err)
	}
	if c.dir == "" {
		cmd := exec.Command(path, args...)
		cmd.Env = append(os.Environ(), fmt.Sprintf("GOMEMLIMIT=%d", c.size/10*9))
		return rig.Start(t, name, cmd)
	}
	enter := `echo $$ > "$0/cgroup.procs" && exec "$@"`
	return rig.Start(t, name, exec.Command("sh", append([]string{"-c", enter, c.dir, path}, args...)...))
}

// peak is the most that the container ever took, in bytes.
func (c *container) peak(t *testing.T, pid int) int64 {
	t.Helper()
	if c.dir == "" {
		m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindStringSubmatch(rig.Read(t, fmt.Sprintf("/proc/%d/status", pid)))
		n, _ := strconv.ParseInt(m[1], 10, 64)
		return n << 10
	}
	n, err := strconv.ParseInt(strings.TrimSpace(rig.Read(t, filepath.Join(c.dir, c.file("memory.max_usage_in_bytes", "memory.peak")))), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
