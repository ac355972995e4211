package snapshot

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/proto"

	"millrace.dev/millrace/engine/internal/kvfile"
)

// restore gives a snapshot to the backend once it has proved whole.
func (s *Service) restore(ctx context.Context, v *served, e *entry) (free func(), err error) {
	began := time.Now()
	to, err := s.cfg.Folder.create(stateDir)
	if err != nil {
		return nil, err
	}
	defer os.Remove(to.Name())
	err = s.decode(ctx, to, e)
	if failed := to.Close(); err == nil {
		err = failed
	}
	if err != nil {
		return nil, err
	}
	free, err = v.states.Restore(ctx, v.assignment, filepath.Base(to.Name()))
	if err != nil {
		return nil, err
	}
	took := s.cfg.Metrics.took(phaseRestore, began)
	s.mu.Lock()
	s.pace.observed(e.h.GetStateBytes(), took)
	s.mu.Unlock()
	return free, nil
}

// decode writes the state of a snapshot as the backend has it.
func (s *Service) decode(ctx context.Context, to io.Writer, e *entry) error {
	from, err := s.cfg.Folder.open(e)
	if err != nil {
		return err
	}
	defer from.Close()
	h, err := kvfile.Decode(to, ended{ctx, from}, s.cfg.Secret)
	if err == nil && !proto.Equal(h, e.h) { // another one has taken its place
		err = fmt.Errorf("%s is not what it was", from.Name())
	}
	if ctx.Err() != nil {
		return ctx.Err() // so that it is not taken for torn
	}
	return err
}

// ended reads until a context ends.
type ended struct {
	ctx context.Context
	io.Reader
}

func (e ended) Read(p []byte) (int, error) {
	if err := e.ctx.Err(); err != nil {
		return 0, err
	}
	return e.Reader.Read(p)
}
