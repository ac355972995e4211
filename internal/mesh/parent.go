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

// watchParent calls orphaned when this process's parent ends: under make or a
// script nothing else would end it. A process that was started to outlive its
// parent (by nohup, as a service, by -d) is left alone.
func watchParent(ctx context.Context, orphaned func()) {
	parent := os.Getppid()
	if parent <= 1 || signal.Ignored(syscall.SIGHUP) || slices.Contains(os.Environ(), detached) {
		return
	}
	for sleep(ctx, 200*time.Millisecond) {
		if os.Getppid() != parent {
			orphaned()
			return
		}
	}
}
