package smtp

import (
	"bytes"

	"github.com/stormpost/stormpost/internal/mail"
)

// stuff appends msg to buf as DATA wants it (RFC 5321 §4.5.2), without the
// final dot: every line ends with CRLF, and one that begins with a dot gets
// another. For any input nothing in the output is the end of data.
func stuff(buf *bytes.Buffer, msg []byte) {
	for len(msg) > 0 {
		line, rest, _ := mail.CutLine(msg)
		if len(line) > 0 && line[0] == '.' {
			buf.WriteByte('.')
		}
		buf.Write(line)
		buf.WriteString("\r\n")
		msg = rest
	}
}
