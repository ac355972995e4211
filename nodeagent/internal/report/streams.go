package report

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/proc"
	"millrace.dev/millrace/xds/fleetpb"
)

const (
	// statusEvery is how often the engine is to say something.
	statusEvery = 250 * time.Millisecond
	// cacheEvery bounds how often a report is sent because of the cache alone: a
	// conversation continues as soon as that, and may be anybody's to route.
	cacheEvery = 200 * time.Millisecond
	// deaf is after how much silence the stream to the engine is made anew, in
	// case that it is the stream that hangs.
	deaf = 10 * time.Second
	// connectTimeout bounds how long a connection is waited for: the kernel
	// accepts one for a process that is stopped.
	connectTimeout = 5 * time.Second
	// assignTimeout bounds an Assign.
	assignTimeout = 5 * time.Second
	// unheard is how long data may go without an acknowledgement of the peer's
	// kernel before the connection counts as cut.
	unheard = 5 * time.Second
)

// errRenew ends a stream whose certificate comes to its end, while all is well.
var errRenew = errors.New("the certificate expires soon")

// errDeaf ends a stream to the engine that was silent for too long.
var errDeaf = errors.New("the engine's stream is silent")

// dialer returns a connection to an address. Every stream has a connection of
// its own, made anew after an error, so that the back-off is ours alone.
type dialer func(addr string, security grpc.DialOption) (*grpc.ClientConn, error)

func dialTCP(addr string, security grpc.DialOption) (*grpc.ClientConn, error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		err := c.Control(func(fd uintptr) {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unheard.Milliseconds()))
		})
		return errors.Join(err, set)
	}}
	return grpc.NewClient(addr,
		security,
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTimeout}),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", addr)
		}))
}

// dialEngine and dialXDS connect to the programs that are to be there, and no other.
func (r *Reporter) dialEngine() (*grpc.ClientConn, error) {
	return r.dial(r.cfg.Engine, r.cfg.Identity.DialOption(mtls.IsEngineOf(r.cfg.Node)))
}

func (r *Reporter) dialXDS(addr string) (*grpc.ClientConn, error) {
	return r.dial(addr, r.cfg.Identity.DialOption(mtls.Is(mtls.XDS)))
}

// retry calls once again and again until ctx ends, with a back-off after calls
// that did not last.
func retry(ctx context.Context, once func(context.Context)) {
	back := proc.Backoff{Min: 50 * time.Millisecond, Max: time.Second, Reset: 5 * time.Second}
	for ctx.Err() == nil {
		began := time.Now()
		once(ctx)
		select {
		case <-time.After(back.Next(time.Since(began))):
		case <-ctx.Done():
		}
	}
}

// listen delivers to the loop what the engine reports.
func (r *Reporter) listen(ctx context.Context) error {
	retry(ctx, func(ctx context.Context) {
		// The loop knows silence by itself, and a renewal takes no time.
		if err := r.listenOnce(ctx); !errors.Is(err, errDeaf) && !errors.Is(err, errRenew) {
			r.deliver(ctx, Lost{err})
		}
	})
	return nil
}

func (r *Reporter) listenOnce(ctx context.Context) error {
	conn, err := r.dialEngine()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := time.AfterFunc(deaf, func() { cancel(errDeaf) })
	defer patience.Stop()
	if at := r.cfg.Identity.Renewal(); !at.IsZero() {
		renewal := time.AfterFunc(time.Until(at), func() { cancel(errRenew) })
		defer renewal.Stop()
	}
	stream, err := enginepb.NewEngineClient(conn).Watch(ctx, &enginepb.WatchRequest{Interval: durationpb.New(statusEvery), Cache: true})
	for err == nil {
		var s *enginepb.Status
		if s, err = stream.Recv(); err == nil {
			patience.Reset(deaf)
			r.deliver(ctx, Received{s})
		}
	}
	if cause := context.Cause(ctx); errors.Is(cause, errDeaf) || errors.Is(cause, errRenew) {
		return cause
	}
	return err
}

// speak keeps the stream to the xds at an address, until ctx ends; one that is open when
// the address is left continues until it ends.
func (r *Reporter) speak(ctx context.Context, addr string, out *outbox) {
	trying, stop := context.WithCancel(ctx)
	defer stop()
	retry(trying, func(context.Context) {
		r.deliver(ctx, Down{addr, r.speakOnce(ctx, addr, out)})
		select {
		case <-out.left:
			stop()
		default:
		}
	})
}

func (r *Reporter) speakOnce(ctx context.Context, addr string, out *outbox) error {
	conn, err := r.dialXDS(addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	g, ctx := errgroup.WithContext(ctx)
	stream, err := fleetpb.NewFleetClient(conn).Report(ctx)
	if err != nil {
		return err
	}
	if !r.deliver(ctx, Up{addr}) {
		return ctx.Err()
	}
	g.Go(func() error { return r.receiveDirectives(ctx, addr, stream) })
	g.Go(func() error { return r.sendReports(ctx, out, stream) })
	return g.Wait()
}

func (r *Reporter) receiveDirectives(ctx context.Context, addr string, stream fleetpb.Fleet_ReportClient) error {
	for {
		d, err := stream.Recv()
		if err != nil {
			return err
		}
		r.deliver(ctx, Directed{addr, d})
	}
}

// sendReports sends until the stream ends. Why it ended is known to
// receiveDirectives, which ends ctx.
func (r *Reporter) sendReports(ctx context.Context, out *outbox, stream fleetpb.Fleet_ReportClient) error {
	var sent outgoing
	for {
		select {
		case <-ctx.Done():
			return nil
		case report := <-out.reports:
			if stream.Send(report.since(&sent)) != nil {
				<-ctx.Done()
				return nil
			}
			r.metrics.sent.Inc()
		}
	}
}

// since returns what is new in o, and makes o what was sent.
func (o outgoing) since(sent *outgoing) *fleetpb.NodeReport {
	r := fleetpb.Thin(sent.NodeReport, o.NodeReport)
	sent.NodeReport = o.NodeReport
	if r.GetEngine() != nil {
		r.Engine.Cache = o.cache.Since(sent.cache)
		sent.cache = o.cache
	}
	return r
}

// assign hands assignments to the engine, one at a time.
func (r *Reporter) assign(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case a := <-r.assignments:
			r.deliver(ctx, Assigned{a.Version(), r.assignOnce(ctx, a)})
		}
	}
}

func (r *Reporter) assignOnce(ctx context.Context, a *enginepb.Assignment) error {
	conn, err := r.dialEngine()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, assignTimeout)
	defer cancel()
	_, err = enginepb.NewEngineClient(conn).Assign(ctx, a)
	return err
}
