package obs

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// StuckAfter is how long a part may take to answer a Watch before the program counts as stuck:
// whoever started it is to start it anew. It is far beyond what a busy machine costs.
const StuckAfter = 20 * time.Second

// Watch finds out that a program is stuck though its process lives: a lock that nobody gives
// back, a loop that has stopped.
type Watch struct {
	log *slog.Logger

	// mu guards the fields below.
	mu    sync.Mutex
	parts []*part
}

// part is one thing that must answer.
type part struct {
	name  string
	check func() error
	every time.Duration // at least between two questions
	last  time.Time     // when it was last asked
	asked time.Time     // since when it has not answered; zero: it has
	err   error         // what it last said
}

// How often parts are asked: those whose answer costs next to nothing, and others.
const (
	often  = time.Second
	seldom = StuckAfter / 2
)

// NewWatch returns a Watch of nothing yet, which logs what is stuck.
func NewWatch(log *slog.Logger) *Watch { return &Watch{log: log} }

// Add has a part watched: check takes the locks, or asks the loops, that the program can't work
// without. It is asked once a second; the error says that it has stopped.
func (w *Watch) Add(name string, check func() error) { w.add(name, check, often) }

// AddSeldom is Add for a check whose work grows with what the program has to do with, such as
// all metrics of a thousand endpoints: it is asked every ten seconds.
func (w *Watch) AddSeldom(name string, check func() error) { w.add(name, check, seldom) }

func (w *Watch) add(name string, check func() error, every time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.parts = append(w.parts, &part{name: name, check: check, every: every})
}

// Run watches until ctx ends, and says to systemd that all is well as long as it is, where
// systemd asks for that.
func (w *Watch) Run(ctx context.Context) error {
	tick := time.NewTicker(often)
	defer tick.Stop()
	last, was := time.Now(), ""
	for {
		now := time.Now()
		w.ask(now, now.Sub(last) > StuckAfter/2)
		last = now
		stuck := w.Stuck()
		if text := strings.Join(stuck, "; "); text != was {
			was = text
			if text != "" {
				w.log.Error("stuck", "parts", text)
			}
		}
		if len(stuck) == 0 {
			notifySystemd("WATCHDOG=1")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// ask asks each part that has answered and whose turn it is; late is whether we ourselves were stopped meanwhile: the
// silence of parts says nothing then.
func (w *Watch) ask(now time.Time, late bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.parts {
		if !p.asked.IsZero() {
			if late {
				p.asked = now
			}
			continue
		}
		if now.Sub(p.last) < p.every-often/2 { // ticks are not exact
			continue
		}
		p.last, p.asked = now, now
		go func() { // owned by what it waits for: it ends as soon as that answers
			err := p.check()
			w.mu.Lock()
			defer w.mu.Unlock()
			p.asked, p.err = time.Time{}, err
		}()
	}
}

// Stuck returns what is stuck, and how.
func (w *Watch) Stuck() (all []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.parts {
		switch silent := time.Since(p.asked); {
		case !p.asked.IsZero() && silent > StuckAfter:
			all = append(all, fmt.Sprintf("%s has not answered for %s", p.name, silent.Round(time.Second)))
		case p.err != nil:
			all = append(all, fmt.Sprintf("%s: %v", p.name, p.err))
		}
	}
	slices.Sort(all)
	return all
}

// notifySystemd sends a state to the service manager that has started the program, if it wants to
// know that it lives.
func notifySystemd(state string) {
	socket := os.Getenv("NOTIFY_SOCKET")
	if n, err := strconv.Atoi(os.Getenv("WATCHDOG_USEC")); err != nil || n <= 0 || socket == "" {
		return
	}
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return // it is about another process
	}
	if socket[0] == '@' { // one without a file
		socket = "\x00" + socket[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return // nobody listens: it is restarted, as it would be by silence
	}
	defer conn.Close()
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = conn.Write([]byte(state))
}
