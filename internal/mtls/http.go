package mtls

import (
	"context"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"millrace.dev/millrace/internal/wire"
)

// Connections are made anew at least so often, or in a slice of the life of the
// program's certificate if that is less: the one at their other end will have changed.
// Idle ones of HTTP last for wire.ServerIdle in any case.
const (
	longestIdle = 5 * time.Minute
	longestAge  = 15 * time.Minute
)

// atMost returns most, or less where certificates live shortly.
func (s *Source) atMost(most time.Duration) time.Duration {
	return max(min(most, slice(s.current().leaf())), time.Second)
}

// Server sets up an HTTP server whose listener is a Listener, so that what, which is
// all that it serves, is had only by those who may. A connection whose peer's
// certificate nears its end is closed, in order, before it does: the next one shows
// the next certificate, and what runs on the old one is not cut.
func (s *Source) Server(srv *http.Server, what string) {
	inner := srv.Handler
	srv.IdleTimeout = max(s.atMost(longestIdle), wire.ServerIdle)
	srv.ErrorLog = log.New(io.Discard, "", 0) // a Listener logs what it refuses
	srv.Protocols.SetHTTP2(true)
	srv.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, &conn{began: time.Now()})
	}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at, last := time.Now(), false
		if c, ok := r.Context().Value(connKey{}).(*conn); ok && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			at, last = c.next(at, r.TLS.PeerCertificates[0])
		}
		id, err := Peer(r.TLS, at)
		if err == nil {
			err = Allow(id, Call{Server: s.id, Method: what})
		}
		if err != nil {
			s.Refused(r.RemoteAddr, err)
			w.Header().Set("Connection", "close")
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		if last {
			w.Header().Set("Connection", "close")
		}
		inner.ServeHTTP(w, r)
	})
}

// connKey is under which a request's context has its connection.
type connKey struct{}

// conn is a connection of the server's.
type conn struct {
	began     time.Time
	announced atomic.Bool // whether the peer has been sent word of its end
}

// next returns as of when the certificate of a request's peer is to be judged, and whether the
// connection is to be closed after the request. The first request near the end of the
// certificate, or after it, is served as when the connection began: the peer could not know, as
// its last one may have taken as long, and does not ask again what was refused.
func (c *conn) next(now time.Time, cert *x509.Certificate) (at time.Time, last bool) {
	if !renew(c.began, now, cert) {
		return now, false
	}
	if c.announced.CompareAndSwap(false, true) {
		return c.began, true
	}
	return now, true
}

// renew reports whether a connection that began before the end of its peer's
// certificate came near is near it now. One that began later stays.
func renew(began, now time.Time, c *x509.Certificate) bool {
	last := c.NotAfter.Add(-slice(c))
	return began.Before(last) && now.After(last)
}

// slice is the part of a certificate's life in which its end is near: certificates
// are to be replaced before.
func slice(c *x509.Certificate) time.Duration { return c.NotAfter.Sub(c.NotBefore) / 8 }
