package dedupe

import (
	"log/slog"
	"strings"
	"unicode/utf8"
)

const levelWarn = slog.LevelWarn

func attrSource(s string) slog.Attr { return slog.String("source", s) }
func attrReason(s string) slog.Attr { return slog.String("reason", s) }

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
