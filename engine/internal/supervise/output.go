package supervise

import (
	"bytes"
	"os"
	"sync"

	"millrace.dev/millrace/internal/regular"
)

// output takes what a process writes to its log. It never refuses any of it: what the disk
// has no room for is lost, and the process, which might end over it, does not learn so.
type output struct {
	path string // of the log; constant

	// mu guards the fields below.
	mu   sync.Mutex
	file *os.File // nil: it could not be opened so far
	tail []byte   // what was written last
}

// maxTail bounds what is kept of the end of an output, in bytes.
const maxTail = 4 << 10

// Write appends p to the log, as far as that can be done.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tail = append(o.tail, p[max(0, len(p)-maxTail):]...)
	o.tail = append(o.tail[:0], o.tail[max(0, len(o.tail)-maxTail):]...)
	if o.file == nil {
		var err error
		if o.file, err = regular.Append(o.path, 0, 0o644); err != nil {
			return len(p), nil // the next line may find room
		}
	}
	_, _ = o.file.Write(p)
	return len(p), nil
}

// Close closes the log.
func (o *output) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file != nil {
		_ = o.file.Close()
		o.file = nil
	}
}

// last returns the last line that says something, cut to a size fit for a status.
func (o *output) last() string {
	const most = 200
	o.mu.Lock()
	defer o.mu.Unlock()
	b := bytes.TrimSpace(o.tail)
	line := b[bytes.LastIndexByte(b, '\n')+1:]
	return string(line[:min(len(line), most)])
}
