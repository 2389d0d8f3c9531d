package ingest

import (
	netmail "net/mail"
	"strings"
	"testing"

	"github.com/stormpost/stormpost/internal/mail"
)

func TestParseMailbox(t *testing.T) {
	for s, want := range map[string]address{
		"a@example.com":                        {"a", "example.com"},
		"A.b+c@EXAMPLE.com":                    {"A.b+c", "example.com"},
		"Jo Doe <jo@example.com>":              {"jo", "example.com"},
		`"Doe, Jo; (x)" <jo@example.com>`:      {"jo", "example.com"},
		"=?utf-8?q?J=C3=B6?= <jo@example.com>": {"jo", "example.com"},
		"Jürgen <jürgen@bücher.example>":       {"jürgen", "xn--bcher-kva.example"},
		"a@xn--bcher-kva.example":              {"a", "xn--bcher-kva.example"},
		strings.Repeat("a", 64) + "@x.example": {strings.Repeat("a", 64), "x.example"},
	} {
		if got, err := parseMailbox(s); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{
		"", "a", "@example.com", "a@", "a b@example.com", "a@b@example.com", "a@example.com, b@example.com",
		"a@example.com\r\nX: y", "Jo\n <a@example.com>", "a\x00@example.com", "\xff@example.com", "a\u2028@example.com",
		"=?utf-8?q?=0D=0A?= <a@example.com>", "g: a@example.com;", "a@example.com (c)", "<@b.example:a@example.com>",
		`"a b"@example.com`, `"a"b@example.com`, "a%b@example.com", "b.example!a@example.com", ".a@example.com", "a.@example.com",
		"a..b@example.com", "a@[127.0.0.1]", "a@localhost", "a@127.0.0.1", "a@-x.example", "a@x-.example", "a@x..example", "a@.example",
		"a@x_y.example", "a@example.com.", "a@" + strings.Repeat("x", 64) + ".example", "a@xn--\u00fc.example", "a@xn--0.example", "a@XN--0.example",
		"\u202ea@example.com", "\u00a0a@example.com", "\u200bx@example.com", "a\ue000@example.com", "Jo <a\u200d@example.com>",
		strings.Repeat("a", 65) + "@example.com", "a@" + strings.Repeat("x.", 126) + "example", strings.Repeat("x", 1000) + " <a@example.com>",
	} {
		if got, err := parseMailbox(s); err == nil {
			t.Errorf("%q is taken for %+v", s, got)
		}
	}
}

func TestMayUse(t *testing.T) {
	for _, c := range []struct {
		domains []string
		domain  string
		want    bool
	}{
		{nil, "example.com", false},
		{[]string{"*"}, "example.com", true},
		{[]string{"Example.COM"}, "example.com", true},
		{[]string{"example.com"}, "sub.example.com", false},
		{[]string{"example.com"}, "badexample.com", false},
		{[]string{".example.com"}, "a.b.example.com", true},
		{[]string{".example.com"}, "example.com", false},
		{[]string{".example.com"}, "badexample.com", false},
		{[]string{"bücher.example"}, "xn--bcher-kva.example", true},
		{[]string{"", ".", "com"}, "example.com", false},
	} {
		if got := mayUse(c.domains, c.domain); got != c.want {
			t.Errorf("%q from %q: %v", c.domains, c.domain, got)
		}
	}
}

// What is taken for a mailbox is one line, names one host, and net/mail, we and
// whoever sends to it agree on who it is.
func FuzzParseMailbox(f *testing.F) {
	for _, s := range []string{"a@example.com", `"x" <a@example.com>`, "=?utf-8?b?eA==?= <a@b.c>", "g:a@b.c;", "jü@bücher.example", "a@STRA\u1e9eE.example", "\u00a0@b.c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseMailbox(s)
		if err != nil {
			return
		}
		m, err := netmail.ParseAddress(s)
		if err != nil || !strings.HasPrefix(m.Address, a.local+"@") {
			t.Fatalf("%q: %+v, but net/mail says %v, %v", s, a, m, err)
		}
		if strings.ContainsAny(s+m.Name+m.Address, "\r\n\x00") || strings.ContainsAny(a.local, " \"%!@<>,;:()[]\\") {
			t.Fatalf("%q: %+v", s, a)
		}
		if sent, err := mail.ParseMailbox("to", s); err != nil || sent.Local != a.local || sent.Host != a.domain {
			t.Fatalf("%q: %+v, but it would go to %+v, %v", s, a, sent, err)
		}
		again, err := parseMailbox(a.local + "@" + a.domain)
		if err != nil && len(a.local)+1+len(a.domain) <= maxAddress || err == nil && again != a {
			t.Fatalf("%q: %+v, again %+v, %v", s, a, again, err)
		}
	})
}
