package program

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/procfs"

	"millrace.dev/millrace/internal/cgroup"
	"millrace.dev/millrace/internal/obs"
)

// Part is what tables, queues and buffers of one kind may take of a program's memory.
type Part struct {
	// Name is what metrics and conditions call it.
	Name string
	// Most is its bound, in bytes.
	Most int64
	// Used is how much of it is taken now; nil: that is not counted.
	Used func() int64
}

// Memory is how much memory a program may use: the bounds of all parts together, and what
// the operator gives it.
//
// Go's limit, GOMEMLIMIT, is set from it: without it garbage alone may be as much as
// everything in use.
type Memory struct {
	// Constant after newMemory.
	log   *slog.Logger
	given int64  // bytes; 0: nobody has said
	from  string // who gives them
	fixed bool   // whether Go's limit is the operator's own

	// Atomic.
	tight atomic.Bool

	// mu guards the fields below.
	mu    sync.Mutex
	parts []Part
	need  int64
}

// How much memory is beside the bounds of parts, as shares.
const (
	// garbageShare is what Go may have for garbage: the limit is that much above the bounds.
	garbageShare = 8
	// outsideShare is what of a container is not Go's: stacks of threads, code, the kernel's.
	outsideShare = 10
	// tightShare is how much of the limit may be live before a program takes nothing large.
	tightShare = 0.92
)

// measureEvery is how often what is live is compared with the limit.
const measureEvery = 100 * time.Millisecond

// newMemory finds out how much the operator gives. shared is whether others live in the
// program's container, so that its limit is not the program's.
func newMemory(log *slog.Logger, shared bool) *Memory {
	m := &Memory{log: log}
	if limit := debug.SetMemoryLimit(-1); os.Getenv("GOMEMLIMIT") != "" && limit < math.MaxInt64 {
		m.given, m.from, m.fixed = limit, "GOMEMLIMIT", true
		return m
	}
	if fs, err := procfs.NewDefaultFS(); err == nil && !shared {
		if _, limit, ok := cgroup.Find(fs, "/sys/fs/cgroup").Memory(); ok && limit < 1<<50 {
			m.given, m.from = int64(limit-limit/outsideShare), "the container's limit"
		}
	}
	return m
}

// Share returns so great a share of what the operator gives; otherwise if he has not said.
func (m *Memory) Share(part float64, otherwise int64) int64 {
	if m.given == 0 {
		return otherwise
	}
	return int64(part * float64(m.given))
}

// Follow sets Go's limit by the bounds of the program's parts, which may change, and watches
// what is live, until ctx ends.
func (m *Memory) Follow(ctx context.Context, parts func() []Part) error {
	t := time.NewTicker(measureEvery)
	defer t.Stop()
	for n := 0; ; n++ {
		if n%10 == 0 {
			m.set(parts())
		}
		m.measure()
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// set takes in what the parts may take now.
func (m *Memory) set(parts []Part) {
	need := int64(0)
	for _, p := range parts {
		need += p.Most
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	changed := m.need != need
	m.parts, m.need = parts, need
	if !changed {
		return
	}
	if !m.fixed {
		debug.SetMemoryLimit(m.limitLocked())
	}
	if c := m.shortLocked(); c != nil {
		m.log.Warn("memory is short", "bounds", size(need), "limit", size(m.given), "of", m.from)
		return
	}
	m.log.Info("memory", "bounds", size(need), "limit", size(m.limitLocked()))
}

// limitLocked is Go's limit.
func (m *Memory) limitLocked() int64 {
	if m.given > 0 {
		return m.given
	}
	return m.need + m.need/garbageShare
}

// measure finds out whether what is live comes near to the limit.
func (m *Memory) measure() {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(live)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tight.Store(float64(live[0].Value.Uint64()+live[1].Value.Uint64()) > tightShare*float64(m.limitLocked()))
}

// Tight reports whether what is live has come near to the limit: nothing large may be
// begun. It ends by itself when something is given back.
func (m *Memory) Tight() bool { return m.tight.Load() }

// shortLocked is what is wrong with the limit; nil: nothing.
func (m *Memory) shortLocked() *obs.Condition {
	if m.given == 0 || m.given >= m.need {
		return nil
	}
	all := make([]string, len(m.parts))
	for i, p := range m.parts {
		all[i] = p.Name + " " + size(p.Most)
	}
	return &obs.Condition{
		Code: "memory-short",
		Text: fmt.Sprintf("%s allows %s of memory, and tables, queues and buffers may take %s when all are full: %s", m.from, size(m.given), size(m.need), strings.Join(all, ", ")),
		Next: fmt.Sprintf("give the program %s, or bound it by less (manifests/memory.md)", size(Container(m.need))),
	}
}

// Container returns the memory that a container needs whose program may take so much of it
// for all parts.
func Container(need int64) int64 {
	limit := need + need/garbageShare
	return limit + limit/(outsideShare-1)
}

// Conditions returns what is wrong.
func (m *Memory) Conditions() []obs.Condition {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []obs.Condition
	if c := m.shortLocked(); c != nil {
		all = append(all, *c)
	}
	if m.Tight() {
		all = append(all, obs.Condition{
			Code: "memory-tight",
			Text: fmt.Sprintf("nearly all of the %s of memory that this program may use are taken: it takes no large requests now", size(m.limitLocked())),
			Next: "give it more memory (manifests/memory.md)",
		})
	}
	for _, p := range m.parts {
		if p.Used == nil || float64(p.Used()) < fullShare*float64(p.Most) {
			continue
		}
		all = append(all, obs.Condition{
			Code: "memory-full",
			Text: fmt.Sprintf("%s take %s of at most %s: more is not taken in", p.Name, size(p.Used()), size(p.Most)),
			Next: "give the program more memory (manifests/memory.md), if that is to be remembered",
		})
	}
	return all
}

// fullShare is from which share on a part is full.
const fullShare = 0.98

// size is bytes for a person.
func size(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<19)>>20) }

// The metrics of a Memory.
var (
	boundDesc = prometheus.NewDesc("millrace_memory_bound_bytes", "What tables, queues and buffers of a kind may take of the program's memory.", []string{"part"}, nil)
	usedDesc  = prometheus.NewDesc("millrace_memory_used_bytes", "What they take now, of kinds that are counted.", []string{"part"}, nil)
	limitDesc = prometheus.NewDesc("millrace_memory_limit_bytes", "How much memory the program keeps to, as Go counts it (GOMEMLIMIT).", nil, nil)
)

// Describe implements prometheus.Collector.
func (m *Memory) Describe(c chan<- *prometheus.Desc) {
	c <- boundDesc
	c <- usedDesc
	c <- limitDesc
}

// Collect implements prometheus.Collector.
func (m *Memory) Collect(c chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c <- prometheus.MustNewConstMetric(limitDesc, prometheus.GaugeValue, float64(m.limitLocked()))
	for _, p := range m.parts {
		c <- prometheus.MustNewConstMetric(boundDesc, prometheus.GaugeValue, float64(p.Most), p.Name)
		if p.Used != nil {
			c <- prometheus.MustNewConstMetric(usedDesc, prometheus.GaugeValue, float64(p.Used()), p.Name)
		}
	}
}
