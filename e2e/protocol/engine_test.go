package protocol

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
)

// engine is a server that answers with what it got.
type engine struct {
	port int
	// waits is how many answers hang now.
	waits atomic.Int64
}

// Headers by which tests say what an engine should answer.
const (
	// wantBytes asks for an answer of so many bytes, and a trailer behind it.
	wantBytes = "x-want-bytes"
	// wantHang asks for an answer that never ends.
	wantHang = "x-want-hang"
)

// account is what an engine got of a request.
type account struct {
	Engine string      `json:"engine"`
	Sum    string      `json:"sum"`
	Bytes  int         `json:"bytes"`
	Length int64       `json:"length"`
	Path   string      `json:"path"`
	Header http.Header `json:"header"`
	Tail   http.Header `json:"tail"`
}

func newEngine(t *testing.T) *engine {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{port: ln.Addr().(*net.TCPAddr).Port}
	srv := &http.Server{Handler: e}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	return e
}

// ServeHTTP answers with an account of the request, or as its headers say.
func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get(wantHang) != "" {
		e.hang(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client has gone
	}
	a := account{
		Engine: address(e.port), Sum: sum(body), Bytes: len(body), Length: r.ContentLength,
		Path: r.URL.Path, Header: r.Header, Tail: r.Trailer,
	}
	b, err := json.Marshal(a)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if n, err := strconv.Atoi(r.Header.Get(wantBytes)); err == nil {
		b = text(n)
		w.Header().Set("trailer", "x-sum")
		defer w.Header().Set("x-sum", sum(b))
	}
	_, _ = w.Write(b)
}

// hang begins an answer and ends it when the client goes.
func (e *engine) hang(w http.ResponseWriter, r *http.Request) {
	e.waits.Add(1)
	defer e.waits.Add(-1)
	_, _ = io.WriteString(w, "data: {}\n\n")
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// text is n bytes that don't repeat soon.
func text(n int) []byte {
	b := make([]byte, 0, n+20)
	for i := 0; len(b) < n; i++ {
		b = strconv.AppendInt(append(b, 'a'+byte(i%26)), int64(i)*7919, 10)
	}
	return b[:n]
}
