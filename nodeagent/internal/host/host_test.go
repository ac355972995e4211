package host

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// machine is a /proc and a /sys/fs/cgroup of a test's own.
type machine struct {
	t   *testing.T
	dir string
}

func newMachine(t *testing.T, cgroups string) machine {
	t.Helper()
	m := machine{t, t.TempDir()}
	m.write("proc/7/cgroup", cgroups)
	m.write("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 600 kB\n")
	m.write("cgroup/placeholder", "")
	m.cpu(0, 0)
	if err := os.Symlink("7", filepath.Join(m.dir, "proc/self")); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m machine) write(name, text string) {
	m.t.Helper()
	name = filepath.Join(m.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// cpu sets how long the host's four CPUs were busy and idle, in ticks.
func (m machine) cpu(busy, idle int) {
	var b strings.Builder
	b.WriteString("cpu  " + ticks(busy, idle))
	for _, n := range "0123" {
		b.WriteString("cpu" + string(n) + " " + ticks(busy/4, idle/4))
	}
	m.write("proc/stat", b.String())
}

func ticks(busy, idle int) string {
	return strings.Join([]string{strconv.Itoa(busy), "0 0", strconv.Itoa(idle), "0 0 0 0 0 0\n"}, " ")
}

func (m machine) reader() *Reader {
	m.t.Helper()
	r, err := New(filepath.Join(m.dir, "proc"), filepath.Join(m.dir, "cgroup"))
	if err != nil {
		m.t.Fatal(err)
	}
	return r
}

func (m machine) check(r *Reader, now time.Time, want Figures) {
	m.t.Helper()
	got, err := r.Read(now)
	if err != nil {
		m.t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		m.t.Errorf("Read() (-want +got):\n%s", diff)
	}
}

func TestWholeHost(t *testing.T) {
	m := newMachine(t, "0::/\n")
	r, now := m.reader(), time.Unix(1000, 0)
	want := Figures{CPUs: 4, MemoryUsed: 400 << 10, MemoryTotal: 1000 << 10}
	m.cpu(400, 400)
	m.check(r, now, want) // nothing to compare with yet
	m.cpu(500, 700)
	want.Utilization = 0.25
	m.check(r, now.Add(time.Second), want)
	m.cpu(100, 100) // counters that went back
	want.Utilization = 0
	m.check(r, now.Add(2*time.Second), want)
}

func TestTightestLimitOfVersion2(t *testing.T) {
	m := newMachine(t, "0::/pod/app\n")
	m.write("cgroup/pod/memory.max", "500000\n")
	m.write("cgroup/pod/memory.current", "300000\n")
	m.write("cgroup/pod/memory.stat", "anon 1\ninactive_file 100000\n")
	m.write("cgroup/pod/app/memory.max", "max\n")
	m.write("cgroup/pod/cpu.max", "150000 100000\n")
	m.write("cgroup/pod/cpu.stat", "usage_usec 1000000\nuser_usec 1\n")
	m.write("cgroup/pod/app/cpu.max", "max 100000\n")
	r, now := m.reader(), time.Unix(1000, 0)
	want := Figures{CPUs: 2, MemoryUsed: 200000, MemoryTotal: 500000, Limited: true}
	m.check(r, now, want)
	m.write("cgroup/pod/cpu.stat", "usage_usec 1750000\n")
	want.Utilization = 0.5 // 0.75 s of 1.5 CPUs in one second
	m.check(r, now.Add(time.Second), want)
}

func TestLimitsOfVersion1(t *testing.T) {
	m := newMachine(t, "4:memory:/box\n2:cpu,cpuacct:/box\n1:name=systemd:/\n")
	m.write("cgroup/memory/box/memory.limit_in_bytes", "500000\n")
	m.write("cgroup/memory/box/memory.usage_in_bytes", "300000\n")
	m.write("cgroup/memory/box/memory.stat", "inactive_file 1\ntotal_inactive_file 50000\n")
	m.write("cgroup/cpu/box/cpu.cfs_quota_us", "50000\n")
	m.write("cgroup/cpu/box/cpu.cfs_period_us", "100000\n")
	m.write("cgroup/cpuacct/box/cpuacct.usage", "1000000000\n")
	r, now := m.reader(), time.Unix(1000, 0)
	want := Figures{CPUs: 1, MemoryUsed: 250000, MemoryTotal: 500000, Limited: true}
	m.check(r, now, want)
	m.write("cgroup/cpuacct/box/cpuacct.usage", "1250000000\n")
	want.Utilization = 0.5
	m.check(r, now.Add(time.Second), want)
}

func TestLimitsWiderThanTheHostDoNotCount(t *testing.T) {
	m := newMachine(t, "4:memory:/\n2:cpu:/\n")
	m.write("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
	m.write("cgroup/memory/memory.usage_in_bytes", "1\n")
	m.write("cgroup/cpu/cpu.cfs_quota_us", "-1\n")
	m.write("cgroup/cpu/cpu.cfs_period_us", "100000\n")
	m.check(m.reader(), time.Unix(1000, 0), Figures{CPUs: 4, MemoryUsed: 400 << 10, MemoryTotal: 1000 << 10})
}

func TestWhatCannotBeReadIsNamed(t *testing.T) {
	m := newMachine(t, "0::/\n")
	r := m.reader()
	if err := os.Remove(filepath.Join(m.dir, "proc/meminfo")); err != nil {
		t.Fatal(err)
	}
	got, err := r.Read(time.Unix(1000, 0))
	if err == nil || !strings.HasPrefix(err.Error(), "memory: ") {
		t.Errorf("Read() = %v, want an error about memory", err)
	}
	if got.CPUs != 4 {
		t.Errorf("CPUs %d, want those that could be read", got.CPUs)
	}
	m.write("proc/meminfo", "MemTotal: 1000 kB\n")
	if _, err := r.Read(time.Unix(1001, 0)); err == nil {
		t.Error("took a meminfo without MemAvailable")
	}
}

func TestThisMachine(t *testing.T) {
	r, err := New("/proc", "/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	f, err := r.Read(time.Now())
	if err != nil || f.CPUs < 1 || f.MemoryTotal == 0 || f.MemoryUsed == 0 || f.MemoryUsed > f.MemoryTotal {
		t.Errorf("Read() = %+v, %v", f, err)
	}
}

func FuzzCgroup(f *testing.F) {
	f.Add("0::/pod/app\n", "max 100000", "usage_usec 5\n")
	f.Add("4:memory:/../..\n2:cpu,cpuacct:x\n", "1 0", "usage_usec\n")
	f.Fuzz(func(t *testing.T, groups, quota, stat string) {
		m := newMachine(t, groups)
		m.write("cgroup/cpu.max", quota)
		m.write("cgroup/cpu.stat", stat)
		m.write("cgroup/memory.max", quota)
		m.write("cgroup/memory.stat", stat)
		got, _ := m.reader().Read(time.Unix(1000, 0))
		if got.CPUs < 1 || got.MemoryUsed > got.MemoryTotal && !got.Limited {
			t.Errorf("figures %+v", got)
		}
	})
}
