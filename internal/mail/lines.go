package mail

import "bytes"

// CutLine splits s after its first line. CRLF, a bare LF and a bare CR each end
// a line: what servers disagree about is settled before it reaches one.
// ended is false when s has no line end.
func CutLine(s []byte) (line, rest []byte, ended bool) {
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
