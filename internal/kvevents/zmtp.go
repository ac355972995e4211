package kvevents

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Bounds of what a publisher may send. Memory is taken as bytes come, not as they
// are announced.
const (
	// maxMessage bounds all parts of a message together, in bytes: some ten times what an
	// engine says of the longest prompt.
	maxMessage = 8 << 20
	maxParts   = 8
	maxCommand = 4 << 10
)

// handshakeWait is how long a peer may take to say who it is.
const handshakeWait = 10 * time.Second

// Flags of a frame (ZMTP 3.0, "Framing").
const (
	flagMore    = 1
	flagLong    = 2
	flagCommand = 4
)

var (
	errNotZMTP = errors.New("not a ZeroMQ peer")
	errTooLong = fmt.Errorf("more than %d bytes in a message", maxMessage)
)

// peer is a connection to a publisher: the subscriber's side of ZMTP 3.0 with the
// NULL mechanism, all that it takes to listen.
type peer struct {
	conn  net.Conn
	in    *bufio.Reader
	parts [][]byte
	buf   bytes.Buffer // of all parts
	heavy bool         // whether the message has its turn
}

// newPeer shakes hands over conn and subscribes to what begins with topic.
func newPeer(conn net.Conn, topic string) (*peer, error) {
	p := &peer{conn: conn, in: bufio.NewReaderSize(conn, readBuffer)}
	if err := conn.SetDeadline(time.Now().Add(handshakeWait)); err != nil {
		return nil, err
	}
	if _, err := conn.Write(greeting()); err != nil {
		return nil, err
	}
	if err := p.greeted(); err != nil {
		return nil, err
	}
	if err := p.ready(); err != nil {
		return nil, err
	}
	if err := p.send(0, append([]byte{1}, topic...)); err != nil { // 3.0: a subscription is a message
		return nil, err
	}
	return p, conn.SetDeadline(time.Time{})
}

// greeting is what both sides say first: signature, version, mechanism.
func greeting() []byte {
	b := make([]byte, 64)
	b[0], b[8], b[9], b[10] = 0xff, 1, 0x7f, 3
	copy(b[12:], "NULL")
	return b
}

// greeted reads the other side's greeting.
func (p *peer) greeted() error {
	var b [64]byte
	if _, err := io.ReadFull(p.in, b[:]); err != nil {
		return err
	}
	switch mechanism := string(bytes.TrimRight(b[12:32], "\x00")); {
	case b[0] != 0xff || b[9] != 0x7f:
		return errNotZMTP
	case b[10] < 3:
		return fmt.Errorf("ZMTP %d; must be 3 or later (ZeroMQ 4)", b[10])
	case mechanism != "NULL":
		return fmt.Errorf("mechanism %q; must be NULL: no authentication", mechanism)
	}
	return nil
}

// ready exchanges the READY commands.
func (p *peer) ready() error {
	body := append([]byte{5}, "READY"...)
	body = append(append(body, 11), "Socket-Type"...)
	body = append(append(body, 0, 0, 0, 3), "SUB"...)
	if err := p.send(flagCommand, body); err != nil {
		return err
	}
	flags, size, err := p.frame()
	if err != nil {
		return err
	}
	if flags&flagCommand == 0 || size > maxCommand {
		return errNotZMTP
	}
	b, err := p.part(size)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(b, []byte("\x05READY")) || !bytes.Contains(b, []byte("PUB")) {
		return fmt.Errorf("%.40q; must be the READY of a PUB socket", b)
	}
	return nil
}

func (p *peer) send(flags byte, body []byte) error {
	_, err := p.conn.Write(append([]byte{flags, byte(len(body))}, body...)) // all that we say is short
	return err
}

// frame reads the head of a frame.
func (p *peer) frame() (flags byte, size uint64, err error) {
	flags, err = p.in.ReadByte()
	if err != nil {
		return 0, 0, err
	}
	if flags&flagLong == 0 {
		n, err := p.in.ReadByte()
		return flags, uint64(n), err
	}
	var b [8]byte
	_, err = io.ReadFull(p.in, b[:])
	return flags, binary.BigEndian.Uint64(b[:]), err
}

// part reads the body of a frame into buf.
func (p *peer) part(size uint64) ([]byte, error) {
	from := p.buf.Len()
	if size > maxMessage-uint64(from) {
		return nil, errTooLong
	}
	if uint64(from)+size > light {
		if err := p.claim(); err != nil {
			return nil, err
		}
	}
	n, err := io.CopyN(&p.buf, p.in, int64(size))
	if err != nil {
		return nil, err
	}
	return p.buf.Bytes()[from : from+int(n)], nil
}

// next waits for a message and returns its parts, which are valid until the next call.
func (p *peer) next() ([][]byte, error) {
	clear(p.parts) // they hold the memory of the last message
	p.parts = p.parts[:0]
	p.buf.Reset()
	if p.buf.Cap() > 2*light {
		p.buf = bytes.Buffer{}
	}
	if err := p.release(); err != nil {
		return nil, err
	}
	var ends []int
	for {
		flags, size, err := p.frame()
		if err != nil {
			return nil, err
		}
		if flags&flagCommand != 0 {
			if err := p.command(size); err != nil {
				return nil, err
			}
			continue
		}
		if _, err := p.part(size); err != nil {
			return nil, err
		}
		if ends = append(ends, p.buf.Len()); len(ends) > maxParts {
			return nil, fmt.Errorf("more than %d parts in a message", maxParts)
		}
		if flags&flagMore == 0 {
			break
		}
	}
	from := 0 // buf may have moved while it grew: parts are cut when it is whole
	for _, end := range ends {
		p.parts = append(p.parts, p.buf.Bytes()[from:end])
		from = end
	}
	return p.parts, nil
}

// command answers a PING; others mean nothing here.
func (p *peer) command(size uint64) error {
	if size > maxCommand {
		return errTooLong
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(p.in, b); err != nil {
		return err
	}
	ping := []byte("\x04PING")
	if !bytes.HasPrefix(b, ping) || len(b) < len(ping)+2 || len(b) > len(ping)+2+16 {
		return nil
	}
	return p.send(flagCommand, append([]byte("\x04PONG"), b[len(ping)+2:]...)) // without its time to live
}
