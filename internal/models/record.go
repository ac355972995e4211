package models

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/regular"
)

// recordFile is what is known of a model, beside its files.
const recordFile = "model.json"

// record is that file.
type record struct {
	// Ref is what the model was called, Name its id.
	Ref  string `json:"ref"`
	Name string `json:"name"`
	// Format, Main, Tokenizer and Context are as in plan.
	Format    string `json:"format"`
	Main      string `json:"main,omitempty"`
	Tokenizer string `json:"tokenizer,omitempty"`
	Context   int    `json:"context,omitempty"`
	// Whole is whether all files are there; else their hashes are only kept for the next time.
	Whole bool     `json:"whole"`
	Files []pinned `json:"files"`
	// Used is when a mesh last began with it; zero: never.
	Used time.Time `json:"used,omitzero"`
}

// pinned is a file of a model.
type pinned struct {
	// Name is below the model's folder, with "/".
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
	// Learnt is how the hash came to be known: one of fetch's words. From is where the file
	// came from.
	Learnt string    `json:"learnt"`
	From   string    `json:"from"`
	Size   int64     `json:"size"`
	Mtime  time.Time `json:"modified"` // a file with other size or time is hashed again
}

// place is the folder of a model.
func (s *Store) place(r Ref) string {
	key := r.Text
	if r.url != nil {
		key += "?" + r.url.RawQuery // two files may differ in it, but it may be secret
	}
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(s.folder, idOf(lastWord(r.Text))+"-"+hex.EncodeToString(sum[:4]))
}

// lockOf is the file whose lock belongs to who changes a model's folder. It is beside it, and
// stays: who waits for it would wait for another file otherwise.
func lockOf(folder string) string { return folder + ".lock" }

func lastWord(text string) string {
	text = strings.TrimRight(text, "/")
	return text[strings.LastIndex(text, "/")+1:]
}

// maxRecord is the most that is read of a record, in bytes.
const maxRecord = 4 << 20

// readRecord returns the record of a folder; false: there is none.
func readRecord(folder string) (r record, ok bool, err error) {
	b, err := regular.Read(filepath.Join(folder, recordFile), maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return r, false, nil
	}
	if err == nil {
		if err = json.Unmarshal(b, &r); err != nil {
			err = fmt.Errorf("%s: %w", filepath.Join(folder, recordFile), err)
		}
	}
	for _, f := range r.Files {
		if !isFileName(f.Name) {
			err = errors.Join(err, fmt.Errorf("%s: names %.80q", filepath.Join(folder, recordFile), f.Name))
		}
	}
	if err != nil {
		err = &obs.Hint{Err: err, Next: "remove that folder; the model is then fetched anew"}
	}
	return r, err == nil, err
}

// write replaces the record of a folder.
func (r record) write(folder string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return regular.Replace(filepath.Join(folder, recordFile), append(b, '\n'))
}

// pin returns what is known of a file, or nil.
func (r record) pin(name string) *pinned {
	for i := range r.Files {
		if r.Files[i].Name == name {
			return &r.Files[i]
		}
	}
	return nil
}

// set keeps what is known of a file.
func (r *record) set(p pinned) {
	if had := r.pin(p.Name); had != nil {
		*had = p
		return
	}
	r.Files = append(r.Files, p)
}

// model is the record as something to serve.
func (r record) model(ref Ref, folder string) Model {
	m := Model{Name: ref.Name, Ref: r.Ref, Format: r.Format, Weights: folder, ContextTokens: r.Context}
	if r.Main != "" {
		m.Weights = filepath.Join(folder, filepath.FromSlash(r.Main))
	}
	if r.Tokenizer != "" {
		m.Tokenizer = filepath.Join(folder, r.Tokenizer)
	}
	for _, f := range r.Files {
		m.Size += f.Size
		if f.Name == r.Main || r.Main == "" && m.SHA256 == "" && strings.HasSuffix(f.Name, "."+config.Safetensors) {
			m.SHA256 = f.SHA256
		}
	}
	return m
}

// check says whether all files are there as they were, and returns the record with their
// times. One that is not as it was is an error: who changed it, and why, is a question for a
// person.
func (r record) check(ctx context.Context, folder string) (record, bool, error) {
	if !r.Whole {
		return r, false, nil
	}
	for i, f := range r.Files {
		path := filepath.Join(folder, filepath.FromSlash(f.Name))
		st, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return r, false, nil
		case err != nil:
			return r, false, err
		case st.Size() == f.Size && st.ModTime().Equal(f.Mtime):
			continue
		}
		sum, err := hashOf(ctx, path)
		if err != nil {
			return r, false, err
		}
		if sum != f.SHA256 {
			return r, false, &obs.Hint{Err: fmt.Errorf("%s: it has changed: sha256 is %s, was %s", path, sum, f.SHA256),
				Next: "if you didn't change it, distrust the disk; remove the file and start again: it is then fetched anew"}
		}
		r.Files[i].Mtime = st.ModTime()
	}
	return r, true, nil
}

func hashOf(ctx context.Context, path string) (string, error) {
	f, err := regular.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	b := make([]byte, 1<<20)
	for {
		n, err := f.Read(b)
		h.Write(b[:n])
		switch {
		case err == io.EOF:
			return hex.EncodeToString(h.Sum(nil)), nil
		case err != nil:
			return "", err
		case ctx.Err() != nil:
			return "", ctx.Err()
		}
	}
}
