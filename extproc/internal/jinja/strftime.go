package jinja

import (
	"fmt"
	"strings"
	"time"
)

// strftime formats a time as C's function of that name does in the C locale, and
// Python's for times without a zone.
func strftime(now time.Time, format string) string {
	var out strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			out.WriteByte(format[i])
			continue
		}
		i++
		flag := byte(0)
		if i < len(format) && (format[i] == '-' || format[i] == '_') {
			flag = format[i]
			i++
		}
		if i == len(format) {
			throw(ErrUnsupported, "strftime_now() of %s", quoteShort(format))
		}
		out.WriteString(flagged(directive(now, format[i], format), flag, format))
	}
	return out.String()
}

// readingOf returns how much of the clock a format reads.
func readingOf(format string) (r Reading) {
	for i := 0; i+1 < len(format); i++ {
		if format[i] != '%' {
			continue
		}
		i++
		if (format[i] == '-' || format[i] == '_') && i+1 < len(format) {
			i++
		}
		switch {
		case strings.IndexByte("%ntzZ", format[i]) >= 0:
		case strings.IndexByte("dmYybhBAajFeDxuw", format[i]) >= 0:
			r = max(r, DateRead)
		default:
			return TimeRead
		}
	}
	return r
}

// flagged applies glibc's flags to a number that has leading zeros.
func flagged(s string, flag byte, format string) string {
	if flag == 0 {
		return s
	}
	rest := strings.TrimLeft(s[:max(0, len(s)-1)], "0 ")
	if s == "" || strings.Trim(s, "0123456789 ") != "" {
		throw(ErrUnsupported, "strftime_now() of %s", quoteShort(format))
	}
	rest += s[len(s)-1:]
	if flag == '_' {
		return strings.Repeat(" ", len(s)-len(rest)) + rest
	}
	return rest
}

var layouts = map[byte]string{
	'd': "02", 'm': "01", 'Y': "2006", 'y': "06", 'b': "Jan", 'h': "Jan", 'B': "January", 'H': "15", 'M': "04", 'S': "05",
	'A': "Monday", 'a': "Mon", 'p': "PM", 'I': "03", 'j': "002", 'F': "2006-01-02", 'T': "15:04:05", 'e': "_2",
	'D': "01/02/06", 'x': "01/02/06", 'X': "15:04:05", 'R': "15:04", 'r': "03:04:05 PM", 'c': "Mon Jan _2 15:04:05 2006", 'f': "000000",
}

func directive(now time.Time, c byte, format string) string {
	switch c {
	case '%':
		return "%"
	case 'n':
		return "\n"
	case 't':
		return "\t"
	case 'z', 'Z':
		return ""
	case 'u':
		return fmt.Sprint((int(now.Weekday())+6)%7 + 1)
	case 'w':
		return fmt.Sprint(int(now.Weekday()))
	case 'f':
		return fmt.Sprintf("%06d", now.Nanosecond()/1000)
	}
	layout, ok := layouts[c]
	if !ok {
		throw(ErrUnsupported, "strftime_now() of %s", quoteShort(format))
	}
	return now.Format(layout)
}
