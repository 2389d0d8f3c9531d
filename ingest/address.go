package ingest

import (
	"errors"
	netmail "net/mail"
	"strings"
	"unicode/utf8"

	"github.com/stormpost/stormpost/internal/mail"
)

const (
	maxMailbox = 1000 // bytes of a mailbox with its display name
	maxAddress = 254  // octets of local part, @ and domain: RFC 3696 erratum 1690
	maxLocal   = 64   // octets: RFC 5321 §4.5.3.1.1
)

// address is a mailbox's parts that decide who it is.
type address struct {
	local  string // as given: only its host knows whether case matters in it
	domain string // in lower-case ASCII
}

// parseMailbox reads one RFC 5322 mailbox, more strictly than net/mail: no
// quoted local part, source route, domain literal or single-label domain, since
// what those mean differs from one server to the next. UTF-8 local parts
// (RFC 6531) and internationalised domains are allowed, and carried as they are.
// What a local part and a domain may be is internal/mail's to say, which has to
// send to them.
func parseMailbox(s string) (address, error) {
	switch {
	case s == "":
		return address{}, errors.New("is empty")
	case len(s) > maxMailbox:
		return address{}, errors.New("is too long")
	case !utf8.ValidString(s):
		return address{}, errors.New("is not valid UTF-8")
	case strings.ContainsFunc(s, breaksLine):
		return address{}, errors.New("has a line break or control character")
	}
	spec := s
	if !bareAddress(s) {
		m, err := netmail.ParseAddress(s)
		if err != nil || !onlyMailbox(s) {
			return address{}, errors.New("is not one mailbox as in RFC 5322")
		}
		// An encoded word may have hidden what was looked for above.
		if strings.ContainsFunc(m.Name, breaksLine) || strings.ContainsFunc(m.Address, breaksLine) {
			return address{}, errors.New("has a line break or control character")
		}
		spec = m.Address
	}
	at := strings.LastIndexByte(spec, '@')
	if at < 0 {
		return address{}, errors.New("has no domain")
	}
	local, domain := spec[:at], spec[at+1:]
	if err := checkLocal(local); err != nil {
		return address{}, err
	}
	if len(spec) > maxAddress {
		return address{}, errors.New("has an address of more than 254 octets")
	}
	ascii, ok := mail.HostName(domain)
	if !ok {
		return address{}, errors.New("has a domain that is not a host name of two or more labels")
	}
	return address{local, ascii}, nil
}

// bareAddress says whether s can be nothing but a local part and a domain, which
// needs no parser: most are.
func bareAddress(s string) bool {
	return strings.Count(s, "@") == 1 && only(s, func(b byte) bool { return b == '@' || b == '.' || isAtext(b) })
}

// onlyMailbox refuses what net/mail takes as one address though it isn't just a
// mailbox: a group of one, a source route, comments. Outside a quoted string
// their marks mean nothing else.
func onlyMailbox(s string) bool {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && strings.IndexByte(":;()", c) >= 0:
			return false
		}
	}
	return true
}

func checkLocal(local string) error {
	switch {
	case len(local) > maxLocal:
		return errors.New("has a local part of more than 64 octets")
	case strings.ContainsAny(local, "%!"):
		return errors.New("has a source route in its local part")
	case !mail.IsDotAtom(local):
		return errors.New("has a local part that is not a dot-atom")
	}
	return nil
}

// isAtext is RFC 5322 §3.2.3.
func isAtext(b byte) bool {
	return isAlphanumeric(b) || strings.IndexByte("!#$%&'*+-/=?^_`{|}~", b) >= 0
}

// IsSenderDomain says whether d is "*", or a domain with or without a dot before
// it, as mayUse wants a tenant's.
func IsSenderDomain(d string) bool {
	_, ok := mail.HostName(strings.TrimPrefix(d, "."))
	return d == "*" || ok
}

// mayUse says whether a tenant with these domains may send from domain, which is
// in lower-case ASCII. See keyring.Principal for what the entries mean.
func mayUse(domains []string, domain string) bool {
	for _, d := range domains {
		if d == "*" {
			return true
		}
		base, below := strings.CutPrefix(d, ".")
		ascii, ok := mail.HostName(base)
		if !ok {
			continue
		}
		if !below && domain == ascii || below && strings.HasSuffix(domain, "."+ascii) {
			return true
		}
	}
	return false
}
