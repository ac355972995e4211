// Package gpu reads the GPUs of this node through NVML, by go-nvml and a library
// path that can be any library with the same symbols.
//
// nodeagent runs one Reader. The rule: what a report says of a GPU was read from
// the driver moments ago, or it is named as missing. A driver that hangs, loses
// a GPU or is not there at all is reported as such and never stops the agent.
package gpu

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"millrace.dev/millrace/xds/fleetpb"
)

// Every is how often the GPUs are read. The driver itself renews utilisation
// only one to six times a second.
const Every = time.Second

// Deadline is how long a reading may take before the driver counts as hung.
const Deadline = 3 * time.Second

// retryEvery is how often a missing library, a failed initialisation or a lost
// GPU is tried anew.
const retryEvery = 30 * time.Second

// Reading is what is known of the node's GPUs. It is never changed once
// published.
type Reading struct {
	// Present is whether the driver could be initialised, so that GPUs has the
	// truth, also when it is empty.
	Present bool
	// Driver is the driver's version; empty if it gives none.
	Driver string
	// GPUs in the driver's order.
	GPUs []*fleetpb.Gpu
	// Problem is what could not be read, for a person; empty: nothing.
	Problem string
	// Took is how long the reading took.
	Took time.Duration
}

// Reader reads the GPUs again and again.
type Reader struct {
	// Constant after New.
	path string // of the library; empty: the system's, if any

	// Atomic.
	latest atomic.Pointer[Reading]
	busy   atomic.Int64 // when the reading in progress began, in Unix ns; 0: none

	// Of the goroutine that reads.
	driver  *driver   // nil: not initialised
	retryAt time.Time // earliest next initialisation
}

// New returns a reader of the library at path; an empty path means the system's
// library, and that it is no problem if there is none.
func New(path string) *Reader {
	r := &Reader{path: path}
	r.latest.Store(&Reading{})
	return r
}

// Run reads at once and then every Every until ctx ends. A call into the driver
// cannot be cut short: if one hangs then, Run leaves it to the end of the
// process.
func (r *Reader) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.loop(ctx)
	}()
	<-ctx.Done()
	select {
	case <-done:
	case <-time.After(Every):
	}
	return nil
}

func (r *Reader) loop(ctx context.Context) {
	tick := time.NewTicker(Every)
	defer tick.Stop()
	for {
		r.Read(time.Now())
		select {
		case <-ctx.Done():
			r.close()
			return
		case <-tick.C:
		}
	}
}

// Read reads the GPUs now and returns what it published. It is not for use
// beside Run.
func (r *Reader) Read(now time.Time) Reading {
	r.busy.Store(now.UnixNano())
	defer r.busy.Store(0)
	reading := r.read(now)
	reading.Took = time.Since(now)
	r.latest.Store(&reading)
	return reading
}

func (r *Reader) read(now time.Time) Reading {
	if r.driver == nil || (r.driver.failing && !now.Before(r.retryAt)) {
		if now.Before(r.retryAt) {
			return *r.latest.Load()
		}
		r.retryAt = now.Add(retryEvery)
		r.close()
		d, err := open(r.path)
		if err != nil {
			return without(*r.latest.Load(), problem(r.path, err))
		}
		r.driver = d
	}
	return r.driver.read()
}

func (r *Reader) close() {
	if r.driver != nil {
		r.driver.close()
		r.driver = nil
	}
}

// Latest returns the last reading, or one that says that the driver hangs.
func (r *Reader) Latest(now time.Time) Reading {
	last := *r.latest.Load()
	began := r.busy.Load()
	if began == 0 || now.Sub(time.Unix(0, began)) < Deadline {
		return last
	}
	return hung(last)
}

// without returns the reading without a driver: GPUs that were there before are
// lost, not gone.
func without(last Reading, problem string) Reading {
	now := Reading{Present: len(last.GPUs) > 0, Driver: last.Driver, Problem: problem}
	for _, g := range last.GPUs {
		now.GPUs = append(now.GPUs, &fleetpb.Gpu{Uuid: g.GetUuid(), Name: g.GetName(), Lost: true, Missing: figureNames()})
	}
	return now
}

// hung returns what is left of a reading when the driver answers no more: the
// GPUs by name, without a figure.
func hung(last Reading) Reading {
	silent := Reading{Present: last.Present, Driver: last.Driver, Problem: fmt.Sprintf("nvml: no answer for %s", Deadline)}
	for _, g := range last.GPUs {
		silent.GPUs = append(silent.GPUs, &fleetpb.Gpu{Uuid: g.GetUuid(), Name: g.GetName(), Missing: figureNames()})
	}
	return silent
}
