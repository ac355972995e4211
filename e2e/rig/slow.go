package rig

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// hogs is how many busy loops share a CPU with a slowed process.
const hogs = 2

// SlowDown puts a process of the mesh on one CPU together with busy loops, and the others
// on the rest of the CPUs, until normal is called, at the latest when the test ends.
func (m *Mesh) SlowDown(t testing.TB, slow string, others ...string) (normal func()) {
	t.Helper()
	pid := m.Process(t, slow).PID
	var one, rest, all unix.CPUSet
	if err := unix.SchedGetaffinity(pid, &all); err != nil {
		t.Fatal(err)
	}
	rest = all
	for cpu := range 1024 {
		if all.IsSet(cpu) {
			one.Set(cpu)
			rest.Clear(cpu)
			break
		}
	}
	if rest.Count() == 0 {
		rest = all // one CPU: all share it, the slow process with the loops
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range hogs {
		wg.Go(func() {
			runtime.LockOSThread() // never unlocked: the thread ends with its affinity
			_ = unix.SchedSetaffinity(0, &one)
			for !stop.Load() {
			}
		})
	}
	pin(t, pid, &one)
	for _, name := range others {
		pin(t, m.Process(t, name).PID, &rest)
	}
	normal = sync.OnceFunc(func() {
		stop.Store(true)
		wg.Wait()
		for _, name := range append(others, slow) {
			pin(t, m.Process(t, name).PID, &all)
		}
	})
	t.Cleanup(normal)
	return normal
}

// pin lets all threads of a process run on the CPUs of the set alone.
func pin(t testing.TB, pid int, set *unix.CPUSet) {
	t.Helper()
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		if err == nil {
			err = unix.SchedSetaffinity(tid, set)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			t.Fatalf("thread %s: %v", thread.Name(), err)
		}
	}
}
