package backend

// numbering numbers the calls of functions of a stream where a server does not: some leave the
// index out.
type numbering struct {
	begun bool
	last  int
	id    string // of the last call
}

// of returns the number of the call that a part belongs to. Without an index a new id begins
// the next call, or a name without one; what has neither is of the last.
func (n *numbering) of(index *int, id, name string) int {
	switch {
	case index != nil:
		n.last = *index
	case n.begun && (id != "" && id != n.id || id == "" && name != ""):
		n.last++
	}
	if n.begun = true; id != "" {
		n.id = id
	}
	return n.last
}
