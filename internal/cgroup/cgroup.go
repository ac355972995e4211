// Package cgroup reads what the kernel allows this process, and what it uses of that.
//
// nodeagent reports it as the node's, program sets memory limits by it. Its one rule: a limit
// may be set on any level above the process, and the tightest one counts.
package cgroup

import (
	"bytes"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
)

// Group is the folders whose limits hold for this process, version 1 or 2.
type Group struct {
	memoryDir string // empty: memory has no limit
	memoryV1  bool
	cpuDir    string // empty: CPU has no limit
	acctDir   string // of version 1, where CPU time is counted apart
}

// Find looks for limits in the cgroup file systems mounted at root, usually /sys/fs/cgroup.
func Find(proc procfs.FS, root string) Group {
	self, err := proc.Self()
	if err != nil {
		return Group{}
	}
	groups, err := self.Cgroups()
	if err != nil {
		return Group{}
	}
	var c Group
	for _, g := range groups {
		switch {
		case g.HierarchyID == 0 && len(g.Controllers) == 0:
			c.findV2(root, g.Path)
		case slices.Contains(g.Controllers, "memory"):
			c.findMemoryV1(path.Join(root, "memory"), g.Path)
		case slices.Contains(g.Controllers, "cpu"):
			c.findCPUV1(root, g.Path)
		}
	}
	return c
}

func (c *Group) findV2(root, group string) {
	least, cpus := ^uint64(0), 0.0
	for _, dir := range above(root, group) {
		if limit, ok := number(path.Join(dir, "memory.max")); ok && limit < least {
			least, c.memoryDir = limit, dir
		}
		if q, ok := quotaV2(dir); ok && (c.cpuDir == "" || q < cpus) {
			cpus, c.cpuDir = q, dir
		}
	}
}

func (c *Group) findMemoryV1(root, group string) {
	least := ^uint64(0)
	for _, dir := range above(root, group) {
		if limit, ok := number(path.Join(dir, "memory.limit_in_bytes")); ok && limit < least {
			least, c.memoryDir, c.memoryV1 = limit, dir, true
		}
	}
}

func (c *Group) findCPUV1(root, group string) {
	cpus := 0.0
	for _, rel := range above("/", group) {
		dir := path.Join(root, "cpu", rel)
		if q, ok := quotaV1(dir); ok && (c.cpuDir == "" || q < cpus) {
			cpus, c.cpuDir, c.acctDir = q, dir, path.Join(root, "cpuacct", rel)
		}
	}
}

// above returns the folder of a group under root and all folders above it, down
// to root. In a container the group's own folder is often root itself.
func above(root, group string) []string {
	var dirs []string
	for group = path.Clean("/" + group); group != "/"; group = path.Dir(group) {
		dirs = append(dirs, path.Join(root, group))
	}
	return append(dirs, root)
}

// Memory returns how much memory the group uses and may use, in bytes. What
// the kernel could drop of files at once counts as free, as on a host.
func (c Group) Memory() (used, limit uint64, ok bool) {
	usage, bound, inactive := "memory.current", "memory.max", "inactive_file"
	if c.memoryV1 {
		usage, bound, inactive = "memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"
	}
	if c.memoryDir == "" {
		return 0, 0, false
	}
	limit, ok = number(path.Join(c.memoryDir, bound))
	if !ok {
		return 0, 0, false
	}
	used, ok = number(path.Join(c.memoryDir, usage))
	free, _ := entry(path.Join(c.memoryDir, "memory.stat"), inactive)
	return used - min(free, used), limit, ok
}

// CPU returns how much CPU time the group has used in all, and how many CPUs
// it may use.
func (c Group) CPU() (used time.Duration, cpus float64, ok bool) {
	switch {
	case c.cpuDir == "":
		return 0, 0, false
	case c.acctDir != "":
		cpus, ok = quotaV1(c.cpuDir)
		ns, counted := number(path.Join(c.acctDir, "cpuacct.usage"))
		return time.Duration(ns), cpus, ok && counted
	default:
		cpus, ok = quotaV2(c.cpuDir)
		us, counted := entry(path.Join(c.cpuDir, "cpu.stat"), "usage_usec")
		return time.Duration(us) * time.Microsecond, cpus, ok && counted
	}
}

// quotaV2 reads "QUOTA PERIOD" of cpu.max; "max" is no quota.
func quotaV2(dir string) (cpus float64, ok bool) {
	b, err := os.ReadFile(path.Join(dir, "cpu.max"))
	quota, period, two := strings.Cut(string(bytes.TrimSpace(b)), " ")
	if err != nil || !two {
		return 0, false
	}
	return ratio(quota, period)
}

// quotaV1 reads the same of version 1, where -1 is no quota.
func quotaV1(dir string) (cpus float64, ok bool) {
	quota, err := os.ReadFile(path.Join(dir, "cpu.cfs_quota_us"))
	if err != nil {
		return 0, false
	}
	period, err := os.ReadFile(path.Join(dir, "cpu.cfs_period_us"))
	if err != nil {
		return 0, false
	}
	return ratio(string(bytes.TrimSpace(quota)), string(bytes.TrimSpace(period)))
}

func ratio(quota, period string) (float64, bool) {
	q, err := strconv.ParseUint(quota, 10, 64)
	if err != nil {
		return 0, false
	}
	p, err := strconv.ParseUint(period, 10, 64)
	if err != nil || p == 0 || q == 0 {
		return 0, false
	}
	return float64(q) / float64(p), true
}

// number reads a file that holds one number.
func number(name string) (uint64, bool) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64)
	return n, err == nil
}

// entry reads the number of one line "KEY NUMBER" of a file.
func entry(name, key string) (uint64, bool) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if text, ok := strings.CutPrefix(line, key+" "); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
