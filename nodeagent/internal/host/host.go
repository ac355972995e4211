// Package host reads the CPU and memory of this node from /proc, within the
// limits of the cgroup that the agent runs in.
//
// nodeagent reads it with every heartbeat. The rule: the figures are of what
// this node may use, so that a container with two of sixty-four CPUs counts as
// two.
package host

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/prometheus/procfs"

	"millrace.dev/millrace/internal/cgroup"
)

// Figures are one reading.
type Figures struct {
	// CPUs is how many CPUs the node may use, at least 1.
	CPUs int
	// Utilization is the share of their time in use since the reading before, 0
	// to 1; 0 in the first one.
	Utilization float64
	// MemoryUsed is in bytes, without what the kernel can take back at once.
	MemoryUsed uint64
	// MemoryTotal is what the node may use, in bytes.
	MemoryTotal uint64
	// Limited is whether a cgroup allows less than the machine has.
	Limited bool
}

// Reader reads the figures. It is for one goroutine.
type Reader struct {
	// Constant after New.
	proc  procfs.FS
	group cgroup.Group

	// Of the reading before.
	last Figures
	host hostTime
	own  time.Duration // CPU time of the cgroup
	at   time.Time     // zero: no reading yet
}

// hostTime is the CPU time of the whole host since its boot, in seconds.
type hostTime struct{ busy, total float64 }

// New returns a reader of the proc and cgroup file systems at these folders,
// usually /proc and /sys/fs/cgroup.
func New(proc, cgroups string) (*Reader, error) {
	fs, err := procfs.NewFS(proc)
	if err != nil {
		return nil, err
	}
	return &Reader{proc: fs, group: cgroup.Find(fs, cgroups)}, nil
}

// Read reads the figures now. Those that cannot be read are as they were
// before, and named by the error.
func (r *Reader) Read(now time.Time) (Figures, error) {
	f := r.last
	f.CPUs = max(f.CPUs, 1)
	err := errors.Join(r.memory(&f), r.cpu(&f, now))
	r.last = f
	return f, err
}

func (r *Reader) memory(f *Figures) error {
	m, err := r.proc.Meminfo()
	if err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	if m.MemTotalBytes == nil || m.MemAvailableBytes == nil {
		return errors.New("memory: meminfo lacks MemTotal or MemAvailable")
	}
	f.MemoryTotal, f.Limited = *m.MemTotalBytes, false
	f.MemoryUsed = f.MemoryTotal - min(*m.MemAvailableBytes, f.MemoryTotal)
	if used, limit, ok := r.group.Memory(); ok && limit < f.MemoryTotal {
		f.MemoryUsed, f.MemoryTotal, f.Limited = used, limit, true
	}
	return nil
}

func (r *Reader) cpu(f *Figures, now time.Time) error {
	stat, err := r.proc.Stat()
	if err != nil {
		return fmt.Errorf("cpu: %w", err)
	}
	t := stat.CPUTotal
	idle := t.Idle + t.Iowait
	busy := t.User + t.Nice + t.System + t.IRQ + t.SoftIRQ + t.Steal // User holds Guest
	host := hostTime{busy: busy, total: busy + idle}
	f.CPUs = max(len(stat.CPU), 1)
	share := part(host.busy-r.host.busy, host.total-r.host.total)
	own, quota, ok := r.group.CPU()
	if ok && quota < float64(f.CPUs) {
		f.CPUs, f.Limited = max(1, int(math.Ceil(quota))), true
		share = part((own - r.own).Seconds(), quota*now.Sub(r.at).Seconds())
	}
	if r.at.IsZero() {
		share = 0
	}
	f.Utilization = share
	r.host, r.own, r.at = host, own, now
	return nil
}

// part returns a ÷ b within 0 and 1; counters that went back or stood still
// give 0.
func part(a, b float64) float64 {
	if !(a > 0 && b > 0) {
		return 0
	}
	return min(a/b, 1)
}
