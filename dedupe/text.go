package dedupe

import (
	"strings"
	"unicode/utf8"
)

// bounded makes s fit for a text column: valid UTF-8 without NUL, at most most
// bytes.
func bounded(s string, most int) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}
