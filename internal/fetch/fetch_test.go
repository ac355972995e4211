package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// content is what the servers have, unless a test says otherwise.
var content = bytes.Repeat([]byte("0123456789abcdef"), 20_000)

func sumOf(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// place is a server, and what it was asked.
type place struct {
	*httptest.Server
	mu     sync.Mutex
	ranges []string // header Range of each request for the file
	auth   []string // header Authorization of each request
}

// serve starts a server whose handler gets the number of the request, from 1.
func serve(t *testing.T, h func(n int, w http.ResponseWriter, r *http.Request)) *place {
	t.Helper()
	p := &place{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".sha256") && !strings.Contains(r.URL.Path, "beside") {
			http.NotFound(w, r)
			return
		}
		p.mu.Lock()
		p.ranges, p.auth = append(p.ranges, r.Header.Get("Range")), append(p.auth, r.Header.Get("Authorization"))
		n := len(p.ranges)
		p.mu.Unlock()
		h(n, w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *place) at(t *testing.T, path string) *url.URL {
	t.Helper()
	u, err := url.Parse(p.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// whole serves b as net/http does: ranges, If-Range, ETag.
func whole(w http.ResponseWriter, r *http.Request, b []byte, etag string) {
	if etag != "" {
		w.Header().Set("ETag", etag)
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// cut sends the head of a whole answer and ends the connection.
func cut(w http.ResponseWriter, b []byte, etag string, n int) {
	if etag != "" {
		w.Header().Set("ETag", etag)
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	_, _ = w.Write(b[:n])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func client() *Client {
	return &Client{
		Limits: Limits{
			Tries: 3, Backoff: time.Millisecond, Progress: 1000, Headers: 10 * time.Second,
			Stall: 10 * time.Second, MinBytes: 1, Redirects: 3, MaxWait: time.Second,
		},
		Free: func(string) (int64, error) { return 1 << 40, nil },
	}
}

// TestGet has servers do what they do in the field.
func TestGet(t *testing.T) {
	good := sumOf(content)
	changed := bytes.ToUpper(content)
	var elsewhere *place
	tests := []struct {
		name   string
		serve  func(n int, w http.ResponseWriter, r *http.Request)
		path   string // "/file" if empty
		file   File   // without To and URLs
		want   string // part of the error; empty: none
		is     error
		sum    string // good if empty
		learnt string
		ranges []string
	}{
		{
			name: "a whole file", file: File{SHA256: good}, learnt: Given, ranges: []string{""},
			serve: func(_ int, w http.ResponseWriter, r *http.Request) { whole(w, r, content, `"a"`) },
		},
		{
			name: "of a hash that nobody knows", learnt: First, ranges: []string{""},
			serve: func(_ int, w http.ResponseWriter, r *http.Request) { whole(w, r, content, "") },
		},
		{
			name: "of a hash that the place gives with its redirect", learnt: Linked,
			serve: func(n int, w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/blob" {
					whole(w, r, content, `"blob"`)
					return
				}
				w.Header().Set("X-Linked-Etag", `"`+good+`"`)
				w.Header().Set("X-Linked-Size", fmt.Sprint(len(content)))
				http.Redirect(w, r, "/blob", http.StatusFound)
			},
		},
		{
			name: "of another hash than the place gave", want: "must be " + good, is: ErrMismatch,
			serve: func(n int, w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Linked-Etag", `"`+good+`"`)
				whole(w, r, changed, "")
			},
		},
		{
			name: "of a hash in a file beside it", path: "/beside", file: File{Sidecar: true}, learnt: Sidecar,
			serve: func(n int, w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, ".sha256") {
					fmt.Fprintf(w, "%s  beside\n", good)
					return
				}
				whole(w, r, content, "")
			},
		},
		{
			name: "cut off, and continued", file: File{SHA256: good}, ranges: []string{"", "bytes=5000-", "bytes=9000-"}, learnt: Given,
			serve: func(n int, w http.ResponseWriter, r *http.Request) {
				switch n {
				case 1:
					cut(w, content, `"a"`, 5000)
				case 2:
					w.Header().Set("Content-Range", fmt.Sprintf("bytes 5000-%d/%d", len(content)-1, len(content)))
					w.Header().Set("ETag", `"a"`)
					w.WriteHeader(http.StatusPartialContent)
					_, _ = w.Write(content[5000:9000])
					w.(http.Flusher).Flush()
					panic(http.ErrAbortHandler)
				default:
					whole(w, r, content, `"a"`)
				}
			},
		},
		{
			name: "changed between cut and continuation", sum: sumOf(changed), ranges: []string{"", "bytes=5000-"}, learnt: First,
			serve: func(n int, w http.ResponseWriter, r *http.Request) {
				if n == 1 {
					cut(w, content, `"a"`, 5000)
				}
				whole(w, r, changed, `"b"`) // If-Range: all of it
			},
		},
		{
			name: "changed, on a server that ignores If-Range", sum: sumOf(changed), ranges: []string{"", "bytes=5000-", ""}, learnt: First,
			serve: func(n int, w http.ResponseWriter, r *http.Request) {
				if n == 1 {
					cut(w, content, `"a"`, 5000)
				}
				r.Header.Del("If-Range")
				whole(w, r, changed, `"b"`)
			},
		},
		{
			name: "changed, and nobody says so but the hash", file: File{SHA256: sumOf(changed)}, sum: sumOf(changed), ranges: []string{"", "bytes=5000-", ""}, learnt: Given,
			serve: func(n int, w http.ResponseWriter, r *http.Request) {
				if n == 1 {
					cut(w, content, "", 5000)
				}
				whole(w, r, changed, "")
			},
		},
		{
			name: "on a server without ranges", file: File{SHA256: good}, ranges: []string{"", "bytes=5000-"}, learnt: Given,
			serve: func(n int, w http.ResponseWriter, r *http.Request) {
				if n == 1 {
					cut(w, content, `"a"`, 5000)
				}
				r.Header.Del("Range")
				whole(w, r, content, `"a"`)
			},
		},
		{
			name: "on a server that sends another range than was asked for", file: File{SHA256: good}, ranges: []string{"", "bytes=5000-", ""}, learnt: Given,
			serve: func(n int, w http.ResponseWriter, r *http.Request) {
				if n == 1 {
					cut(w, content, `"a"`, 5000)
				}
				if n == 2 {
					r.Header.Set("Range", "bytes=0-")
				}
				whole(w, r, content, `"a"`)
			},
		},
		{
			name: "on a server that cuts off for ever", want: "it was cut off after 0 of 320000 bytes (3 tries)",
			serve: func(_ int, w http.ResponseWriter, _ *http.Request) { cut(w, content, "", 0) },
		},
		{
			name: "longer than it must be", file: File{Size: 10}, want: "320000 bytes, must be 10", is: ErrMismatch, ranges: []string{""},
			serve: func(_ int, w http.ResponseWriter, r *http.Request) { whole(w, r, content, "") },
		},
		{
			name: "longer than it must be, and it does not say", file: File{Size: 10}, want: "more than the 10 bytes", is: ErrMismatch, ranges: []string{""},
			serve: func(_ int, w http.ResponseWriter, _ *http.Request) {
				w.(http.Flusher).Flush()
				_, _ = w.Write(content)
			},
		},
		{
			name: "shorter than its link says", want: "its own link says 320001", is: ErrMismatch, ranges: []string{""},
			serve: func(_ int, w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Linked-Size", fmt.Sprint(len(content)+1))
				whole(w, r, content, "")
			},
		},
		{
			name: "another file than it must be", file: File{SHA256: good}, want: "sha256 is " + sumOf(changed), is: ErrMismatch, ranges: []string{""},
			serve: func(_ int, w http.ResponseWriter, r *http.Request) { whole(w, r, changed, "") },
		},
		{
			name: "what its check does not like", file: File{Check: func(string) error { return errors.New("a login page") }}, want: "a login page", is: ErrMismatch, ranges: []string{""},
			serve: func(_ int, w http.ResponseWriter, r *http.Request) { whole(w, r, content, "") },
		},
		{
			name: "denied", want: "HTTP 401", is: ErrDenied, ranges: []string{""},
			serve: func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
		},
		{
			name: "not there", want: "HTTP 404", is: ErrMissing, ranges: []string{""},
			serve: func(_ int, w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) },
		},
		{
			name: "416 for what was not asked for", want: "416", ranges: []string{""},
			serve: func(_ int, w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			},
		},
		{
			name: "416, as the file is shorter now", file: File{SHA256: good}, learnt: Given, ranges: []string{"", "bytes=5000-", ""},
			serve: func(n int, w http.ResponseWriter, r *http.Request) {
				switch n {
				case 1:
					cut(w, content, `"a"`, 5000)
				case 2:
					w.Header().Set("Content-Range", "bytes */100")
					w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				default:
					whole(w, r, content, `"a"`)
				}
			},
		},
		{
			name: "busy, and then not", file: File{SHA256: good}, learnt: Given, ranges: []string{"", ""},
			serve: func(n int, w http.ResponseWriter, r *http.Request) {
				if n == 1 {
					w.Header().Set("Retry-After", "0")
					w.WriteHeader(http.StatusTooManyRequests)
					return
				}
				whole(w, r, content, "")
			},
		},
		{
			name: "busy for an hour", want: "it asks to come back in 3600 s", ranges: []string{""},
			serve: func(_ int, w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", "3600")
				w.WriteHeader(http.StatusServiceUnavailable)
			},
		},
		{
			name: "broken for ever", want: "HTTP 500 (3 tries)", ranges: []string{"", "", ""},
			serve: func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		},
		{
			name: "redirected in a circle", want: "more than 3 redirects",
			serve: func(_ int, w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/again", http.StatusFound) },
		},
		{
			name: "redirected to another host", file: File{SHA256: good}, learnt: Given,
			serve: func(_ int, w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, strings.Replace(elsewhere.URL, "127.0.0.1", "localhost", 1)+"/blob?secret", http.StatusFound)
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			elsewhere = serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { whole(w, r, content, "") })
			p := serve(t, tt.serve)
			if tt.path == "" {
				tt.path = "/file"
			}
			f := tt.file
			f.To, f.URLs = filepath.Join(t.TempDir(), "new", "file"), []*url.URL{p.at(t, tt.path+"?sig=secret")}
			c := client()
			c.Token = func(host string) string {
				if host == f.URLs[0].Host {
					return "hush"
				}
				return ""
			}
			got, err := c.Get(t.Context(), f)
			if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Fatalf("Get() = %v, want %q", err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "hush")) {
				t.Errorf("Get() = %v: it shows a secret", err)
			}
			if tt.ranges != nil && !slices.Equal(p.ranges, tt.ranges) {
				t.Errorf("asked for ranges %q, want %q", p.ranges, tt.ranges)
			}
			if slices.ContainsFunc(p.auth, func(a string) bool { return a != "Bearer hush" }) || slices.ContainsFunc(elsewhere.auth, func(a string) bool { return a != "" }) {
				t.Errorf("authorization %q, elsewhere %q", p.auth, elsewhere.auth)
			}
			b, readErr := os.ReadFile(f.To)
			if err != nil {
				if readErr == nil {
					t.Error("there is a file under the final name")
				}
				return
			}
			if tt.sum == "" {
				tt.sum = good
			}
			if got.SHA256 != tt.sum || sumOf(b) != tt.sum || got.Learnt != tt.learnt || got.Size != int64(len(b)) {
				t.Errorf("got %+v of %d bytes, hash %s; want %s, %s", got, len(b), sumOf(b), tt.sum, tt.learnt)
			}
			if left, _ := filepath.Glob(f.To + ".*"); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// TestLaterProcessContinues has one cut off for good, and another continue with what it left.
func TestLaterProcessContinues(t *testing.T) {
	for _, tt := range []struct {
		name, etag, sum string
		want            string // range that the second asks for
	}{
		{"by its ETag", `"a"`, "", "bytes=7000-"},
		{"by its hash", "", sumOf(content), "bytes=7000-"},
		{"not by a weak ETag", `W/"a"`, "", ""},
		{"not by nothing", "", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			broken := true
			p := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				if broken && n > 1 {
					w.WriteHeader(http.StatusNotFound)
					return
				}
				if broken {
					cut(w, content, tt.etag, 7000)
				}
				whole(w, r, content, tt.etag)
			})
			f := File{To: filepath.Join(t.TempDir(), "file"), URLs: []*url.URL{p.at(t, "/file")}, SHA256: tt.sum}
			if _, err := client().Get(t.Context(), f); err == nil {
				t.Fatal("no error")
			}
			broken = false
			got, err := client().Get(t.Context(), f)
			if err != nil || got.SHA256 != sumOf(content) {
				t.Fatalf("Get() = %+v, %v", got, err)
			}
			if last := p.ranges[len(p.ranges)-1]; last != tt.want {
				t.Errorf("went on with range %q, want %q", last, tt.want)
			}
		})
	}
}

// TestNextPlace has the first places fail, each in its way, and the last one continue with what
// they sent.
func TestNextPlace(t *testing.T) {
	liar := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { whole(w, r, []byte("sorry"), "") })
	cuts := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		cut(w, content, `"x"`, 6000)
	})
	good := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { whole(w, r, content, `"y"`) })
	f := File{To: filepath.Join(t.TempDir(), "file"), SHA256: sumOf(content), URLs: []*url.URL{liar.at(t, "/f"), cuts.at(t, "/f"), good.at(t, "/f")}}
	got, err := client().Get(t.Context(), f)
	if err != nil || got.From != good.URL+"/f" {
		t.Fatalf("Get() = %+v, %v", got, err)
	}
	if !slices.Equal(good.ranges, []string{"bytes=6000-"}) {
		t.Errorf("the last was asked for %q", good.ranges)
	}
	f.To += "2"
	f.URLs = f.URLs[:2]
	if _, err = client().Get(t.Context(), f); err == nil || !strings.Contains(err.Error(), liar.URL) || !strings.Contains(err.Error(), cuts.URL) {
		t.Errorf("Get() = %v, want what each place said", err)
	}
}

// TestSlowPlace ends what comes too slowly, whatever it drips, and when the caller leaves.
func TestSlowPlace(t *testing.T) {
	for name, drip := range map[string]bool{"nothing comes": false, "it drips": true} {
		t.Run(name, func(t *testing.T) {
			p := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "1000000")
				w.WriteHeader(http.StatusOK)
				w.(http.Flusher).Flush()
				tick := time.NewTicker(5 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-r.Context().Done():
						return
					case <-tick.C:
					}
					if drip {
						_, _ = w.Write([]byte("x"))
						w.(http.Flusher).Flush()
					}
				}
			})
			f := File{To: filepath.Join(t.TempDir(), "file"), URLs: []*url.URL{p.at(t, "/file")}}
			c := client()
			c.Limits.Stall, c.Limits.MinBytes = 50*time.Millisecond, 1000
			if _, err := c.Get(t.Context(), f); err == nil || !strings.Contains(err.Error(), "too slow: less than 1000 bytes in 50ms (3 tries)") {
				t.Errorf("Get() = %v", err)
			}
			c.Limits.Stall = time.Hour
			ctx, cancel := context.WithCancel(t.Context())
			began := len(p.ranges)
			time.AfterFunc(20*time.Millisecond, cancel)
			if _, err := c.Get(ctx, f); !errors.Is(err, context.Canceled) || began == 0 {
				t.Errorf("Get() = %v, want it cancelled", err)
			}
		})
	}
}

// TestFullDisk finds out before the first byte that there is no room.
func TestFullDisk(t *testing.T) {
	p := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { whole(w, r, content, "") })
	f := File{To: filepath.Join(t.TempDir(), "file"), URLs: []*url.URL{p.at(t, "/file"), p.at(t, "/other")}}
	c := client()
	c.Free = func(string) (int64, error) { return 64<<20 + int64(len(content)) - 1, nil }
	_, err := c.Get(t.Context(), f)
	if !errors.Is(err, syscall.ENOSPC) || len(p.ranges) != 1 {
		t.Errorf("Get() = %v after %d requests, want ENOSPC after one", err, len(p.ranges))
	}
	if st, err := os.Stat(f.To + ".part"); err == nil {
		t.Errorf("%d bytes were written", st.Size())
	}
}

// TestTokenStaysSecret is not sent in plain text to another machine.
func TestTokenStaysSecret(t *testing.T) {
	for _, text := range []string{"http://models.invalid/file", "http://user:hush@models.invalid/file"} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		c := client()
		c.Token = func(string) string { return "hush" }
		c.Transport = roundTrip(func(*http.Request) (*http.Response, error) {
			t.Error("it was sent")
			return nil, io.EOF
		})
		_, err = c.Get(t.Context(), File{To: filepath.Join(t.TempDir(), "f"), URLs: []*url.URL{u}})
		if !errors.Is(err, ErrDenied) || strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "user") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestProgress is called with what there is.
func TestProgress(t *testing.T) {
	p := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 1 {
			cut(w, content, `"a"`, 5000)
		}
		whole(w, r, content, `"a"`)
	})
	last := int64(0)
	f := File{To: filepath.Join(t.TempDir(), "file"), URLs: []*url.URL{p.at(t, "/file")}, Progress: func(done, total int64) {
		if done < last || total != int64(len(content)) {
			t.Errorf("%d of %d after %d", done, total, last)
		}
		last = done
	}}
	if _, err := client().Get(t.Context(), f); err != nil || last != int64(len(content)) {
		t.Errorf("%v after %d bytes", err, last)
	}
}

func FuzzSpan(f *testing.F) {
	for _, s := range []string{"bytes 0-9/10", "bytes */10", "bytes 5-9/*", "bytes 9-5/10", "bytes 0-10/10", "octets 1-2/3", "bytes -1-2/3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseSpan(text)
		if err == nil && s.first >= 0 && (s.last < s.first || s.total >= 0 && s.last >= s.total) {
			t.Errorf("%q: %+v", text, s)
		}
	})
}

func FuzzSum(f *testing.F) {
	f.Add(sumOf(nil) + "  file\n")
	f.Fuzz(func(t *testing.T, text string) {
		if s := sum(text); s != "" && !isSum.MatchString(s) {
			t.Errorf("%q: %q", text, s)
		}
	})
}
