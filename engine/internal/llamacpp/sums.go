package llamacpp

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"syscall"

	"millrace.dev/millrace/internal/regular"
)

// sumFile is beside the folder of states: the sum of the weights that were read last, so that
// the next start does not read tens of GiB beside its requests.
const sumFile = "weights.json"

// mostSum bounds that file in bytes: weights have some hundred parts at most.
const mostSum = 1 << 20

// summed is the sum of files as they were.
type summed struct {
	// Files has a line for each: its path, and what changes when anybody writes to it or puts
	// another one in its place.
	Files  string `json:"files"`
	Sha256 []byte `json:"sha256"`
}

// stampOf returns the Files of files as they are now.
func stampOf(files []string) (text string, err error) {
	for _, f := range files {
		info, err := regular.Stat(f)
		if err != nil {
			return "", err
		}
		text += fmt.Sprintln(f, info.Size(), info.ModTime().UnixNano())
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			text += fmt.Sprintln(s.Dev, s.Ino, s.Ctim.Nano())
		}
	}
	return text, nil
}

func (s *states) sumPath() string {
	return filepath.Join(filepath.Dir(filepath.Clean(s.k.StateFolder)), sumFile)
}

// recall returns what an earlier start found out; the zero summed: nothing that can be read.
func (s *states) recall() (v summed) {
	text, err := regular.Read(s.sumPath(), mostSum)
	if err != nil || json.Unmarshal(text, &v) != nil {
		return summed{}
	}
	return v
}

// remember keeps it for the next start, which otherwise is as slow as the first.
func (s *states) remember(v summed) {
	if text, err := json.Marshal(v); err == nil {
		_ = regular.Replace(s.sumPath(), text)
	}
}
