package smtp

import "bytes"

// cutLine splits s after its first line. CRLF, a bare LF and a bare CR each end
// a line: what servers disagree about is settled before it reaches one.
// ended is false when s has no line end.
func cutLine(s []byte) (line, rest []byte, ended bool) {
	// Lines of usual length that end with LF are found by the machine's own
	// search; the bound keeps a text full of bare CRs from costing its square.
	const usual = 1024
	i := bytes.IndexByte(s[:min(usual, len(s))], '\n')
	if i < 0 {
		i = bytes.IndexAny(s, "\r\n")
	} else if cr := bytes.IndexByte(s[:i], '\r'); cr >= 0 {
		i = cr
	}
	if i < 0 {
		return s, nil, false
	}
	end := i + 1
	if s[i] == '\r' && end < len(s) && s[end] == '\n' {
		end++
	}
	return s[:i], s[end:], true
}

// stuff appends msg to buf as DATA wants it (RFC 5321 §4.5.2), without the
// final dot: every line ends with CRLF, and one that begins with a dot gets
// another. For any input nothing in the output is the end of data.
func stuff(buf *bytes.Buffer, msg []byte) {
	for len(msg) > 0 {
		line, rest, _ := cutLine(msg)
		if len(line) > 0 && line[0] == '.' {
			buf.WriteByte('.')
		}
		buf.Write(line)
		buf.WriteString("\r\n")
		msg = rest
	}
}
