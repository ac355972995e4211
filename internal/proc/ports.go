package proc

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
)

// firstPort and lastPort lie below Linux's default range of ephemeral ports
// (32768-60999), so that no outgoing connection takes the port of a server that
// is just being restarted.
const (
	firstPort = 20000
	lastPort  = 31999
)

// errNoPorts is returned when the whole range was tried.
var errNoPorts = errors.New("no free loopback ports between 20000 and 31999")

// FreePorts returns n TCP ports of 127.0.0.1 on which nobody listens now. They
// are not reserved: the range and the random start make a clash unlikely.
func FreePorts(n int) ([]int, error) {
	const span = lastPort - firstPort + 1
	start := rand.IntN(span)
	var ports []int
	for i := 0; i < span && len(ports) < n; i++ {
		port := firstPort + (start+i)%span
		if free(port) {
			ports = append(ports, port)
		}
	}
	if len(ports) < n {
		return nil, errNoPorts
	}
	return ports, nil
}

func free(port int) bool {
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	_ = ln.Close()
	return true
}
