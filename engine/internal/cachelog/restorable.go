package cachelog

import "millrace.dev/millrace/engine/enginepb"

// maxRestorable is how many keys of snapshots are logged: an eighth of what a log has room for,
// so that what the cache really holds is never pushed out by them.
const maxRestorable = enginepb.MaxSegments * enginepb.MaxEntries / 8

// SetRestorable says what can be put into the cache at once, by the key of a whole prompt: as
// many tokens as are not worked on then, less those that could be in the time that it takes.
// It is logged as if it were cached, unless it is, and for as long as it can be had.
func (l *Log) SetRestorable(tokens map[uint64]uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.restorable
	l.restorable = make(map[uint64]uint32, min(len(tokens), maxRestorable))
	for k, n := range tokens {
		if len(l.restorable) < maxRestorable && n > 0 {
			l.restorable[k] = min(n, maxTokens)
		}
	}
	for k := range old {
		if p := l.places[k]; p.restorable && l.restorable[k] == 0 {
			l.forgetLocked(k)
		}
	}
	for k := range l.restorable {
		l.restoreLocked(k)
	}
}

// Have returns how many tokens of a prompt with these beginnings the cache holds, what could be
// restored aside.
func (l *Log) Have(chain []Link) uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(chain) - 1; i >= 0; i-- {
		if p := l.cachedLocked(chain[i].Key); p.at != nil {
			return max(chain[i].Tokens, p.tokens)
		}
	}
	return 0
}

// cachedLocked is where a key was last logged that is cached; at is nil: it is not.
func (l *Log) cachedLocked(k uint64) place {
	if p := l.places[k]; !p.restorable {
		return p
	}
	return place{}
}

// restoreLocked logs what can be restored under a key, unless it is cached.
func (l *Log) restoreLocked(k uint64) {
	n := l.restorable[k]
	if p, ok := l.places[k]; n == 0 || ok && (!p.restorable || near(p.tokens, n)) {
		return
	}
	s := l.openLocked()
	s.keys, s.tokens = append(s.keys, k), append(s.tokens, n)
	l.places[k] = place{at: s, tokens: n, restorable: true}
	l.touchLocked()
}

// near reports whether two estimates are so alike that the newer one need not be logged.
func near(a, b uint32) bool { return max(a, b)-min(a, b) <= b/16 }

// forgetLocked logs that what could be restored under a key can't be any more.
func (l *Log) forgetLocked(k uint64) {
	s := l.openLocked()
	s.keys, s.tokens = append(s.keys, k), append(s.tokens, 0)
	delete(l.places, k)
	l.touchLocked()
}
