package harmony

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// compact writes a value as serde_json does: without blanks, and other than ASCII as it is.
func compact(v any) string {
	var out strings.Builder
	write(&out, v)
	return out.String()
}

func write(out *strings.Builder, v any) {
	switch v := v.(type) {
	case nil:
		out.WriteString("null")
	case bool:
		out.WriteString(strconv.FormatBool(v))
	case string:
		quote(out, v)
	case int64:
		out.WriteString(strconv.FormatInt(v, 10))
	case *big.Int:
		if v.IsUint64() {
			out.WriteString(v.String())
			return
		}
		f, _ := new(big.Float).SetInt(v).Float64()
		out.WriteString(float(f))
	case float64:
		out.WriteString(float(v))
	case *jinja.Dict:
		between := "{"
		for name, value := range v.All() {
			out.WriteString(between)
			quote(out, name)
			out.WriteString(":")
			write(out, value)
			between = ","
		}
		if v.Len() == 0 {
			out.WriteString("{")
		}
		out.WriteString("}")
	default:
		between := ""
		out.WriteString("[")
		for item := range jinja.Items(v) {
			out.WriteString(between)
			write(out, item)
			between = ","
		}
		out.WriteString("]")
	}
}

var escapes = map[rune]string{'"': `\"`, '\\': `\\`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`}

func quote(out *strings.Builder, s string) {
	out.WriteByte('"')
	for _, r := range s {
		switch e, ok := escapes[r]; {
		case ok:
			out.WriteString(e)
		case r < ' ':
			fmt.Fprintf(out, `\u%04x`, r)
		default:
			out.WriteRune(r)
		}
	}
	out.WriteByte('"')
}

// float writes the shortest digits that stand for a number as Rust's serde_json does: with a point
// from 1e-5 to below 1e16, else with an exponent.
func float(f float64) string {
	if f == 0 {
		if math.Signbit(f) {
			return "-0.0"
		}
		return "0.0"
	}
	text := strconv.FormatFloat(math.Abs(f), 'e', -1, 64)
	mantissa, exponent, _ := strings.Cut(text, "e")
	digits := strings.Replace(mantissa, ".", "", 1)
	n, _ := strconv.Atoi(exponent)
	point := n + 1 // where it is among the digits
	sign := ""
	if f < 0 {
		sign = "-"
	}
	switch {
	case len(digits) <= point && point <= 16:
		return sign + digits + strings.Repeat("0", point-len(digits)) + ".0"
	case 0 < point && point <= 16:
		return sign + digits[:point] + "." + digits[point:]
	case -5 < point && point <= 0:
		return sign + "0." + strings.Repeat("0", -point) + digits
	}
	return sign + mantissa + fmt.Sprintf("e%+d", n)
}
