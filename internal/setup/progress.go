package setup

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	quiet     = 2 * time.Second        // what takes less is not worth a line
	redraw    = 250 * time.Millisecond // on a terminal
	lineEvery = 10 * time.Second       // between lines of one task elsewhere
)

// progress shows a person what takes long. On a terminal one line is redrawn;
// elsewhere a task gets a line now and then.
type progress struct {
	// Constant after newProgress.
	out   io.Writer
	width int // of the terminal in columns, 0 if out is none

	// mu guards the fields below, the tasks' too.
	mu    sync.Mutex
	tasks []*task
	drawn bool // whether the terminal's last line is ours
}

// task is something that may take long.
type task struct {
	what    string
	total   int64        // bytes, 0 if not known
	done    func() int64 // bytes so far, nil if not known
	began   time.Time
	printed time.Time // of the last line, zero if none
}

func newProgress(out io.Writer) *progress {
	return &progress{out: out, width: columns(out)}
}

// columns returns the width of the terminal that w is, 0 if it is none.
func columns(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return max(int(size.Col), 20)
}

// start shows progress until the returned function is called, which waits.
func (p *progress) start() (stop func()) {
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(redraw)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.show()
			case <-quit:
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-ended
		p.mu.Lock()
		defer p.mu.Unlock()
		p.eraseLocked()
	}
}

// begin adds a task; done may be nil.
func (p *progress) begin(what string, total int64, done func() int64) *task {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := &task{what: what, total: total, done: done, began: time.Now()}
	p.tasks = append(p.tasks, t)
	return t
}

// end removes the task, and says how long it took if that was long.
func (p *progress) end(t *task) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tasks = slices.DeleteFunc(p.tasks, func(o *task) bool { return o == t })
	took := time.Since(t.began)
	if took < quiet {
		return
	}
	p.eraseLocked()
	size := ""
	if t.total > 0 {
		size = fmt.Sprintf(", %d MB", megabytes(t.total))
	}
	fmt.Fprintf(p.out, "set-up: %s: done%s in %.1f s\n", t.what, size, took.Seconds())
}

// show prints the tasks that take long.
func (p *progress) show() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	var line []string
	for _, t := range p.tasks {
		if now.Sub(t.began) < quiet {
			continue
		}
		if p.width == 0 {
			p.lineLocked(t, now)
			continue
		}
		line = append(line, t.state(now))
	}
	if len(line) > 0 {
		p.drawLocked("set-up: " + strings.Join(line, " | "))
	}
}

func (p *progress) lineLocked(t *task, now time.Time) {
	if !t.printed.IsZero() && now.Sub(t.printed) < lineEvery {
		return
	}
	t.printed = now
	fmt.Fprintf(p.out, "set-up: %s\n", t.state(now))
}

// drawLocked replaces the terminal's last line, cut to fit: a line that wraps
// couldn't be replaced.
func (p *progress) drawLocked(line string) {
	if len(line) >= p.width {
		line = line[:p.width-1]
	}
	p.eraseLocked()
	fmt.Fprint(p.out, line)
	p.drawn = true
}

func (p *progress) eraseLocked() {
	if p.drawn {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.drawn = false
	}
}

// state is "what: 12 of 37 MB, 4 s", as far as that is known.
func (t *task) state(now time.Time) string {
	size := ""
	switch {
	case t.total > 0 && t.done != nil:
		size = fmt.Sprintf("%d of %d MB, ", megabytes(t.done()), megabytes(t.total))
	case t.total > 0:
		size = fmt.Sprintf("%d MB, ", megabytes(t.total))
	}
	return fmt.Sprintf("%s: %s%d s", t.what, size, int(now.Sub(t.began).Seconds()))
}

func megabytes(n int64) int64 { return (n + 500_000) / 1_000_000 }
