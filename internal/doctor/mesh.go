package doctor

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"millrace.dev/millrace/internal/state"
)

// mesh says how the mesh in o.Dir is, and whether its address is free.
func mesh(o Options) []finding {
	const what = "mesh"
	s, running, err := state.Read(o.Dir)
	if err != nil && !errors.Is(err, state.ErrNone) {
		f := broken(warn, what, err)
		f.next = "millrace up writes it anew"
		return []finding{f, address(o.Listen)}
	}
	if !running {
		return []finding{{verdict: ok, what: what, found: "none runs in " + o.Dir}, address(o.Listen)}
	}
	return []finding{health(s)}
}

// health says how a running mesh does.
func health(s state.State) finding {
	var down []string
	for _, p := range s.Processes {
		if p.Status != state.Running {
			down = append(down, fmt.Sprintf("%s %s (%s)", p.Name, p.Status, p.Reason))
		}
	}
	f := finding{verdict: ok, what: "mesh", found: fmt.Sprintf("runs at %s, %d processes", s.Listen, len(s.Processes))}
	switch {
	case len(down) > 0:
		f.verdict, f.found = warn, f.found+"; "+strings.Join(down, ", ")
		f.next = "they are started again by themselves; why they ended is in " + s.Logs
	case !s.Ready:
		f.verdict, f.found = warn, f.found+", not ready"
		f.next = "millrace status says what it waits for"
	}
	return f
}

// address says whether a mesh could listen.
func address(listen string) finding {
	const what = "address"
	if listen == "" {
		return finding{verdict: ok, what: what, found: "any"}
	}
	ln, err := net.Listen("tcp", listen)
	if err == nil {
		defer ln.Close()
		return finding{verdict: ok, what: what, found: listen + " is free"}
	}
	f := broken(fail, what, err)
	if errors.Is(err, syscall.EADDRINUSE) {
		f.next = "choose another one with -listen, or 127.0.0.1:0 for any free port"
	}
	return f
}
