package scrape

import (
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"

	"millrace.dev/millrace/internal/secret"
	"millrace.dev/millrace/internal/wire"
)

// maxPage bounds a page, in bytes: engines show some tens of kilobytes.
const maxPage = 4 << 20

// ErrSilent says that nothing came within the time that the context gave.
var ErrSilent = errors.New("no answer in time")

// ErrGone says that nobody listens there, or that the connection was cut.
var ErrGone = errors.New("nobody answers")

// StatusError is an answer other than 200.
type StatusError int

// Error names the status.
func (e StatusError) Error() string { return fmt.Sprintf("status %d", int(e)) }

// Client fetches pages. It keeps a connection to each server open.
type Client struct {
	http lines           // for http
	tls  *http.Transport // for https
}

// NewClient returns a client. It uses no proxy: engines are near.
func NewClient() *Client { return NewClientTLS(nil) }

// NewClientTLS returns a client whose connections over TLS are made as config says at the time;
// nil: as is usual.
func NewClientTLS(config func() (*tls.Config, error)) *Client {
	c := &Client{
		http: lines{idle: map[string]*line{}},
		tls: &http.Transport{
			DialContext:         dialer.DialContext,
			DisableCompression:  true, // unpacking costs more than reading: it is not asked for
			MaxIdleConnsPerHost: 1,
			IdleConnTimeout:     wire.ClientIdle,
			ReadBufferSize:      readBuffer,
			WriteBufferSize:     1 << 10,
		},
	}
	if config != nil {
		c.tls.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			now, err := config()
			if err != nil {
				return nil, err
			}
			ctx, cancel := context.WithTimeout(ctx, handshakeWait) // also if nobody waits any more
			defer cancel()
			d := tls.Dialer{NetDialer: &dialer, Config: now}
			return d.DialContext(ctx, network, addr)
		}
	}
	return c
}

// handshakeWait is how long a connection over TLS may take to be made.
const handshakeWait = 5 * time.Second

// Close closes the connections.
func (c *Client) Close() {
	c.http.close()
	c.tls.CloseIdleConnections()
}

// NewRequest returns a request for Get, which can be used again and again. Who asks, if the
// address says so, is in a header: nothing that prints the request's address shows it.
func NewRequest(address secret.URL) (*http.Request, error) {
	u, err := url.Parse(string(address))
	if err != nil {
		return nil, fmt.Errorf("%q is no URL", address) // that of url has the whole text in it
	}
	r := &http.Request{
		Method: http.MethodGet, URL: u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header,
	}
	if user := u.User; user != nil {
		u.User = nil
		password, _ := user.Password()
		r.Header = header.Clone()
		r.SetBasicAuth(user.Username(), password)
	}
	return r, nil
}

// header is that of every request: nobody changes it.
var header = http.Header{"User-Agent": {"millrace"}, "Accept": {"text/plain"}}

// Get reads the page into buf and returns it, with the buffer to be used next. The
// error is ErrSilent, ErrGone, a StatusError, or one of reading the answer.
func (c *Client) Get(ctx context.Context, r *http.Request, buf []byte) ([]byte, error) {
	status, buf, err := c.once(ctx, r, buf)
	if status == 0 && stale(err) && ctx.Err() == nil {
		// Any server may close one connection, new or old, before it has read the request:
		// it says nothing about the next one. Of one that has died, that is refused.
		status, buf, err = c.once(ctx, r, buf)
	}
	switch {
	case err != nil:
		return buf[:0], kind(ctx, err)
	case status != http.StatusOK:
		return buf[:0], StatusError(status)
	}
	return buf, nil
}

func (c *Client) once(ctx context.Context, r *http.Request, buf []byte) (int, []byte, error) {
	if r.URL.Scheme == "http" {
		return c.http.get(ctx, r, buf[:0])
	}
	return c.secret(ctx, r, buf[:0])
}

// secret fetches over TLS.
func (c *Client) secret(ctx context.Context, r *http.Request, buf []byte) (int, []byte, error) {
	resp, err := c.tls.RoundTrip(r.WithContext(ctx))
	if err != nil {
		return 0, buf, err
	}
	defer resp.Body.Close()
	buf, err = readPage(resp, buf)
	return resp.StatusCode, buf, err
}

// readPage reads the body of an answer, also if it is compressed though we did not ask for
// that: some servers, and proxies before them, do not care.
func readPage(resp *http.Response, buf []byte) ([]byte, error) {
	switch coding := resp.Header.Get("Content-Encoding"); coding {
	case "", "identity":
		return readAll(resp.Body, buf)
	case "gzip":
		r, err := gzip.NewReader(resp.Body)
		if err != nil {
			return buf, err
		}
		return readAll(r, buf)
	case "zstd":
		r, err := zstd.NewReader(resp.Body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*maxPage))
		if err != nil {
			return buf, err
		}
		defer r.Close()
		return readAll(r, buf)
	default:
		return buf, fmt.Errorf("content-encoding %.40q, which was not asked for", coding)
	}
}

// readAll is io.ReadAll into a buffer that there is already, with a bound.
func readAll(r io.Reader, b []byte) ([]byte, error) {
	for {
		if len(b) == cap(b) {
			b = append(b, make([]byte, max(4<<10, len(b)))...)[:len(b)]
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case len(b) > maxPage:
			return nil, fmt.Errorf("more than %d bytes", maxPage)
		case errors.Is(err, io.EOF):
			return b, nil
		case err != nil:
			return b, err
		}
	}
}

// kind says what an error of the network means for the server.
func kind(ctx context.Context, err error) error {
	var timeout net.Error
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return ErrSilent
	case errors.Is(err, syscall.ECONNREFUSED), stale(err):
		return fmt.Errorf("%w: %w", ErrGone, err)
	default:
		return err
	}
}
