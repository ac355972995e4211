package stamp

import "sync"

// Value is what some files say. They are read again when somebody asks and they have
// changed; while they are bad, what they said before stays. So a rotation needs no
// signal, and nothing runs in between. It is for what is asked seldom: each time
// costs a stat of each file.
type Value[T any] struct {
	// Constant after Load.
	names []string
	read  func() (T, error)
	note  func(T, error)

	// mu guards the fields below.
	mu    sync.Mutex
	stamp Files // of the files from which now was read
	now   T
	err   error // why the files are not read now; nil: they are
}

// Load reads the files for the first time. note is called each time that they were
// read again, and when they are bad in another way than before.
func Load[T any](names []string, read func() (T, error), note func(T, error)) (*Value[T], error) {
	v := &Value[T]{names: names, read: read, note: note, stamp: Of(names...)}
	var err error
	if v.now, err = read(); err != nil {
		return nil, err
	}
	return v, nil
}

// Latest returns what the files said when they were good last, and what is wrong
// with them now. Files that are bad are tried again each time: a certificate may have
// come before its key.
func (v *Value[T]) Latest() (T, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.stamp.Changed() {
		return v.now, v.err
	}
	stamp := Of(v.names...)
	now, err := v.read()
	if err != nil {
		if v.err == nil || v.err.Error() != err.Error() {
			v.note(v.now, err)
		}
		v.err = err
		return v.now, err
	}
	v.now, v.err, v.stamp = now, nil, stamp
	v.note(now, nil)
	return now, nil
}
