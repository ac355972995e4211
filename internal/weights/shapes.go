package weights

import (
	"time"

	"millrace.dev/millrace/internal/regular"
)

// mostShapes bounds how many shapes are remembered, of some 200 bytes each. One more: all are
// forgotten, and read anew.
const mostShapes = 4096

// Shapes reads the headers of weights, and remembers them while their files stay the same. Its
// zero value knows none. For one goroutine.
type Shapes struct {
	known map[string]known // by path
}

// known is what was read of a file of that size, changed at that time.
type known struct {
	size  int64
	at    time.Time
	shape Shape
	err   error
}

// Of returns the shape of the weights at a path, or why it can't be known here.
func (s *Shapes) Of(path string) (Shape, error) {
	st, err := regular.Stat(path)
	if err != nil {
		return Shape{}, err
	}
	if k, ok := s.known[path]; ok && k.size == st.Size() && k.at.Equal(st.ModTime()) {
		return k.shape, k.err
	}
	k := known{size: st.Size(), at: st.ModTime()}
	k.shape, k.err = ShapeOf(path)
	if s.known == nil || len(s.known) >= mostShapes {
		s.known = map[string]known{}
	}
	s.known[path] = k
	return k.shape, k.err
}
