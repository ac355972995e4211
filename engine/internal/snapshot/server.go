package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/kvfile"
	"millrace.dev/millrace/internal/regular"
	"millrace.dev/millrace/internal/trust"
)

// Server lets other engines have copies here, and have those that are here.
type Server struct {
	enginepb.UnimplementedSnapshotsServer
	s *Service

	// mu guards the fields below.
	mu      sync.Mutex
	writing map[string]int64 // bytes that parts will have which are being written, by path
}

// Server returns the service as others reach it.
func (s *Service) Server() *Server { return &Server{s: s, writing: map[string]int64{}} }

// pieceSize is how much of a file a message has, in bytes.
const pieceSize = 256 << 10

// mostParts bounds what is on its way here, in files, and those whose way here was cut.
const mostParts = 8

var (
	errServes = status.Error(codes.FailedPrecondition, "no backend of that identity is served here")
	errLess   = status.Error(codes.ResourceExhausted, "all that is here is worth more")
	errNone   = status.Error(codes.NotFound, "there is no such snapshot")
)

func invalid(err error) error     { return status.Error(codes.InvalidArgument, err.Error()) }
func unavailable(err error) error { return status.Error(codes.Unavailable, err.Error()) }

// refuse returns why a snapshot is not taken; nil: it is.
func (s *Server) refuse(o *enginepb.OfferRequest) error {
	h := o.GetHeader()
	if err := trust.Message(o); err != nil {
		return invalid(err)
	}
	if err := kvfile.Check(h); err != nil {
		return invalid(err)
	}
	v := s.s.now.Load()
	if v == nil || !proto.Equal(v.identity, h.GetIdentity()) || h.GetTokens() > v.assignment.GetBackend().GetContextTokens() {
		return errServes
	}
	if !s.s.cfg.Folder.Room(h, int64(o.GetBytes())) {
		return errLess
	}
	return nil
}

// Offer says how much of a snapshot is here: see the contract.
func (s *Server) Offer(_ context.Context, o *enginepb.OfferRequest) (*enginepb.OfferReply, error) {
	if err := s.refuse(o); err != nil {
		return nil, err
	}
	f := s.s.cfg.Folder
	if e := f.has(kvfile.Key(o.GetHeader())); e != nil && string(e.file.Sum[:]) == string(o.GetSha256()) {
		return &enginepb.OfferReply{Offset: o.GetBytes()}, nil
	}
	info, err := os.Stat(f.partName(o.GetSha256()))
	if err != nil || info.Size() >= int64(o.GetBytes()) {
		return &enginepb.OfferReply{}, nil
	}
	return &enginepb.OfferReply{Offset: uint64(info.Size())}, nil
}

// Keep takes the bytes of a snapshot: see the contract.
func (s *Server) Keep(in grpc.ClientStreamingServer[enginepb.KeepPart, enginepb.KeepSnapshotReply]) error {
	first, err := in.Recv()
	if err != nil {
		return err
	}
	o := first.GetOffer()
	if o == nil {
		return invalid(errors.New("offer: it is missing from the first part"))
	}
	if err := s.refuse(o); err != nil {
		return err
	}
	path := s.s.cfg.Folder.partName(o.GetSha256())
	if err := s.begin(path, int64(o.GetBytes())); err != nil {
		return err
	}
	defer s.end(path)
	if err := receive(in, path, first, o.GetBytes()); err != nil {
		return err
	}
	if err := s.keep(path, o); err != nil {
		_ = os.Remove(path)
		return err
	}
	return in.SendAndClose(&enginepb.KeepSnapshotReply{})
}

// begin reserves a part of so many bytes for who writes it. All parts together have half of what
// the folder may have: those that nobody writes make room, the oldest first.
func (s *Server) begin(path string, size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing[path] > 0 {
		return status.Error(codes.Aborted, "it is on its way here already")
	}
	free := s.s.cfg.Folder.most/2 - size
	for _, n := range s.writing {
		free -= n
	}
	if free < 0 || len(s.writing) >= mostParts {
		return errLess
	}
	s.writing[path] = size
	s.s.cfg.Folder.trim(free, s.writing)
	return nil
}

func (s *Server) end(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.writing, path)
}

// trim removes parts that nobody writes until they have at most so many bytes.
func (f *Folder) trim(most int64, writing map[string]int64) {
	type part struct {
		path string
		os.FileInfo
	}
	var idle []part
	names, _ := filepath.Glob(filepath.Join(f.dir, partDir, "*"))
	for _, name := range names {
		// What is not named by a sum is being encoded or fetched.
		if info, err := os.Stat(name); err == nil && writing[name] == 0 && len(info.Name()) == 2*sha256.Size {
			idle = append(idle, part{name, info})
		}
	}
	slices.SortFunc(idle, func(a, b part) int { return b.ModTime().Compare(a.ModTime()) })
	for i, p := range idle {
		if most -= p.Size(); most < 0 || i >= mostParts {
			_ = os.Remove(p.path)
		}
	}
}

// receive appends what comes to a part, until it has so many bytes.
func receive(in grpc.ClientStreamingServer[enginepb.KeepPart, enginepb.KeepSnapshotReply], path string, p *enginepb.KeepPart, size uint64) error {
	file, err := regular.Append(path, os.O_CREATE, 0o600)
	if err != nil {
		return unavailable(err)
	}
	defer file.Close()
	at, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return unavailable(err)
	}
	if p.GetOffset() == 0 && at != 0 {
		at = 0
		if err := file.Truncate(0); err != nil {
			return unavailable(err)
		}
	}
	for {
		if err := trust.Message(p); err != nil {
			return invalid(err)
		}
		if p.GetOffset() != uint64(at) || p.GetOffset()+uint64(len(p.GetData())) > size {
			return status.Error(codes.OutOfRange, "the part is not where it must be")
		}
		n, err := file.Write(p.GetData())
		if at += int64(n); err != nil {
			return unavailable(err)
		}
		if uint64(at) == size {
			return nil
		}
		if p, err = in.Recv(); err != nil {
			return err
		}
	}
}

// keep makes a part that is whole a snapshot.
func (s *Server) keep(path string, o *enginepb.OfferRequest) error {
	file, err := regular.Open(path)
	if err != nil {
		return unavailable(err)
	}
	defer file.Close()
	h, f, err := kvfile.Verify(file)
	if err != nil || string(f.Sum[:]) != string(o.GetSha256()) || !proto.Equal(h, o.GetHeader()) {
		s.s.cfg.Metrics.ignored.WithLabelValues(ignoredTorn).Inc()
		return invalid(kvfile.ErrTorn)
	}
	if _, err := s.s.cfg.Folder.Put(path, h, f); err != nil {
		return unavailable(err)
	}
	s.s.cfg.Metrics.received.Inc()
	s.s.announce()
	return nil
}

// Find returns the header of what is here: see the contract.
func (s *Server) Find(_ context.Context, q *enginepb.FindRequest) (*enginepb.SnapshotHeader, error) {
	if err := trust.Message(q); err != nil {
		return nil, invalid(err)
	}
	e, _, _ := s.s.cfg.Folder.find(q.GetIdentity(), q.GetKeys())
	if e == nil {
		return nil, errNone
	}
	return e.h, nil
}

// Load sends the bytes of what is here: see the contract.
func (s *Server) Load(q *enginepb.LoadSnapshotRequest, out grpc.ServerStreamingServer[enginepb.LoadPart]) error {
	if err := trust.Message(q); err != nil {
		return invalid(err)
	}
	e := s.s.cfg.Folder.has(q.GetKey())
	if e == nil || !proto.Equal(e.h.GetIdentity(), q.GetIdentity()) {
		return errNone
	}
	file, err := s.s.cfg.Folder.open(e)
	if err != nil {
		return errNone
	}
	defer file.Close()
	if _, err := file.Seek(int64(min(q.GetOffset(), 1<<62)), io.SeekStart); err != nil {
		return unavailable(err)
	}
	buf := make([]byte, pieceSize)
	for {
		n, err := file.Read(buf)
		if n > 0 {
			if err := out.Send(&enginepb.LoadPart{Data: buf[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return unavailable(err)
		}
	}
}
