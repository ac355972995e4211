package setup

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"millrace.dev/millrace/internal/proc"
	"millrace.dev/millrace/internal/progress"
	"millrace.dev/millrace/internal/regular"
)

// output runs cmd and returns what it wrote. The process group ends with ctx
// and with this process.
func output(ctx context.Context, cmd *exec.Cmd) (string, error) {
	var printed bytes.Buffer
	cmd.Stdout, cmd.Stderr = &printed, &printed
	cmd.WaitDelay = time.Second // a grandchild may hold the pipe
	p, err := proc.Start(cmd)
	if err != nil {
		return "", err
	}
	select {
	case <-p.Done():
		return printed.String(), p.Err()
	case <-ctx.Done():
		_ = p.Stop(2 * time.Second)
		return "", ctx.Err()
	}
}

// Lock takes the lock of the file of that name, waiting for whoever has it: what that may
// be is shown meanwhile.
func Lock(ctx context.Context, name, what string, show *progress.Progress) (unlock func(), err error) {
	f, err := regular.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	t := show.Begin("wait for "+what, 0, nil)
	defer show.End(t)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, &os.PathError{Op: "lock", Path: name, Err: err}
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}
