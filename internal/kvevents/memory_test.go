package kvevents

import (
	"encoding/binary"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"millrace.dev/millrace/internal/blocks"
)

// TestMemoryOfAllPublishers has many publishers send, at the same time, the largest
// messages whose decoding takes the most: numbers of one byte that become words.
func TestMemoryOfAllPublishers(t *testing.T) {
	const publishers = 24
	listen := free(t)
	e := follow(t, Source{Listen: listen})
	go func() {
		for range e.changes { // as many as publishers go
		}
	}()
	payload := heaviest(maxWords, maxMessage-1024)
	var most atomic.Uint64
	stop := make(chan struct{})
	var sampled sync.WaitGroup
	sampled.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				if m.HeapAlloc > most.Load() {
					most.Store(m.HeapAlloc)
				}
			}
		}
	})
	var all sync.WaitGroup
	for range publishers {
		conn := dial(t, listen)
		p := greet(t, conn, "")
		all.Go(func() {
			for seq := range uint64(2) {
				last := binary.BigEndian.AppendUint64([]byte{flagLong}, uint64(len(payload)))
				for _, b := range [][]byte{frame(flagMore, []byte("kv")), frame(flagMore, binary.BigEndian.AppendUint64(nil, seq)), last, payload} {
					if _, err := conn.Write(b); err != nil {
						return // it had to wait for too long
					}
				}
			}
			p.conn.Close()
		})
	}
	all.Wait()
	close(stop)
	sampled.Wait()
	if got := most.Load() >> 20; got > 256 {
		t.Errorf("%d publishers took %d MiB", publishers, got)
	} else {
		t.Logf("%d publishers took %d MiB", publishers, got)
	}
	// A small one is taken in as before.
	p := greet(t, dial(t, listen), "")
	p.say(0, []byte("not a batch"))
	if k, _ := e.blocks.Knowledge(); k == blocks.Whole {
		t.Error("a message that was refused is taken for the first")
	}
}

// heaviest is a batch of one event with so many hashes of a byte each, and a text behind
// it that nobody knows.
func heaviest(hashes, size int) []byte {
	b := append([]byte{0x94, 0x01, 0x91, 0x92, 0xac}, "BlockRemoved"...)
	b = binary.BigEndian.AppendUint32(append(b, 0xdd), uint32(hashes))
	b = append(b, make([]byte, hashes)...)
	rest := size - len(b) - 6
	b = binary.BigEndian.AppendUint32(append(b, 0xc0, 0xdb), uint32(rest))
	return append(b, make([]byte, rest)...)
}

func free(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	for began := time.Now(); ; {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		if time.Since(began) > 10*time.Second {
			t.Fatal(err)
		}
	}
}
