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
	if !IsDotAtom(a.Local) {
		return Address{}, badContent(field, "has a local part that is not a dot-atom")
	}
	var ok bool
	if a.Host, ok = HostName(m.Address[at+1:]); !ok {
		return Address{}, badContent(field, "has a domain that is not a host name")
	}
	return a, nil
}

// HostName is a domain's form for comparing and for DNS: in lower-case ASCII, of
// two or more labels, and no IP address. The A-label of IDNA 2008 means the same
// everywhere.
func HostName(domain string) (host string, ok bool) {
	host = domain
	if IsASCII(host) {
		host = strings.ToLower(host)
	}
	if !IsASCII(host) || strings.Contains(host, "xn--") {
		var err error
		if host, err = idna.Lookup.ToASCII(host); err != nil {
			return "", false
		}
	}
	if len(host) > 253 {
		return "", false
	}
	labels, last := 0, ""
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, notInLabel) {
			return "", false
		}
		labels++
		last = label
	}
	// A top-level domain of digits is the end of an IPv4 address.
	return host, labels >= 2 && strings.Trim(last, "0123456789") != ""
}

func notInLabel(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }

// IsDotAtom is RFC 5322 §3.2.3 with the UTF-8 of RFC 6531 §3.3, as far as it
// can be seen: no blanks, and nothing that hides or turns what stands beside it.
func IsDotAtom(s string) bool {
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
