package config

import (
	"bytes"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time, written as 30m, 1.5s or 250ms.
//
// +kubebuilder:validation:Type=string
type Duration struct{ time.Duration }

// MarshalText writes the duration in its shortest form, for example 30m.
func (d Duration) MarshalText() ([]byte, error) {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return []byte(s), nil
}

// UnmarshalText reads a duration with its unit.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return errors.New("must be a duration such as 250ms or 30m")
	}
	d.Duration = v
	return nil
}

// Bytes is a size in bytes, written plain or with one of the suffixes Ki, Mi,
// Gi, k, M and G.
//
// +kubebuilder:validation:XIntOrString
type Bytes int64

// suffixes are ordered so that the first one that divides a size makes its
// shortest text.
var suffixes = []struct {
	name string
	size int64
}{{"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10}, {"G", 1e9}, {"M", 1e6}, {"k", 1e3}}

// MarshalText writes the size, for example 16Mi.
func (b Bytes) MarshalText() ([]byte, error) {
	for _, s := range suffixes {
		if b != 0 && int64(b)%s.size == 0 {
			return []byte(strconv.FormatInt(int64(b)/s.size, 10) + s.name), nil
		}
	}
	return strconv.AppendInt(nil, int64(b), 10), nil
}

// UnmarshalText reads a size of plain bytes or with a suffix.
func (b *Bytes) UnmarshalText(text []byte) error {
	digits, unit := string(text), int64(1)
	for _, s := range suffixes {
		if rest, ok := strings.CutSuffix(digits, s.name); ok {
			digits, unit = rest, s.size
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > math.MaxInt64/unit || n < math.MinInt64/unit {
		return errors.New("must be a size such as 1048576 or 16Mi")
	}
	*b = Bytes(n * unit)
	return nil
}

// UnmarshalJSON reads a size written as a string or as a number: an API server keeps
// what it was given.
func (b *Bytes) UnmarshalJSON(text []byte) error {
	if string(text) == "null" {
		return nil
	}
	return b.UnmarshalText(bytes.Trim(text, `"`))
}
