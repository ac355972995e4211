package enginepb

import "cmp"

// Version names an assignment, in force or refused. The zero Version is that of none.
type Version struct {
	// Epoch is the control epoch, Generation counts in it.
	Epoch, Generation uint64
}

// family is how many control epochs in a row are of one control plane: it continues with
// the next one where somebody is ahead of it. Starts are that far apart after a microsecond.
const family = 1024

// EpochAt returns the control epoch of a control plane that begins at a time, given in
// microseconds.
func EpochAt(micros int64) uint64 { return uint64(max(1, micros)) * family }

// Version returns the version of the assignment.
func (a *Assignment) Version() Version { return Version{a.GetControlEpoch(), a.GetGeneration()} }

// Version returns the version in force.
func (s *Status) Version() Version { return Version{s.GetControlEpoch(), s.GetGeneration()} }

// After reports whether the control plane that made o made v after it. It says nothing of
// versions of two control planes: neither is after the other. No number is the last one:
// epochs go round. The zero Version is after none.
func (v Version) After(o Version) bool {
	ahead := v.Epoch - o.Epoch
	return v != Version{} && (ahead == 0 && v.Generation > o.Generation || ahead > 0 && ahead < family)
}

// Compare puts versions in some order, for those who have to choose one of several: that
// of one control plane is true, that of several is a guess by their clocks.
func (v Version) Compare(o Version) int {
	return cmp.Or(cmp.Compare(v.Epoch, o.Epoch), cmp.Compare(v.Generation, o.Generation))
}
