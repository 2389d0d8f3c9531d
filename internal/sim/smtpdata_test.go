package sim

import (
	"bufio"
	"bytes"
	"strings"
	"testing"
)

// FuzzReadMessage compares the reader, with a buffer so small that every line
// is cut somewhere, with one that has the whole text before it.
func FuzzReadMessage(f *testing.F) {
	for _, s := range []string{"", ".", "..", "a\r\n.b\r\n", "a\n.\r\nb", "a\r\r\n.\r\nb", "\r\n.\r\nMAIL", strings.Repeat("x", 15) + "\r\n.\r", "\r", "\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data string) {
		data += "\r\n.\r\nrest"
		var raw strings.Builder
		bare, rest := false, data
		for {
			line, after, _ := strings.Cut(rest, "\r\n")
			rest = after
			if line == "." {
				break
			}
			bare = bare || strings.ContainsAny(line, "\r\n")
			raw.WriteString(strings.TrimPrefix(line, ".") + "\r\n")
		}
		c := &smtpConn{
			srv:  &SMTPServer{Faults: new(Faults)},
			gate: new(gatedConn),
			br:   bufio.NewReaderSize(bytes.NewReader([]byte(data)), 16),
		}
		size, problem, err := c.readMessage()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.HasPrefix(problem, "554"); got != bare {
			t.Fatalf("%q: problem %q, want one: %v", data, problem, bare)
		}
		if want := raw.String(); size != len(want) || string(c.raw) != want[:min(len(want), RawLimit)] {
			t.Fatalf("%q: read %q, want %q", data, c.raw, want)
		}
		var left bytes.Buffer
		if _, err := c.br.WriteTo(&left); err != nil || left.String() != rest {
			t.Fatalf("%q: %q is left, want %q, %v", data, left.String(), rest, err)
		}
	})
}
