package mesh

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

var errOrphaned = errors.New("the process that started this one has ended")

// parent is the process that started this one. It is read before main begins: it may end
// while the mesh is still being made ready, and whoever takes its place never does.
var parent = os.Getppid()

// watchParent calls orphaned when this process's parent ends, or has ended: under make or a
// script nothing else would end it. A process that was started to outlive its
// parent (by nohup, as a service, by -d) is left alone.
func watchParent(ctx context.Context, orphaned func()) {
	if parent <= 1 || signal.Ignored(syscall.SIGHUP) || slices.Contains(os.Environ(), detached) {
		return
	}
	for os.Getppid() == parent {
		if !sleep(ctx, 200*time.Millisecond) {
			return
		}
	}
	orphaned()
}
