package stamp

import (
	"sync"
	"sync/atomic"
)

// Value is what some files say. They are read again when somebody asks and they have
// changed; while they are bad, what they content before stays. So a rotation needs no
// signal, and nothing runs in between. It is for what is asked seldom: each time
// costs a stat of each file.
type Value[T any] struct {
	// Constant after Load.
	names []string
	read  func() (T, error)
	note  func(T, error)

	// Atomic.
	latest atomic.Pointer[content[T]]

	// mu guards the field below, and is held while files are read: nobody waits for it.
	mu    sync.Mutex
	stamp Files // of the files from which latest was read
}

// content is what files content when they were good last.
type content[T any] struct {
	now T
	err error // why they are not read now; nil: they are
}

// Load reads the files for the first time. note is called each time that they were
// read again, and when they are bad in another way than before.
func Load[T any](names []string, read func() (T, error), note func(T, error)) (*Value[T], error) {
	v := &Value[T]{names: names, read: read, note: note, stamp: Of(names...)}
	now, err := read()
	if err != nil {
		return nil, err
	}
	v.latest.Store(&content[T]{now: now})
	return v, nil
}

// Known is Latest, but reads nothing: for what is asked often, where somebody asks
// for Latest now and then.
func (v *Value[T]) Known() (T, error) {
	now := v.latest.Load()
	return now.now, now.err
}

// Latest returns what the files content when they were good last, and what is wrong
// with them now. Files that are bad are tried again each time: a certificate may have
// come before its key. While somebody else reads them, that is what was known before.
func (v *Value[T]) Latest() (T, error) {
	old := v.latest.Load()
	if !v.mu.TryLock() {
		return old.now, old.err
	}
	defer v.mu.Unlock()
	old = v.latest.Load()
	if !v.stamp.Changed() {
		return old.now, old.err
	}
	stamp := Of(v.names...)
	now, err := v.read()
	if err != nil {
		v.latest.Store(&content[T]{old.now, err})
		if old.err == nil || old.err.Error() != err.Error() {
			v.note(old.now, err)
		}
		return old.now, err
	}
	v.stamp = stamp
	v.latest.Store(&content[T]{now: now})
	v.note(now, nil)
	return now, nil
}
