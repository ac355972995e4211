package token

import "bytes"

// rare are the keys of a request body that change its prompt.
var rare = map[string]bool{
	"add_generation_prompt": true, "continue_final_message": true, "chat_template_kwargs": true,
	"reasoning_effort": true, "response_format": true, "json_schema": true, "documents": true, "chat_template": true,
}

// longestRare is the longest of them if each letter is an escape, in bytes.
const longestRare = len("continue_final_message") * len(`\u0000`)

// hasRare says whether a JSON object has one of the rare keys. It doesn't check
// the JSON: what is broken is found when it is decoded, or by the backend.
func hasRare(raw []byte) bool {
	for depth, i := 0, 0; i < len(raw); i++ {
		switch raw[i] {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case '"':
			end := stringEnd(raw, i)
			if depth == 1 && isRare(raw[i+1:end]) {
				return true
			}
			i = end
		}
	}
	return false
}

// isRare says whether a string may be a rare key. One with escapes may be any.
func isRare(s []byte) bool {
	return len(s) <= longestRare && (rare[string(s)] || bytes.IndexByte(s, '\\') >= 0)
}

// stringEnd returns where the string that starts at i ends: its last quote, or
// the end of the text.
func stringEnd(raw []byte, i int) int {
	for i++; ; i++ {
		n := bytes.IndexByte(raw[i:], '"')
		if n < 0 {
			return len(raw)
		}
		i += n
		back := i
		for raw[back-1] == '\\' {
			back--
		}
		if (i-back)%2 == 0 {
			return i
		}
	}
}
