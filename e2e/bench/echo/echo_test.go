package echo

import (
	"net"
	"testing"
	"time"

	"millrace.dev/millrace/e2e/epdriver"
)

func TestEchoNamesItsHostInEveryMode(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = Serve(ln, "127.0.0.1:9") }()
	t.Cleanup(func() { _ = ln.Close() })
	corpus := epdriver.NewCorpus("m", 100<<10, 4, 2) // more than one piece
	for _, mode := range []epdriver.Mode{epdriver.Buffered, epdriver.FullDuplex, epdriver.Headers} {
		t.Run(string(mode), func(t *testing.T) {
			r, err := epdriver.Run(t.Context(), epdriver.Config{
				Addr: ln.Addr().String(), Mode: mode, Clients: 2, For: time.Second, Corpus: corpus, Usage: "prompt=1",
			})
			if err != nil {
				t.Fatal(err)
			}
			if r.Decisions == 0 || r.Nowhere != 0 || len(r.Errors) != 0 || r.Hosts != 1 {
				t.Errorf("got %+v; want decisions, all for one host", r)
			}
		})
	}
}
