package rig

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// ShowLogs logs what the mesh's programs wrote during the test, if it fails.
func (m *Mesh) ShowLogs(t testing.TB) {
	sizes := map[string]int64{} // by path
	for _, path := range m.logs() {
		if st, err := os.Stat(path); err == nil {
			sizes[path] = st.Size()
		}
	}
	before := len(m.Out.String())
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		t.Logf("--- millrace up\n%s", tail(m.Out.String()[before:]))
		for _, path := range m.logs() {
			if text := since(path, sizes[path]); text != "" {
				t.Logf("--- %s\n%s", filepath.Base(path), tail(text))
			}
		}
	})
}

func (m *Mesh) logs() []string {
	paths, _ := filepath.Glob(m.File("logs", "*.log"))
	return paths
}

// since returns what was written to a file after offset.
func since(path string, offset int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return ""
	}
	b, _ := io.ReadAll(f)
	return string(b)
}

// Access is one line of Envoy's access log.
type Access struct {
	Method       string `json:"method"`
	Path         string `json:"path"`
	Status       int    `json:"status"`
	Flags        string `json:"flags"`
	Host         string `json:"host"`
	Attempts     any    `json:"attempts"`
	Trace        string `json:"trace"`
	Model        string `json:"model"`
	Session      string `json:"session"`
	Decision     string `json:"decision"`
	RequestID    string `json:"request_id"`
	PromptTokens any    `json:"prompt_tokens"`
	CachedTokens any    `json:"cached_tokens"`
	OutputTokens any    `json:"output_tokens"`
	FirstToken   any    `json:"ttft_ms"`
}

// AccessLog reads Envoy's access log from where it was opened.
type AccessLog struct {
	path   string
	offset int64
}

// OpenAccessLog begins to read an access log at its present end.
func OpenAccessLog(path string) *AccessLog {
	l := &AccessLog{path: path}
	if st, err := os.Stat(path); err == nil {
		l.offset = st.Size()
	}
	return l
}

// AccessLog begins to read the mesh's access log at its present end.
func (m *Mesh) AccessLog() *AccessLog { return OpenAccessLog(m.File("logs", "access.log")) }

// Lines returns the lines written since the log was opened. Envoy writes them up to
// 200 ms late.
func (l *AccessLog) Lines() ([]Access, error) {
	var all []Access
	for line := range strings.Lines(since(l.path, l.offset)) {
		if !strings.HasSuffix(line, "\n") {
			break // still being written
		}
		var a Access
		if err := json.NewDecoder(bytes.NewBufferString(line)).Decode(&a); err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

// Find waits for the line that matches.
func (l *AccessLog) Find(t testing.TB, match func(Access) bool) Access {
	t.Helper()
	var found Access
	Wait(t, BackLimit, "access log", func() error {
		all, err := l.Lines()
		if err != nil {
			return err
		}
		for _, a := range all {
			if match(a) {
				found = a
				return nil
			}
		}
		return errors.New("no such line")
	})
	return found
}
