package smtp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxReplyLine  = 4096 // RFC 5321 §4.5.3.1.5 says 512; servers say more
	maxReplyLines = 128
	maxReplyText  = 500 // bytes kept for people
)

// reply is one whole reply of a server (RFC 5321 §4.2).
type reply struct {
	code  int // 200 to 599
	lines []string
}

func (r reply) class() int { return r.code / 100 }

// readReply reads one reply, line ends being CRLF or LF. Anything that is not a
// whole, well-formed reply is an error: errProtocol, or that of the connection.
func readReply(br *bufio.Reader) (reply, error) {
	var r reply
	for range maxReplyLines {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return reply{}, replyError(line, err)
		}
		line = line[:len(line)-1]
		if n := len(line); n > 0 && line[n-1] == '\r' {
			line = line[:n-1]
		}
		code, more, text, ok := parseReplyLine(string(line))
		if !ok || r.code != 0 && code != r.code {
			return reply{}, fmt.Errorf("%w: bad reply %q", errProtocol, printable(string(line)))
		}
		r.code = code
		r.lines = append(r.lines, text)
		if !more {
			return r, nil
		}
	}
	return reply{}, fmt.Errorf("%w: reply has over %d lines", errProtocol, maxReplyLines)
}

func replyError(line []byte, err error) error {
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return fmt.Errorf("%w: reply line has over %d bytes", errProtocol, maxReplyLine)
	case errors.Is(err, io.EOF) && len(line) > 0:
		return fmt.Errorf("connection lost within reply %q: %w", printable(string(line)), io.ErrUnexpectedEOF)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("connection closed: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// parseReplyLine reads "250-text", "250 text" or "250".
func parseReplyLine(s string) (code int, more bool, text string, ok bool) {
	if len(s) < 3 || s[0] < '2' || s[0] > '5' || s[1] < '0' || s[1] > '9' || s[2] < '0' || s[2] > '9' {
		return 0, false, "", false
	}
	code = int(s[0]-'0')*100 + int(s[1]-'0')*10 + int(s[2]-'0')
	if len(s) == 3 {
		return code, false, "", true
	}
	return code, s[3] == '-', s[4:], s[3] == '-' || s[3] == ' '
}

// without is the reply without secrets, which a careless server may repeat.
func (r reply) without(secrets []string) reply {
	clean := reply{code: r.code}
	for _, l := range r.lines {
		for _, secret := range secrets {
			if secret != "" {
				l = strings.ReplaceAll(l, secret, "[secret]")
			}
		}
		clean.lines = append(clean.lines, l)
	}
	return clean
}

// String is the reply as one line for people.
func (r reply) String() string {
	return printable(strconv.Itoa(r.code) + " " + strings.Join(r.lines, " "))
}

// enhanced is the enhanced status code (RFC 2034) that the reply begins with,
// when its class is the reply's own, or empty.
func (r reply) enhanced() string {
	if len(r.lines) == 0 {
		return ""
	}
	code, _, _ := strings.Cut(r.lines[0], " ")
	if len(code) < len("5.0.0") || len(code) > len("5.999.999") || int(code[0]-'0') != r.class() {
		return ""
	}
	parts := strings.Split(code, ".")
	if len(parts) != 3 {
		return ""
	}
	for _, p := range parts {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n > 999 {
			return ""
		}
	}
	return code
}

// printable makes s one line of at most maxReplyText bytes of UTF-8, without
// control characters.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case unicode.IsControl(r) || r == '\u2028' || r == '\u2029':
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	s = strings.TrimSpace(s)
	if len(s) <= maxReplyText {
		return s
	}
	s = s[:maxReplyText]
	for len(s) > 0 {
		if r, n := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || n > 1 {
			break
		}
		s = s[:len(s)-1]
	}
	return s
}
