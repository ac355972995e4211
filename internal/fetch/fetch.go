// Package fetch downloads one file over HTTP, from the first of several places that has it.
//
// Called by models. Its one rule: nothing gets its final name unless it is whole, has the
// hash that it must have and passes the caller's check; what came of it until then lies
// beside, under the name ending in .part, and the next try continues there.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that callers distinguish. Others are of the network, of servers or of the disk.
var (
	// ErrMismatch is content that does not have the hash or the size that it must have.
	ErrMismatch = errors.New("not the content that it must be")
	// ErrDenied is a server that wants to know who asks, or does not like who does.
	ErrDenied = errors.New("access denied")
	// ErrMissing is a server that does not have the file.
	ErrMissing = errors.New("no such file")
)

// How a hash came to be known.
const (
	Given   = "given"   // by the caller
	Linked  = "server"  // by the header X-Linked-Etag of the place
	Sidecar = "sidecar" // by a file beside it, whose name ends in .sha256
	First   = "first"   // by nobody: it is that of what came
)

// Limits bound what a server may do to us.
type Limits struct {
	// Tries is how often in a row a place is asked that fails without having sent Progress
	// bytes, Backoff the pause after the first failure; it doubles.
	Tries    int
	Backoff  time.Duration
	Progress int64
	// Headers is how long a response may take to begin.
	Headers time.Duration
	// In each Stall at least MinBytes must come.
	Stall    time.Duration
	MinBytes int64
	// Redirects is how many are followed.
	Redirects int
	// MaxWait is the longest pause that a server may ask for by Retry-After.
	MaxWait time.Duration
}

// DefaultLimits suit gigabytes over the internet.
func DefaultLimits() Limits {
	return Limits{
		Tries: 5, Backoff: 500 * time.Millisecond, Progress: 1 << 20, Headers: 30 * time.Second,
		Stall: 30 * time.Second, MinBytes: 64 << 10, Redirects: 5, MaxWait: time.Minute,
	}
}

// Client downloads files.
type Client struct {
	// Limits of each download.
	Limits Limits
	// Token returns the bearer token for a host ("host:port" of a URL); empty: none. It is
	// sent to that host alone, and never in plain text but to this machine.
	Token func(host string) string
	// Free returns how many bytes a folder's disk has left.
	Free func(folder string) (int64, error)
	// Transport is for tests; nil: http.DefaultTransport's, with our limits.
	Transport http.RoundTripper
}

// File is what to fetch.
type File struct {
	// To is the path that it gets.
	To string
	// URLs are the places, in the order in which they are asked.
	URLs []*url.URL
	// SHA256 is its hash in hexadecimal digits; empty: it is learnt.
	SHA256 string
	// Size in bytes; 0: not known.
	Size int64
	// Sidecar is whether a hash that nobody gives is looked for in a file beside it.
	Sidecar bool
	// Check says why a whole file is not what it should be; nil: anything is.
	Check func(path string) error
	// Progress is called with how many bytes there are, and of how many (0: not known);
	// nil: nobody wants to know.
	Progress func(done, total int64)
}

// Got is what was fetched.
type Got struct {
	// SHA256 is its hash, Learnt how that came to be known, Size its bytes.
	SHA256, Learnt string
	Size           int64
	// From is the place, as it may be shown.
	From string
}

// Shown is a URL as it may be shown: without who asks, and without what is behind "?".
func Shown(u *url.URL) string {
	c := *u
	c.User, c.RawQuery, c.Fragment = nil, "", ""
	return c.String()
}

// isSum is what a SHA-256 looks like.
var isSum = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Get fetches a file. One caller at a time may fetch the same one.
func (c *Client) Get(ctx context.Context, f File) (Got, error) {
	if err := os.MkdirAll(filepath.Dir(f.To), 0o755); err != nil {
		return Got{}, err
	}
	var errs []error
	for _, u := range f.URLs {
		d := &download{c: c, f: f, url: u, part: f.To + ".part"}
		got, err := d.run(ctx)
		if err == nil {
			return got, nil
		}
		if local := (*os.PathError)(nil); ctx.Err() != nil || errors.Is(err, unix.ENOSPC) || errors.As(err, &local) {
			return Got{}, err // elsewhere it would be the same
		}
		errs = append(errs, fmt.Errorf("%s: %w", Shown(u), err))
	}
	if len(errs) == 0 {
		return Got{}, fmt.Errorf("%s: nowhere to fetch it from", filepath.Base(f.To))
	}
	return Got{}, errors.Join(errs...)
}

// Room says whether a folder's disk has room for so many bytes, and some more.
func (c *Client) Room(folder string, need int64) error {
	const reserve = 64 << 20
	free, err := c.Free(folder)
	if err != nil {
		return err
	}
	if need > free-reserve {
		return fmt.Errorf("%s: %d MB more are needed, %d MB are free: %w", folder, megabytes(need+reserve), megabytes(free), unix.ENOSPC)
	}
	return nil
}

func megabytes(n int64) int64 { return (n + 999_999) / 1_000_000 }

// Free is how many bytes a folder's disk has left for this user.
func Free(folder string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(folder, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: folder, Err: err}
	}
	return int64(min(st.Bavail, 1<<40)) * st.Bsize, nil
}

// sum returns the hash in a text such as sha256sum writes; empty: there is none.
func sum(text string) string {
	word, _, _ := strings.Cut(strings.TrimSpace(text), " ")
	if word = strings.ToLower(word); isSum.MatchString(word) {
		return word
	}
	return ""
}
