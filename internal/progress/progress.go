// Package progress shows a person what takes long: downloads, hashes, compilers.
//
// Called by setup and models. Its one rule: what is done within two seconds gets no line.
package progress

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

// Progress shows what takes long. On a terminal one line is redrawn;
// elsewhere a task gets a line now and then.
type Progress struct {
	// Constant after New.
	out   io.Writer
	who   string // begins each line
	width int    // of the terminal in columns, 0 if out is none

	// mu guards the fields below, the tasks' too.
	mu    sync.Mutex
	tasks []*Task
	drawn bool // whether the terminal's last line is ours
}

// Task is something that may take long.
type Task struct {
	what    string
	total   int64        // bytes, 0 if not known
	done    func() int64 // bytes so far, nil if not known
	began   time.Time
	printed time.Time // of the last line, zero if none
}

// New returns one that writes to out lines that begin with who: "set-up".
func New(out io.Writer, who string) *Progress {
	return &Progress{out: out, who: who, width: columns(out)}
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

// Start shows progress until the returned function is called, which waits.
func (p *Progress) Start() (stop func()) {
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

// Begin adds a task of so many bytes, 0 if that is not known; done, how many there are, may be nil.
func (p *Progress) Begin(what string, total int64, done func() int64) *Task {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := &Task{what: what, total: total, done: done, began: time.Now()}
	p.tasks = append(p.tasks, t)
	return t
}

// End removes the task, and says how long it took if that was long.
func (p *Progress) End(t *Task) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tasks = slices.DeleteFunc(p.tasks, func(o *Task) bool { return o == t })
	took := time.Since(t.began)
	if took < quiet {
		return
	}
	p.eraseLocked()
	size := ""
	if t.total > 0 {
		size = fmt.Sprintf(", %d MB", megabytes(t.total))
	}
	fmt.Fprintf(p.out, "%s: %s: done%s in %.1f s\n", p.who, t.what, size, took.Seconds())
}

// Drop removes a task that came to nothing: somebody else says so.
func (p *Progress) Drop(t *Task) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tasks = slices.DeleteFunc(p.tasks, func(o *Task) bool { return o == t })
}

// show prints the tasks that take long.
func (p *Progress) show() {
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
		p.drawLocked(p.who + ": " + strings.Join(line, " | "))
	}
}

func (p *Progress) lineLocked(t *Task, now time.Time) {
	if !t.printed.IsZero() && now.Sub(t.printed) < lineEvery {
		return
	}
	t.printed = now
	fmt.Fprintf(p.out, "%s: %s\n", p.who, t.state(now))
}

// drawLocked replaces the terminal's last line, cut to fit: a line that wraps
// couldn't be replaced.
func (p *Progress) drawLocked(line string) {
	if len(line) >= p.width {
		line = line[:p.width-1]
	}
	p.eraseLocked()
	fmt.Fprint(p.out, line)
	p.drawn = true
}

func (p *Progress) eraseLocked() {
	if p.drawn {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.drawn = false
	}
}

// state is "what: 12 of 37 MB, 4 s", as far as that is known.
func (t *Task) state(now time.Time) string {
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
