package mail

import (
	netmail "net/mail"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Unfit is why a message can't be handed to a server, or to any.
type Unfit struct {
	Code   string // an enhanced status code (RFC 3463)
	Reason string // may hold anything: make it printable before it is shown
}

func (e *Unfit) Error() string { return e.Reason }

func badContent(field, problem string) error { return &Unfit{"5.6.0", field + " " + problem} }

// Address is a mailbox, fit for an envelope and a header.
type Address struct {
	Name  string // display name, decoded, or empty
	Local string // a dot-atom, perhaps in UTF-8
	Host  string // the domain in lower-case ASCII
}

// Spec is the bare address, in ASCII but for its local part.
func (a Address) Spec() string { return a.Local + "@" + a.Host }

// UTF8 says whether the address needs SMTPUTF8 (RFC 6531).
func (a Address) UTF8() bool { return !IsASCII(a.Local) }

// ParseMailbox reads one RFC 5322 mailbox. It was validated when it was
// accepted; what could break out of a command or a header is refused again.
func ParseMailbox(field, s string) (Address, error) {
	if err := clean(field, s); err != nil {
		return Address{}, err
	}
	m, err := netmail.ParseAddress(s)
	if err != nil {
		return Address{}, badContent(field, "is not a mailbox")
	}
	// An encoded word may have hidden what clean looks for.
	if err := clean(field, m.Name); err != nil {
		return Address{}, err
	}
	at := strings.LastIndexByte(m.Address, '@')
	a := Address{Name: m.Name, Local: m.Address[:at]}
	if !isDotAtom(a.Local) {
		return Address{}, badContent(field, "has a local part that is not a dot-atom")
	}
	host := strings.ToLower(m.Address[at+1:])
	if !IsASCII(host) {
		// IDNA 2008 as DNS look-ups have it: the A-label means the same everywhere.
		if host, err = idna.Lookup.ToASCII(host); err != nil {
			return Address{}, badContent(field, "has a domain that is not a host name")
		}
	}
	if host == "" || strings.ContainsFunc(host, func(r rune) bool { return !isHostRune(r) }) {
		return Address{}, badContent(field, "has a domain that is not a host name")
	}
	a.Host = host
	return a, nil
}

func isHostRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_'
}

// isDotAtom is RFC 5322 §3.2.3 with the UTF-8 of RFC 6531 §3.3.
func isDotAtom(s string) bool {
	if s == "" || s[0] == '.' || s[len(s)-1] == '.' || strings.Contains(s, "..") {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		switch {
		case r >= utf8.RuneSelf:
			return !unicode.IsPrint(r)
		case r <= ' ' || r == 0x7f:
			return true
		}
		return strings.ContainsRune(`()<>[]:;@\,"`, r)
	})
}

// clean refuses what no header may hold: line breaks, control characters but
// the tab, and what is not UTF-8.
func clean(field, s string) error {
	for i := range len(s) {
		if b := s[i]; b < ' ' && b != '\t' || b >= 0x7f {
			return cleanSlow(field, s)
		}
	}
	return nil
}

func cleanSlow(field, s string) error {
	if !utf8.ValidString(s) {
		return badContent(field, "is not valid UTF-8")
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r != '\t' && unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }) {
		return badContent(field, "has a line break or control character")
	}
	return nil
}

// IsASCII says whether no byte of s is over 0x7f.
func IsASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
