package fleet

import (
	"errors"
	"time"

	"millrace.dev/millrace/extproc/internal/pick"
	"millrace.dev/millrace/internal/scrape"
)

// How often a plain endpoint is looked at.
const (
	// lookFirst is between two looks at an endpoint that works or changes.
	lookFirst = 250 * time.Millisecond
	// lookMost is between two looks at one that has long been idle.
	lookMost = 10 * time.Second
	// lookSlower is by how much each look that finds nothing new delays the next.
	lookSlower = 1.5
	// looksMost bounds the looks at all endpoints, per second: 1,000 loaded ones
	// are looked at once a second each.
	looksMost = 1000
	// lookLost is between two looks at one that does not answer, at first and at
	// most.
	lookLost, lookLostMost = 500 * time.Millisecond, 2 * time.Second
	// lookWait is how long an endpoint may take to answer.
	lookWait = 2 * time.Second
	// pageAgain is between two tries for metrics that fail on an endpoint that
	// lives.
	pageAgain = 15 * time.Second
)

// silentLooks in a row without any answer make an endpoint NotReady; the first
// makes it Suspect.
const silentLooks = 3

// vital judges whether an endpoint lives, by what looks at it found.
//
//   - It answers, and doesn't say that it is unwell (5xx on /health): Ready at once.
//   - It says so (a model still loading, a dead core), nobody listens, or the
//     connection is cut: NotReady at once.
//   - Silence: Suspect at once, which others are preferred to; NotReady at the third
//     time. A busy server may be late; one that hangs never answers.
type vital struct {
	state  pick.State
	silent int // looks in a row
	lost   int // looks in a row that found it not Ready
}

// look takes in what asking came to: nil is an answer.
func (v *vital) look(err error) {
	switch {
	case err == nil:
		v.state, v.silent, v.lost = pick.Ready, 0, 0
		return
	case errors.Is(err, scrape.ErrSilent):
		v.silent++
		if v.silent >= silentLooks {
			v.state = pick.NotReady
		} else if v.state == pick.Ready {
			v.state = pick.Suspect
		}
	default:
		v.state, v.silent = pick.NotReady, 0
	}
	v.lost++
}

// alive tells whether an answer to the question for health, err, is one of a server
// that takes requests. What it doesn't know it answers with 404 or the like.
func alive(err error) error {
	var status scrape.StatusError
	if errors.As(err, &status) && status < 500 {
		return nil
	}
	return err
}

// pause returns how long to wait for the next look after one that came last so long
// ago: busy tells whether something moves there, n is how many endpoints there are.
func (v *vital) pause(last time.Duration, busy bool, n int) time.Duration {
	least := max(lookFirst, time.Duration(n)*time.Second/looksMost)
	switch {
	case v.lost > 0:
		return max(least, min(lookLost<<min(v.lost-1, 8), lookLostMost))
	case busy:
		return least
	default:
		return max(least, min(time.Duration(float64(max(last, lookFirst))*lookSlower), max(lookMost, least)))
	}
}
