package kvevents

import (
	"errors"
	"fmt"
	"time"
)

// What messages take of a program's memory is bounded for all publishers together, however
// many there are: each may send a light message at any time; of heavy ones so many are
// received, and of all so many are decoded. What publishes more waits, in its own buffers.
const (
	// publishers is how many may be connected, to all listeners together.
	publishers = 1024
	// light is up to what size a message is received beside others, in bytes.
	light = 32 << 10
	// readBuffer is what is read of a connection at once, in bytes.
	readBuffer = 8 << 10
	// heavies is how many larger ones are received at a time, and decoders how many
	// messages are decoded: one takes up to 32 MiB then.
	heavies, decoders = 2, 2
	// heavyWait is how long a heavy message may take to come once it is its turn, and how
	// long it waits for that.
	heavyWait = 10 * time.Second
)

// Memory is what all messages and publishers together may take, in bytes.
const Memory = publishers*(2*light+readBuffer) + heavies*2*maxMessage + decoders*32<<20

// Shared by all Followers of the process, as its memory is.
var (
	places  = make(chan struct{}, publishers)
	turns   = make(chan struct{}, heavies)
	batches = func() chan *Batch {
		c := make(chan *Batch, decoders)
		for range decoders {
			c <- new(Batch)
		}
		return c
	}()
)

var errPlace = fmt.Errorf("%d publishers are connected; no more are followed", publishers)

var errTurn = errors.New("too many large messages at a time")

// claim waits for the turn of a message that is heavy; it must come in time then.
func (p *peer) claim() error {
	if p.heavy {
		return nil
	}
	wait := time.NewTimer(heavyWait)
	defer wait.Stop()
	select {
	case turns <- struct{}{}:
		p.heavy = true
		return p.conn.SetReadDeadline(time.Now().Add(heavyWait))
	case <-wait.C:
		return errTurn
	}
}

// release gives the turn to the next; without one it does nothing.
func (p *peer) release() error {
	if !p.heavy {
		return nil
	}
	<-turns
	p.heavy = false
	return p.conn.SetReadDeadline(time.Time{})
}
