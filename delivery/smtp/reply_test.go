package smtp

import (
	"bufio"
	"bytes"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestEnhanced(t *testing.T) {
	for line, want := range map[string]string{
		"550 5.1.1 no": "5.1.1", "550 5.1.1": "5.1.1", "550 5.7.999 x": "5.7.999", "550 no": "", "550": "",
		"550 4.1.1 other class": "", "550 5.1 x": "", "550 5.1.1.1 x": "", "550 5.1.1000 x": "", "550 5.a.1 x": "", "550 5.1.-1 x": "",
	} {
		r, err := readReply(bufio.NewReader(strings.NewReader(line + "\r\n")))
		if err != nil || r.enhanced() != want {
			t.Errorf("%q: %q, %v", line, r.enhanced(), err)
		}
	}
}

func TestParseExtensions(t *testing.T) {
	got := parseExtensions([]string{"STARTTLS says hello", "PIPELINING", "size 35882577", "8bitmime", "smtputf8", "AUTH=LOGIN", "AUTH PLAIN XOAUTH2", "", "X-OTHER"})
	want := extensions{pipelining: true, eightBit: true, utf8: true, sizes: true, maxSize: 35882577, plain: true, login: true, xoauth2: true}
	if got != want {
		t.Errorf("%+v", got)
	}
	if got := parseExtensions([]string{"x", "SIZE -5", "SIZE x", "SIZE"}); got != (extensions{sizes: true}) {
		t.Errorf("%+v", got)
	}
	if got := parseExtensions(nil); got != (extensions{}) {
		t.Errorf("%+v", got)
	}
}

func FuzzReply(f *testing.F) {
	for _, s := range []string{"250 ok\r\n", "250-a\r\n250 b\r\n", "250\n", "25", "250-a\r\n251 b\r\n", "550 5.1.1 x\x00\xff\r\n", "421 try in 5 minutes\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := readReply(bufio.NewReaderSize(bytes.NewReader(in), maxReplyLine))
		if err != nil {
			return
		}
		if r.code < 200 || r.code > 599 || len(r.lines) == 0 || len(r.lines) > maxReplyLines {
			t.Errorf("%+v", r)
		}
		if !bytes.ContainsRune(in, '\n') {
			t.Errorf("%q is not a whole reply", in)
		}
		s := r.String()
		if len(s) > maxReplyText || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
			t.Errorf("%q", s)
		}
		_, _, _ = parseExtensions(r.lines), reference(r), r.enhanced()
		if d := retryAfter(r); d < 0 || d > maxRetryAfter {
			t.Errorf("retry after %v", d)
		}
	})
}
