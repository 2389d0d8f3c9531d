package mail

import (
	"bytes"
	"encoding/base64"
	"mime"
	"strings"
	"unicode/utf8"
)

const (
	foldAt  = 78  // RFC 5322 §2.1.1: lines should not be longer
	maxLine = 998 // and must not
)

// writeHeader writes one field. Value is free of line breaks; it is folded
// before white space where a line would pass foldAt, so that unfolding gives
// value again. A word that fits no line is refused.
func writeHeader(buf *bytes.Buffer, name, value string) error {
	buf.WriteString(name)
	buf.WriteByte(':')
	col := len(name) + 1
	value = strings.Trim(value, " \t")
	for first := true; value != ""; first = false {
		space := len(value) - len(strings.TrimLeft(value, " \t"))
		end := strings.IndexAny(value[space:], " \t")
		if end < 0 {
			end = len(value)
		} else {
			end += space
		}
		word := value[:end]
		value = value[end:]
		if first {
			buf.WriteByte(' ')
			col++
		} else if col+len(word) > foldAt {
			buf.WriteString("\r\n")
			col = 0
		}
		buf.WriteString(word)
		if col += len(word); col > maxLine {
			return badContent(name, "has a word too long for a line of 998 bytes")
		}
	}
	buf.WriteString("\r\n")
	return nil
}

// encodeText makes unstructured text fit for a header (RFC 2047). Text that
// only looks like an encoded word is encoded too, or it would be shown decoded.
func encodeText(s string) string {
	if IsASCII(s) && !strings.Contains(s, "=?") {
		return s
	}
	return encodeWords(s)
}

// encodeWords encodes s as words of base64, split between runes. One takes 64
// columns, so that with any usual field name its line stays under the 76 of
// RFC 2047 §2. Base64 is fit for every place of a header, Q is not (§5).
func encodeWords(s string) string {
	const chunk = 39
	var b strings.Builder
	for s != "" {
		n := min(chunk, len(s))
		for n < len(s) && !utf8.RuneStart(s[n]) {
			n--
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString("=?utf-8?b?")
		b.WriteString(base64.StdEncoding.EncodeToString([]byte(s[:n])))
		b.WriteString("?=")
		s = s[n:]
	}
	return b.String()
}

// maxQuoted is how long a display name may be to be written in quotes: with each
// of its characters escaped it still fits a line, behind its field's name.
const maxQuoted = (maxLine - 32) / 2

// appendMailbox writes a as a header has it.
func appendMailbox(b *strings.Builder, a Address) {
	switch {
	case a.Name == "":
		b.WriteString(a.Spec())
		return
	case !IsASCII(a.Name) || strings.Contains(a.Name, "=?") || len(a.Name) > maxQuoted:
		b.WriteString(encodeWords(a.Name))
	default:
		b.WriteByte('"')
		for i := range len(a.Name) {
			if c := a.Name[i]; c == '"' || c == '\\' {
				b.WriteByte('\\')
			}
			b.WriteByte(a.Name[i])
		}
		b.WriteByte('"')
	}
	b.WriteString(" <")
	b.WriteString(a.Spec())
	b.WriteByte('>')
}

// disposition is a Content-Disposition field's value (RFC 2183), a filename
// outside ASCII being encoded by RFC 2231.
func disposition(kind, filename string) string {
	if filename == "" {
		return kind
	}
	return mime.FormatMediaType(kind, map[string]string{"filename": filename})
}

// ownField names the header fields that compose writes itself, or that nobody
// but a relay may write.
func ownField(lower string) bool {
	switch lower {
	case "from", "sender", "to", "cc", "bcc", "reply-to", "subject", "date", "message-id", "mime-version",
		"return-path", "received", "dkim-signature":
		return true
	}
	return strings.HasPrefix(lower, "content-")
}

// isFieldName is RFC 5322 §3.6.8, of a length that leaves room for a value.
func isFieldName(s string) bool {
	return s != "" && len(s) <= 76 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' })
}
