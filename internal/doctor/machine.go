package doctor

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// What a mesh of three nodes with the default model uses was measured as 1.1
	// GiB; each engine's llama.cpp takes about 200 MiB of it.
	memoryNeeded = 1 << 30 // bytes
	memoryWanted = 2 << 30 // bytes

	filesWanted = 1024 // open files a process
)

func cpu() finding {
	n := runtime.GOMAXPROCS(0) // knows of affinity and of cgroup limits
	f := finding{verdict: ok, what: "CPU", found: fmt.Sprintf("%d cores, %s/%s", n, runtime.GOOS, runtime.GOARCH)}
	if n < 2 {
		f.verdict, f.next = warn, "answers will be slow, and time-outs may fire: give it two cores"
	}
	return f
}

// Memory is what this machine has for new programs, in bytes.
func Memory() (int64, error) {
	file, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer file.Close()
	return availableMemory(file)
}

func memory() finding {
	free, err := Memory()
	if err != nil {
		return broken(warn, "memory", err)
	}
	f := finding{verdict: ok, what: "memory", found: fmt.Sprintf("%d MiB available", free>>20)}
	if free < memoryWanted {
		f.verdict, f.next = warn, fmt.Sprintf("a mesh of three nodes wants %d MiB: end other programs, or use fewer -nodes", memoryWanted>>20)
	}
	if free < memoryNeeded {
		f.verdict = fail
	}
	return f
}

// availableMemory reads MemAvailable, in bytes, from the text of /proc/meminfo.
func availableMemory(r io.Reader) (int64, error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "MemAvailable:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 53)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("no MemAvailable in /proc/meminfo: %w", io.ErrUnexpectedEOF)
}

func files() finding {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return broken(warn, "open files", err)
	}
	f := finding{verdict: ok, what: "open files", found: fmt.Sprintf("%d a process", limit.Max)}
	if limit.Max < filesWanted {
		f.verdict, f.next = warn, fmt.Sprintf("raise the limit: ulimit -Hn %d", filesWanted)
	}
	return f
}

// loopback tries what every part of a mesh does.
func loopback() finding {
	const what = "loopback"
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return broken(fail, what, err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		f := broken(fail, what, err)
		f.next = "allow connections from 127.0.0.1 to 127.0.0.1: ip link set lo up, or see the firewall"
		return f
	}
	defer conn.Close()
	return finding{verdict: ok, what: what, found: "connects to itself"}
}
