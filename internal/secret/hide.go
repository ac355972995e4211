package secret

import (
	"regexp"
	"strings"
)

// asker is who asks, as an address has it before its last @: a user with a password, or,
// behind a scheme, anything.
var asker = regexp.MustCompile(`//[^\s"']*@|[^\s"'/=,;(:]*:(?:/?[^\s"'/][^\s"']*)?@`)

// Hide returns a text that is to be shown, such as an error about a setting of any type, without
// the users and passwords that addresses in it have before an @.
func Hide(text string) string {
	if strings.IndexByte(text, '@') < 0 {
		return text
	}
	return asker.ReplaceAllStringFunc(text, func(found string) string {
		if found[:2] == "//" {
			return "//" + redacted + "@"
		}
		return redacted + "@"
	})
}
