package stream

import (
	"time"

	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"

	"millrace.dev/millrace/extproc/internal/flow"
)

// stream is one stream of Envoy.
type stream = grpc.BidiStreamingServer[extproc.ProcessingRequest, extproc.ProcessingResponse]

// receiver reads what Envoy sends. While a request waits it reads one message ahead:
// so it is seen when the client gives up.
type receiver struct {
	st    stream
	in    *inbound // the message in hand
	spare *inbound // the one that is read ahead
	// ahead has room for what comes of reading ahead; nil: nothing is read ahead.
	ahead chan error
}

// next returns the next message. The last one must not be used any more.
func (r *receiver) next() (*inbound, error) {
	r.in.reset()
	if r.ahead == nil {
		return r.in, r.st.RecvMsg(r.in)
	}
	err := <-r.ahead
	r.ahead = nil
	r.in, r.spare = r.spare, nil
	return r.in, err
}

// wait waits until the wait of the exchange ends; false: Envoy has ended the stream.
func (r *receiver) wait(x *Exchange) (flow.Outcome, bool) {
	ticket := x.Waits()
	select {
	case o := <-ticket.C:
		return o, true
	default:
	}
	if r.ahead == nil {
		r.readAhead()
	}
	ahead := r.ahead
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case o := <-ticket.C:
			return o, true
		case err := <-ahead:
			r.ahead <- err // for next
			if err != nil {
				return flow.Outcome{}, false
			}
			ahead = nil
		case now := <-timer.C:
			x.Tick(now)
			timer.Reset(min(tickEvery, max(time.Millisecond, ticket.Until().Sub(now))))
		}
	}
}

// readAhead begins to read the next message. It ends when there is one, or when the
// stream ends, which it does at the latest when Process has returned.
func (r *receiver) readAhead() {
	spare, ahead, st := new(inbound), make(chan error, 1), r.st
	r.spare, r.ahead = spare, ahead
	go func() { ahead <- st.RecvMsg(spare) }() // which may outlast r
}

// close lets go of the message in hand, and of the stream.
func (r *receiver) close() {
	r.in.reset()
	*r = receiver{}
}
