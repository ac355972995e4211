package openai

import (
	"bytes"
	"mime"

	"millrace.dev/millrace/internal/apis"
)

// Bounds of what is decoded of a form. One that has its model behind that many parts is
// taken to name none that we know.
const (
	maxParts    = 64
	maxHead     = 8 << 10 // bytes of one part's headers
	maxBoundary = 70      // RFC 2046, section 5.1.1
)

// ParseForm decodes a multipart/form-data body (RFC 7578), which must stay unchanged
// while r is in use: of its fields the first "model", and nothing behind it.
func (r *Request) ParseForm(api apis.API, contentType string, body []byte) *Error {
	r.reset(api, body)
	r.form = true
	_, params, err := mime.ParseMediaType(contentType)
	boundary := params["boundary"]
	if err != nil || boundary == "" || len(boundary) > maxBoundary {
		return NotForm("its content-type names no boundary")
	}
	f := form{body: body, delimiter: []byte("\r\n--" + boundary)}
	if !f.open() {
		return NotForm("it has no part that begins with the boundary")
	}
	for range maxParts {
		head, ok := f.head()
		if !ok {
			return NotForm("a part of it has no end")
		}
		start := f.at
		end, last, ok := f.next()
		if ok && isModel(head) {
			r.Model, r.named = body[start:end], span{start, end}
			return nil
		}
		if !ok {
			return NotForm("a part of it has no end")
		}
		if last {
			return nil
		}
	}
	r.Cut = true
	return nil
}

// ParseFields decodes an urlencoded body: the first "model" of its fields.
func (r *Request) ParseFields(api apis.API, body []byte) *Error {
	r.reset(api, body)
	r.Model = []byte(apis.FieldIn(string(body), "model"))
	return nil
}

// form walks over the parts of a multipart body.
type form struct {
	body      []byte
	at        int    // where the walk is
	delimiter []byte // with the line break before it, which belongs to it
}

// open moves behind the first delimiter, which has no line break before it if it is
// the body's beginning.
func (f *form) open() bool {
	if bare := f.delimiter[2:]; bytes.HasPrefix(f.body, bare) {
		f.at = len(bare)
		if last, ok := f.line(); ok {
			return !last
		}
		f.at = 0
	}
	_, last, ok := f.next()
	return ok && !last
}

// next moves behind the next delimiter. end is where what stands before it ends; last
// is whether it closes the form.
func (f *form) next() (end int, last, ok bool) {
	for {
		i := bytes.Index(f.body[f.at:], f.delimiter)
		if i < 0 {
			return 0, false, false
		}
		end = f.at + i
		f.at = end + len(f.delimiter)
		if last, ok := f.line(); ok {
			return end, last, true
		}
		// Another boundary that begins like ours: it is a part's content.
	}
}

// line moves behind the rest of a delimiter's line: two hyphens if it is the last one,
// else white space and a line break. ok is false if that is not what stands there.
func (f *form) line() (last, ok bool) {
	rest := f.body[f.at:]
	if bytes.HasPrefix(rest, []byte("--")) {
		f.at += 2
		return true, true
	}
	n := 0
	for n < len(rest) && (rest[n] == ' ' || rest[n] == '\t') {
		n++
	}
	if !bytes.HasPrefix(rest[n:], []byte("\r\n")) {
		return false, false
	}
	f.at += n + 2
	return false, true
}

// head moves behind a part's headers and returns them; false: they are too long, or
// have no end.
func (f *form) head() ([]byte, bool) {
	rest := f.body[f.at:]
	if bytes.HasPrefix(rest, []byte("\r\n")) {
		f.at += 2
		return nil, true
	}
	i := bytes.Index(rest[:min(len(rest), maxHead)], []byte("\r\n\r\n"))
	if i < 0 {
		return nil, false
	}
	f.at += i + 4
	return rest[:i], true
}

var contentDisposition = []byte("content-disposition")

// isModel reports whether a part's headers are those of the field "model": a file of
// that name is not it.
func isModel(head []byte) bool {
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if !bytes.EqualFold(bytes.TrimSpace(name), contentDisposition) {
			continue
		}
		kind, params, err := mime.ParseMediaType(string(value))
		_, file := params["filename"]
		return err == nil && kind == "form-data" && params["name"] == "model" && !file
	}
	return false
}
