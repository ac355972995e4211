// Package secret holds what must never be shown: keys, passwords, and addresses that have
// them within.
//
// config has settings of these types, reach what their files say. Its one rule: whatever
// prints a value of these types, in a log, an error or a page, prints it redacted; only a
// conversion to string gives the secret itself.
package secret

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// redacted stands for what is not shown.
const redacted = "[redacted]"

// Text is a secret.
//
// +kubebuilder:validation:MaxLength=512
type Text string

// String is what may be shown.
func (t Text) String() string {
	if t == "" {
		return ""
	}
	return redacted
}

// GoString is what may be shown.
func (t Text) GoString() string { return `"` + t.String() + `"` }

// Format shows what may be shown, whatever the verb.
func (t Text) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, t.String()) }

// LogValue is what may be shown.
func (t Text) LogValue() slog.Value { return slog.StringValue(t.String()) }

// URL is an address that may have a user, a password or a key within.
type URL string

// String is the address without what may be secret in it: who asks there, and the query. It
// takes a text that is no URL, too: what stands before its last @ is not shown then.
func (u URL) String() string {
	text := string(u)
	if i := strings.IndexAny(text, "?#"); i >= 0 && i+1 < len(text) {
		text = text[:i+1] + redacted
	}
	scheme := 0
	if i := strings.Index(text, "://"); i >= 0 {
		scheme = i + len("://")
	}
	if at := strings.LastIndexByte(string(u), '@'); at >= scheme {
		if at >= len(text) || string(u)[:at] != text[:at] {
			return text[:min(scheme, len(text))] + redacted
		}
		text = text[:scheme] + redacted + text[at:]
	}
	return text
}

// GoString is the address without what may be secret in it.
func (u URL) GoString() string { return `"` + u.String() + `"` }

// LogValue is the address without what may be secret in it.
func (u URL) LogValue() slog.Value { return slog.StringValue(u.String()) }
