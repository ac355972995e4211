package mesh

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// console writes for the person who started the mesh.
type console struct {
	// mu guards the writers: a line is never cut by another.
	mu       sync.Mutex
	out, err io.Writer
}

// progress writes one line about what happens.
func (c *console) progress(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.err, "millrace: "+format+"\n", args...)
}

// line writes text that somebody waits for.
func (c *console) line(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = io.WriteString(c.out, text)
}

// short rounds a duration to what a person reads.
func short(d time.Duration) time.Duration {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond)
	case d < time.Minute:
		return d.Round(100 * time.Millisecond)
	default:
		return d.Round(time.Second)
	}
}
