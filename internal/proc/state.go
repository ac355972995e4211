package proc

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// tick is the unit of CPU time in /proc: USER_HZ is 100 on Linux, proc(5).
const tick = time.Second / 100

// Stat is what the kernel says of a process.
type Stat struct {
	// Group is the id of its process group.
	Group int
	// State is R, S, D, T (stopped), t (traced), Z (ended, not reaped) …; proc(5).
	State byte
	// Parent is the parent's process id.
	Parent int
	// CPU is the time used, user and system.
	CPU time.Duration
	// RSS is the resident memory in bytes.
	RSS uint64
	// Start is when it was started, in ticks since the machine was: with its id it names a
	// process, and no later one that has got the same id.
	Start uint64
}

// State reads /proc/PID/stat. The error is os.ErrNotExist when there is no such
// process.
func State(pid int) (Stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Stat{}, err
	}
	return parseStat(b)
}

// parseStat reads the fields behind the last ')': the name before it may hold
// anything. Their numbers in proc(5) are two more than their places here.
func parseStat(b []byte) (Stat, error) {
	i := bytes.LastIndexByte(b, ')')
	fields := bytes.Fields(b[i+1:])
	if i < 0 || len(fields) < 22 || len(fields[0]) != 1 {
		return Stat{}, fmt.Errorf("stat %.40q: too short", b)
	}
	var n [22]int64
	for _, k := range []int{1, 2, 11, 12, 19, 21} {
		v, err := strconv.ParseInt(string(fields[k]), 10, 64)
		if err != nil {
			return Stat{}, fmt.Errorf("stat field %d: %w", k+3, err)
		}
		n[k] = v
	}
	return Stat{
		State:  fields[0][0],
		Parent: int(n[1]),
		Group:  int(n[2]),
		CPU:    time.Duration(n[11]+n[12]) * tick,
		RSS:    uint64(n[21]) * uint64(os.Getpagesize()),
		Start:  uint64(n[19]),
	}, nil
}

// Alive reports whether a process with this id runs (a stopped one does; one
// that has ended but was not reaped does not).
func Alive(pid int) bool {
	s, err := State(pid)
	return err == nil && s.State != 'Z' && s.State != 'X'
}

// Group returns the ids of the processes of a group, its leader's among them.
func Group(id int) ([]int, error) {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var all []int
	for _, name := range names {
		pid, err := strconv.Atoi(name.Name())
		if err != nil {
			continue
		}
		if s, err := State(pid); err == nil && s.Group == id {
			all = append(all, pid)
		}
	}
	return all, nil
}

// Marked returns the ids of the processes that have an environment variable, written
// as "NAME=value": whoever inherits it is found, however it came to run.
func Marked(variable string) ([]int, error) {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var all []int
	for _, name := range names {
		pid, err := strconv.Atoi(name.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + name.Name() + "/environ")
		if err == nil && bytes.Contains(append([]byte{0}, b...), []byte("\x00"+variable+"\x00")) {
			all = append(all, pid)
		}
	}
	return all, nil
}
