package probe

import (
	"errors"
	"time"

	"millrace.dev/millrace/internal/scrape"
)

// How often an endpoint is probed.
const (
	// probeFirst is between two probes of one that works or changes.
	probeFirst = 250 * time.Millisecond
	// probeMost is between two pages of metrics of one that has long been idle.
	probeMost = 10 * time.Second
	// healthIdle is between two questions for the health of one, whatever its metrics: they
	// cost little, and the first request after its death must not be who finds it.
	healthIdle = 1500 * time.Millisecond
	// healthAgain is between two questions for the health of one whose metrics come: these may
	// still do so when its core is dead.
	healthAgain = time.Second
	// probeSlower is by how much each probe that finds nothing new delays the next.
	probeSlower = 1.5
	// probesMost bounds the probes of all endpoints, per second: 1,000 loaded ones
	// are probed once a second each.
	probesMost = 1000
	// probeLost is between two probes of one that does not answer, at first and at
	// most.
	probeLost, probeLostMost = 500 * time.Millisecond, 2 * time.Second
	// probeWait is how long an endpoint may take to answer.
	probeWait = 2 * time.Second
	// pageAgain is between two tries for metrics that fail on an endpoint that
	// lives.
	pageAgain = 15 * time.Second
)

// silentProbes in a row without any answer make an endpoint NotReady; the first
// makes it Suspect.
const silentProbes = 3

// vital judges whether an endpoint lives, by what probes of it found.
//
//   - It answers, and doesn't say that it is unwell (5xx on /health): Ready at once.
//   - It says so (a model still loading, a dead core), nobody listens, or the
//     connection is cut: NotReady at once.
//   - Silence: Suspect at once, which others are preferred to; NotReady at the third
//     time. A busy server may be late; one that hangs never answers.
type vital struct {
	state  State
	err    error // why it is not Ready
	silent int   // probes in a row
	lost   int   // probes in a row that found it not Ready
}

// probed takes in what a probe came to: nil is an answer.
func (v *vital) probed(err error) {
	v.err = err
	switch {
	case err == nil:
		v.state, v.silent, v.lost = Ready, 0, 0
		return
	case errors.Is(err, scrape.ErrSilent):
		v.silent++
		if v.silent >= silentProbes {
			v.state = NotReady
		} else if v.state == Ready {
			v.state = Suspect
		}
	default:
		v.state, v.silent = NotReady, 0
	}
	v.lost++
}

// alive reports whether an answer to the question for health, err, is one of a server
// that takes requests. What it doesn't know it answers with 404 or the like.
func alive(err error) error {
	var status scrape.StatusError
	if errors.As(err, &status) && status < 500 {
		return nil
	}
	return err
}

// pause returns how long to wait for the next probe after one that came last so long
// ago: busy is whether something moves there, n is how many endpoints there are.
func (v *vital) pause(last time.Duration, busy bool, n int) time.Duration {
	least := leastPause(n)
	switch {
	case v.lost > 0:
		return max(least, min(probeLost<<min(v.lost-1, 8), probeLostMost))
	case busy:
		return least
	default:
		return max(least, min(time.Duration(float64(max(last, probeFirst))*probeSlower), max(probeMost, least)))
	}
}

// healthPause is between two questions for the health of one of n endpoints that are idle.
func healthPause(n int) time.Duration { return max(healthIdle, 2*leastPause(n)) }

// leastPause is between two probes of one of n endpoints.
func leastPause(n int) time.Duration {
	return max(probeFirst, time.Duration(n)*time.Second/probesMost)
}
