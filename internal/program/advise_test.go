package program

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"millrace.dev/millrace/internal/obs"
)

func TestAdvise(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want string // of the hint; empty: there is none
	}{
		{"full disk", &fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, "make room"},
		{"read-only disk", &fs.PathError{Op: "open", Path: "x", Err: syscall.EROFS}, "can only be read"},
		{"no address", &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EADDRNOTAVAIL)}, "0.0.0.0 is all interfaces"},
		{"low port", &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EACCES)}, "below 1024"},
		{"no right", fmt.Errorf("up: %w", &fs.PathError{Op: "open", Path: "x", Err: syscall.EACCES}), "that you may use"},
		{"has one", &obs.Hint{Err: syscall.ENOSPC, Next: "its own"}, "its own"},
		{"unknown", errors.New("x"), ""},
		{"none", nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := advise(tt.err)
			var h *obs.Hint
			if !errors.Is(got, tt.err) || errors.As(got, &h) != (tt.want != "") || tt.want != "" && !strings.Contains(h.Next, tt.want) {
				t.Errorf("advise() = %v with %+v, want %q", got, h, tt.want)
			}
		})
	}
}
