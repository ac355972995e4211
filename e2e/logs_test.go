package e2e

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

// logTail bounds what is printed of each log of a failed test, in bytes.
const logTail = 3000

// watchLogs prints what the mesh logged during the test, if it fails.
func (m *mesh) watchLogs(t *testing.T) {
	sizes := map[string]int64{} // by path
	for _, path := range m.logs() {
		if st, err := os.Stat(path); err == nil {
			sizes[path] = st.Size()
		}
	}
	said := len(m.out.String())
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		t.Logf("--- millrace up\n%s", tail(m.out.String()[said:]))
		for _, path := range m.logs() {
			if text := since(path, sizes[path]); text != "" {
				t.Logf("--- %s\n%s", filepath.Base(path), tail(text))
			}
		}
	})
}

func (m *mesh) logs() []string {
	paths, _ := filepath.Glob(filepath.Join(m.dir, "logs", "*.log"))
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

func tail(s string) string {
	if len(s) <= logTail {
		return s
	}
	return "…" + s[len(s)-logTail:]
}

// access is one line of Envoy's access log.
type access struct {
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
	PromptTokens any    `json:"prompt_tokens"`
}

// accessLog reads Envoy's access log from where it was opened.
type accessLog struct {
	path   string
	offset int64
}

// access begins to read the access log at its present end.
func (m *mesh) access() *accessLog {
	l := &accessLog{path: filepath.Join(m.dir, "logs", "access.log")}
	if st, err := os.Stat(l.path); err == nil {
		l.offset = st.Size()
	}
	return l
}

// lines returns the lines written since the log was opened.
func (l *accessLog) lines() ([]access, error) {
	var all []access
	for line := range strings.Lines(since(l.path, l.offset)) {
		if !strings.HasSuffix(line, "\n") {
			break // still being written
		}
		var a access
		if err := json.NewDecoder(bytes.NewBufferString(line)).Decode(&a); err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

// find waits for the line that matches. Envoy flushes every 200 ms.
func (l *accessLog) find(t *testing.T, match func(access) bool) access {
	t.Helper()
	var found access
	waitFor(t, backLimit, "access log", func() error {
		all, err := l.lines()
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
