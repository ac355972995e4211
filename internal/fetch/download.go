package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"millrace.dev/millrace/internal/regular"
)

// download is the fetching of a file from one place.
type download struct {
	c    *Client
	f    File
	url  *url.URL
	part string // path of what there is until it is whole

	want   string // hash; empty: not known yet
	learnt string
	from   validator
}

// validator says which content a part belongs to. It is kept beside it.
type validator struct {
	// Host it came from, ETag its strong one there (empty: it had none), Size of all of it
	// (0: not known), SHA256 its hash (empty: not known), Learnt how that is known.
	Host   string `json:"host"`
	ETag   string `json:"etag,omitempty"`
	Size   int64  `json:"size,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
	Learnt string `json:"learnt,omitempty"`
}

func (d *download) run(ctx context.Context) (Got, error) {
	d.want, d.learnt = d.f.SHA256, Given
	d.load()
	failures, fresh := 0, false
	for {
		before := d.size()
		err := d.attempt(ctx)
		if err == nil {
			got, bad := d.finish()
			if bad == nil || !errors.Is(bad, ErrMismatch) || fresh || before == 0 {
				if errors.Is(bad, ErrMismatch) {
					d.drop()
				}
				return got, bad
			}
			// What was there before may be of other content: once more, from the beginning.
			d.drop()
			fresh = true
			continue
		}
		if f := (final{}); ctx.Err() != nil || errors.As(err, &f) {
			return Got{}, err
		}
		if d.size()-before >= d.c.Limits.Progress {
			failures = 0
		}
		if failures++; failures >= d.c.Limits.Tries {
			return Got{}, fmt.Errorf("%w (%d tries)", err, failures)
		}
		if !d.pause(ctx, failures, err) {
			return Got{}, ctx.Err()
		}
	}
}

// pause waits after a failure, as long as the server asked for or as the count says.
func (d *download) pause(ctx context.Context, failures int, err error) bool {
	pause := d.c.Limits.Backoff << (failures - 1)
	if w := (wait{}); errors.As(err, &w) {
		pause = w.pause
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(pause):
		return true
	}
}

func (d *download) size() int64 {
	st, err := os.Stat(d.part)
	if err != nil {
		return 0
	}
	return st.Size()
}

func (d *download) drop() {
	_ = os.Remove(d.part)
	_ = os.Remove(d.part + ".json")
	d.from = validator{}
	if d.want, d.learnt = d.f.SHA256, Given; d.want == "" {
		d.learnt = ""
	}
}

// maxNote is more than the note beside a part has, in bytes: a URL, an ETag and a hash.
const maxNote = 1 << 20

// load finds out whether the part that is there can be continued: it is from this host and
// has a strong ETag, or its hash is known and will be checked. Others begin anew.
func (d *download) load() {
	b, err := regular.Read(d.part+".json", maxNote)
	if err != nil || json.Unmarshal(b, &d.from) != nil {
		d.drop()
		return
	}
	v := d.from
	switch {
	case d.f.SHA256 != "" && v.SHA256 != "" && v.SHA256 != d.f.SHA256, d.f.Size > 0 && v.Size > 0 && v.Size != d.f.Size:
		d.drop() // the part of something else
	case d.f.SHA256 == "" && v.SHA256 == "" && (v.ETag == "" || v.Host != d.url.Host):
		d.drop()
	}
	if d.want == "" && d.from.SHA256 != "" {
		d.want, d.learnt = d.from.SHA256, d.from.Learnt
	}
}

// save keeps what the part belongs to, before its first byte is written.
func (d *download) save() error {
	b, err := json.Marshal(d.from)
	if err != nil {
		return err
	}
	return regular.Write(d.part+".json", append(b, '\n'), 0o644)
}

// attempt asks once, and writes what comes. nil: the part is whole.
func (d *download) attempt(ctx context.Context) error {
	have := d.size()
	if total := d.total(); total > 0 && have == total {
		return nil
	}
	headers := http.Header{}
	if have > 0 {
		headers.Set("Range", "bytes="+strconv.FormatInt(have, 10)+"-")
		if d.from.ETag != "" && d.from.Host == d.url.Host {
			headers.Set("If-Range", d.from.ETag)
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a := &asker{c: d.c}
	resp, err := a.do(ctx, d.url, headers)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	at, err := d.begin(resp, a, have)
	if err != nil || at < 0 {
		return err
	}
	if err := d.sidecar(ctx); err != nil {
		return err
	}
	d.from.SHA256, d.from.Learnt = d.want, d.learnt
	if err := d.save(); err != nil {
		return final{err}
	}
	if err := d.c.Room(filepath.Dir(d.part), d.total()-at); err != nil {
		return final{err}
	}
	return d.copy(ctx, cancel, resp.Body, at)
}

// total is the size of the whole file; 0: not known.
func (d *download) total() int64 { return max(d.f.Size, d.from.Size) }

// begin returns at which byte the response's body begins; -1: the part is whole.
func (d *download) begin(resp *http.Response, a *asker, have int64) (int64, error) {
	total, at := int64(-1), int64(0)
	switch resp.StatusCode {
	case http.StatusOK:
		total = resp.ContentLength
	case http.StatusPartialContent:
		s, err := parseSpan(resp.Header.Get("Content-Range"))
		switch {
		case err != nil:
			return 0, final{err}
		case s.first != have:
			d.drop()
			return 0, fmt.Errorf("asked for byte %d, it sent byte %d", have, s.first)
		case d.total() > 0 && s.total >= 0 && s.total != d.total(), d.changed(resp):
			d.drop()
			return 0, errors.New("the content has changed on the server")
		}
		total, at = s.total, have
	case http.StatusRequestedRangeNotSatisfiable:
		if s, err := parseSpan(resp.Header.Get("Content-Range")); err == nil && s.total == have && have > 0 {
			d.from.Size = have
			return -1, nil // everything was there, but nobody knew
		}
		if have == 0 {
			return 0, final{errors.New("HTTP 416 without a range asked for")}
		}
		d.drop()
		return 0, errors.New("HTTP 416: what was there is longer than the file")
	default:
		return 0, refused(resp, d.c.Limits.MaxWait)
	}
	return at, d.declared(resp, a, total, at)
}

// changed reports whether a response continues other content than the part's.
func (d *download) changed(resp *http.Response) bool {
	tag := resp.Header.Get("Etag")
	return tag != "" && d.from.ETag != "" && d.from.Host == d.url.Host && tag != d.from.ETag
}

// declared compares what a server says of the content with what is known, and keeps it.
func (d *download) declared(resp *http.Response, a *asker, total, at int64) error {
	if a.linkedSize >= 0 && total < 0 {
		total = a.linkedSize
	}
	for _, n := range []int64{total, a.linkedSize} {
		if n >= 0 && d.f.Size > 0 && n != d.f.Size {
			return final{fmt.Errorf("%d bytes, must be %d: %w", n, d.f.Size, ErrMismatch)}
		}
	}
	if a.linkedSize >= 0 && total >= 0 && a.linkedSize != total {
		return final{fmt.Errorf("%d bytes, its own link says %d: %w", total, a.linkedSize, ErrMismatch)}
	}
	if a.linked != "" && d.f.SHA256 != "" && a.linked != d.f.SHA256 {
		return final{fmt.Errorf("sha256 is %s, must be %s: %w", a.linked, d.f.SHA256, ErrMismatch)}
	}
	if at == 0 {
		d.drop()
	}
	if d.want == "" && a.linked != "" {
		d.want, d.learnt = a.linked, Linked
	}
	d.from.Host, d.from.Size = d.url.Host, max(total, 0)
	if d.from.ETag = resp.Header.Get("Etag"); strings.HasPrefix(d.from.ETag, "W/") {
		d.from.ETag = "" // a weak one may be of other bytes
	}
	return nil
}

// maxSidecar is the most that is read of a file with a hash, in bytes.
const maxSidecar = 4 << 10

// sidecar looks for the hash beside the file, where nobody has given it. That there is
// none, or that it can't be had, is no error.
func (d *download) sidecar(ctx context.Context) error {
	if d.want != "" || !d.f.Sidecar {
		return nil
	}
	beside := *d.url
	beside.Path += ".sha256"
	beside.RawPath = ""
	text, _, err := d.c.Text(ctx, &beside, maxSidecar)
	if err != nil {
		return ctx.Err()
	}
	if found := sum(string(text)); found != "" {
		d.want, d.learnt = found, Sidecar
	}
	return nil
}

// errSlow ends a response that comes too slowly.
var errSlow = errors.New("too slow")

// copy appends a body to the part, from the byte at on.
func (d *download) copy(ctx context.Context, cancel context.CancelCauseFunc, body io.Reader, at int64) error {
	out, err := regular.OpenFile(d.part, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return final{err}
	}
	defer out.Close()
	if err := out.Truncate(at); err != nil {
		return final{err}
	}
	if _, err := out.Seek(at, io.SeekStart); err != nil {
		return final{err}
	}
	most := d.total() - at
	if d.total() == 0 {
		free, err := d.c.Free(filepath.Dir(d.part))
		if err != nil {
			return final{err}
		}
		most = free
	}
	w := &watched{d: d, out: out, done: at, limits: d.c.Limits, cancel: cancel}
	stop := w.start()
	_, err = io.Copy(w, io.LimitReader(body, most+1))
	stop()
	switch total := d.total(); {
	case w.failed != nil:
		return final{w.failed}
	case errors.Is(context.Cause(ctx), errSlow):
		return fmt.Errorf("%w: less than %d bytes in %s", errSlow, d.c.Limits.MinBytes, d.c.Limits.Stall)
	case ctx.Err() != nil:
		return ctx.Err()
	case w.done-at > most:
		d.drop()
		return final{fmt.Errorf("more than the %d bytes that it announced: %w", total, ErrMismatch)}
	case err != nil || total > 0 && w.done < total:
		return fmt.Errorf("it was cut off after %d of %d bytes", w.done, total)
	}
	return nil
}

// finish gives a whole part its final name, if it is what it must be.
func (d *download) finish() (Got, error) {
	in, err := regular.Open(d.part)
	if err != nil {
		return Got{}, err
	}
	defer in.Close()
	var h hash.Hash = sha256.New()
	n, err := io.Copy(h, in)
	if err != nil {
		return Got{}, err
	}
	got := Got{SHA256: hex.EncodeToString(h.Sum(nil)), Learnt: d.learnt, Size: n, From: Shown(d.url)}
	switch {
	case d.want == "":
		got.Learnt = First
	case d.want != got.SHA256:
		return Got{}, fmt.Errorf("sha256 is %s, must be %s: %w", got.SHA256, d.want, ErrMismatch)
	}
	if d.f.Check != nil {
		if err := d.f.Check(d.part); err != nil {
			d.drop()
			return Got{}, fmt.Errorf("it has its hash, but: %w: %w", ErrMismatch, err)
		}
	}
	if err := errors.Join(in.Sync(), os.Rename(d.part, d.f.To)); err != nil {
		return Got{}, err
	}
	_ = os.Remove(d.part + ".json")
	return got, nil
}
