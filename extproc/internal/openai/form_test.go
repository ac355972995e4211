package openai

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"strings"
	"testing"

	"millrace.dev/millrace/internal/apis"
)

// formOf makes a form of parts: their headers, a blank line and their content.
func formOf(boundary string, parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		fmt.Fprintf(&b, "--%s\r\n%s\r\n", boundary, strings.ReplaceAll(p, "\n", "\r\n"))
	}
	return b.String() + "--" + boundary + "--\r\n"
}

const (
	modelPart = "Content-Disposition: form-data; name=\"model\"\n\nwhisper"
	filePart  = "Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\nContent-Type: audio/wav\n\n"
)

func TestParseForm(t *testing.T) {
	many := make([]string, maxParts)
	for i := range many {
		many[i] = fmt.Sprintf("Content-Disposition: form-data; name=\"x%d\"\n\n1", i)
	}
	tests := []struct {
		name  string
		ctype string // of the boundary "b" if empty
		body  string
		model string
		cut   bool
		err   string
	}{
		{name: "the model first", body: formOf("b", modelPart, filePart+"RIFF"), model: "whisper"},
		{name: "the model last", body: formOf("b", filePart+"RIFF", modelPart), model: "whisper"},
		{name: "behind a file of 10 MB", body: formOf("b", filePart+strings.Repeat("\n--bb", 2<<20), modelPart), model: "whisper"},
		{name: "behind too many parts", body: formOf("b", append(many, modelPart)...), cut: true},
		{name: "none", body: formOf("b", filePart+"RIFF")},
		{name: "an empty one", body: formOf("b", strings.TrimSuffix(modelPart, "whisper"))},
		{name: "two: the first counts", body: formOf("b", modelPart, modelPart+"2"), model: "whisper"},
		{name: "a file of that name is not it", body: formOf("b", "Content-Disposition: form-data; name=\"model\"; filename=\"m\"\n\nx", modelPart), model: "whisper"},
		{name: "nor is an attachment", body: formOf("b", "Content-Disposition: attachment; name=\"model\"\n\nx", modelPart), model: "whisper"},
		{name: "nor what a file says", body: formOf("b", filePart+"\n--bx\n"+modelPart+"x", modelPart), model: "whisper"},
		{name: "nor what a nested form says", body: formOf("b", filePart+formOf("bb", modelPart+"x"), modelPart), model: "whisper"},
		{name: "headers in another case, without quotes", body: formOf("b", "CONTENT-DISPOSITION:form-data;name=model\n\nwhisper"), model: "whisper"},
		{name: "other headers before it", body: formOf("b", "Content-Type: text/plain\nX: y\n"+modelPart), model: "whisper"},
		{name: "a name with an escape", body: formOf("b", "Content-Disposition: form-data; name=\"mod\\el\"\n\nwhisper")},
		{name: "a part without headers", body: formOf("b", "\nx", modelPart), model: "whisper"},
		{name: "a preamble, and white space behind the boundary", body: "hi\r\n--b \t\r\n" + strings.ReplaceAll(modelPart, "\n", "\r\n") + "\r\n--b--", model: "whisper"},
		{name: "a boundary in quotes", ctype: `multipart/form-data; boundary="a b:c"`, body: formOf("a b:c", modelPart), model: "whisper"},
		{name: "another parameter before it", ctype: `Multipart/Form-Data; charset=utf-8; BOUNDARY=b`, body: formOf("b", modelPart), model: "whisper"},
		{name: "a long boundary", ctype: "multipart/form-data; boundary=" + strings.Repeat("-", maxBoundary), body: formOf(strings.Repeat("-", maxBoundary), filePart+strings.Repeat("-", 1<<20), modelPart), model: "whisper"},
		{name: "one that is too long", ctype: "multipart/form-data; boundary=" + strings.Repeat("-", maxBoundary+1), body: "x", err: "invalid_form"},
		{name: "no boundary", ctype: "multipart/form-data", body: formOf("b", modelPart), err: "invalid_form"},
		{name: "another one", ctype: "multipart/form-data; boundary=c", body: formOf("b", modelPart), err: "invalid_form"},
		{name: "JSON", body: `{"model":"whisper"}`, err: "invalid_form"},
		{name: "nothing", body: "", err: "invalid_form"},
		{name: "closed at once", body: "--b--\r\n", err: "invalid_form"},
		{name: "cut off in the model", body: strings.TrimSuffix(formOf("b", modelPart), "\r\n--b--\r\n"), err: "invalid_form"},
		{name: "cut off in a file", body: "--b\r\n" + filePart + "RI", err: "invalid_form"},
		{name: "headers without an end", body: "--b\r\nX: " + strings.Repeat("y", 2*maxHead), err: "invalid_form"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.ctype == "" {
				tt.ctype = "multipart/form-data; boundary=b"
			}
			var r Request
			err := r.ParseForm(apis.Transcriptions, tt.ctype, []byte(tt.body))
			if err != nil || tt.err != "" {
				if err == nil || err.Code != tt.err || err.Status != 400 {
					t.Fatalf("error = %v, want %q", err, tt.err)
				}
				return
			}
			if string(r.Model) != tt.model || r.Cut != tt.cut {
				t.Errorf("model %q, cut %v; want %q, %v", r.Model, r.Cut, tt.model, tt.cut)
			}
		})
	}
}

func TestRenameForm(t *testing.T) {
	var r Request
	body := formOf("b", filePart+"RIFF", modelPart)
	if err := r.ParseForm(apis.Transcriptions, "multipart/form-data; boundary=b", []byte(body)); err != nil {
		t.Fatal(err)
	}
	if got, want := string(r.WithModel(nil, `large "3"`)), strings.Replace(body, "whisper", `large "3"`, 1); got != want {
		t.Errorf("WithModel() = %q, want %q", got, want)
	}
}

// naiveModel is the model of a form as the standard library reads it; ok is false if it
// reads no such form.
func naiveModel(boundary string, body []byte) (model string, ok bool) {
	f := multipart.NewReader(bytes.NewReader(body), boundary)
	for range maxParts {
		p, err := f.NextRawPart()
		if err != nil {
			return "", errors.Is(err, io.EOF)
		}
		b, err := io.ReadAll(p)
		if err != nil {
			return "", false
		}
		kind, params, err := mime.ParseMediaType(p.Header.Get("Content-Disposition"))
		if _, file := params["filename"]; err == nil && kind == "form-data" && params["name"] == "model" && !file {
			return string(b), true
		}
	}
	return "", true
}

func FuzzForm(f *testing.F) {
	f.Add("b", formOf("b", modelPart, filePart+"RIFF"))
	f.Add("b", formOf("b", filePart+"\n--bx\n"+modelPart, modelPart))
	f.Add("-", formOf("-", "\n", "", modelPart))
	f.Add("a b", "x\r\n--a b \r\n\r\n\r\n--a b--")
	f.Fuzz(func(t *testing.T, boundary, body string) {
		var r Request
		err := r.ParseForm(apis.Transcriptions, mime.FormatMediaType("multipart/form-data", map[string]string{"boundary": boundary}), []byte(body))
		if err != nil {
			return
		}
		if got, want := r.WithModel(nil, string(r.Model)), body; string(got) != want {
			t.Fatalf("renamed to itself: %q", got)
		}
		// The library is lenient where line breaks are no CRLF, and folds headers.
		rest := strings.ReplaceAll(body, "\r\n", "")
		if strings.ContainsAny(rest, "\r\n") || strings.Contains(body, "\r\n ") || strings.Contains(body, "\r\n\t") {
			return
		}
		if want, ok := naiveModel(boundary, []byte(body)); ok && len(r.Model) > 0 && want != string(r.Model) {
			t.Fatalf("model %q, the library reads %q of %q", r.Model, want, body)
		}
	})
}

func BenchmarkForm(b *testing.B) {
	body := []byte(formOf("----WebKitFormBoundary7MA4YWxkTrZu0gW", filePart+strings.Repeat("\r\n------WebKitFormBoundary7MA4YWxkTrZu0g0", 10<<20/42), modelPart))
	var r Request
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if err := r.ParseForm(apis.Transcriptions, "multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW", body); err != nil || len(r.Model) == 0 {
			b.Fatal(err)
		}
	}
}
