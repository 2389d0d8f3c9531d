package sim

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// mail begins a transaction (RFC 5321 §3.3).
func (c *smtpConn) mail(arg string) error {
	switch {
	case c.helo == "":
		return c.refuse("503 5.5.1 EHLO first")
	case c.srv.needsAuth() && c.user == "":
		return c.refuse("530 5.7.0 AUTH first")
	case c.token != "" && !c.srv.o.Tokens.Valid(c.token):
		return errors.Join(c.reply("530 5.7.0 the token ended, sign in again"), errEnd)
	case c.tx.open:
		return c.refuse("503 5.5.1 one transaction at a time")
	}
	path, params, ok := cutPath(arg, "FROM:")
	if !ok {
		return c.refuse("501 5.5.2 want FROM:<address>")
	}
	c.tx = transaction{from: path}
	if problem := c.mailParams(params); problem != "" {
		return c.refuse(problem)
	}
	if path != "" {
		if problem := checkAddress(path, c.tx.utf8); problem != "" {
			return c.refuse("553 5.1.7 " + problem)
		}
	}
	if answered, err := c.fault(StepMail); answered || err != nil {
		return err
	}
	c.tx.open = true
	return c.reply("250 2.1.0 sender ok")
}

// mailParams reads MAIL's extensions; it answers with a reply if one is wrong.
func (c *smtpConn) mailParams(params []string) (problem string) {
	for _, p := range params {
		name, value, hasValue := strings.Cut(p, "=")
		switch name = strings.ToUpper(name); {
		case !c.extended:
			return "555 5.5.4 parameters need EHLO"
		case name == "SIZE":
			n, err := strconv.ParseUint(value, 10, 63)
			if err != nil {
				return "501 5.5.4 SIZE: want a number"
			}
			if n > smtpMaxMessage {
				return fmt.Sprintf("552 5.3.4 over %d bytes", smtpMaxMessage)
			}
		case name == "BODY":
			if v := strings.ToUpper(value); v != "7BIT" && v != "8BITMIME" {
				return "501 5.5.4 BODY: want 7BIT or 8BITMIME"
			}
		case name == "SMTPUTF8" && !hasValue:
			c.tx.utf8 = true
		case name == "AUTH" && c.srv.needsAuth(): // RFC 4954 §5; nobody here cares who
		default:
			return "555 5.5.4 unknown parameter " + name
		}
	}
	return ""
}

// rcpt adds a recipient.
func (c *smtpConn) rcpt(arg string) error {
	if !c.tx.open {
		return c.refuse("503 5.5.1 MAIL first")
	}
	path, params, ok := cutPath(arg, "TO:")
	switch {
	case !ok || path == "":
		return c.refuse("501 5.5.2 want TO:<address>")
	case len(params) > 0:
		return c.refuse("555 5.5.4 RCPT takes no parameters")
	case len(c.tx.to) >= smtpMaxRecipients:
		return c.refuse("452 4.5.3 too many recipients")
	}
	if problem := checkAddress(path, c.tx.utf8); problem != "" && !strings.EqualFold(path, "postmaster") {
		return c.refuse("553 5.1.3 " + problem)
	}
	if answered, err := c.fault(StepRcpt, path); answered || err != nil {
		return err
	}
	c.tx.to = append(c.tx.to, path)
	return c.reply("250 2.1.5 recipient ok")
}

// cutPath reads KEYWORD<path> and what follows. A quoted local part may hold
// anything, a closing bracket and spaces included.
func cutPath(arg, keyword string) (path string, params []string, ok bool) {
	if len(arg) <= len(keyword) || !strings.EqualFold(arg[:len(keyword)], keyword) || arg[len(keyword)] != '<' {
		return "", nil, false
	}
	rest := arg[len(keyword)+1:]
	quoted := false
	for i := 0; i < len(rest); i++ {
		switch {
		case quoted && rest[i] == '\\':
			i++
		case rest[i] == '"':
			quoted = !quoted
		case rest[i] == '>' && !quoted:
			after := rest[i+1:]
			return rest[:i], strings.Fields(after), after == "" || after[0] == ' '
		}
	}
	return "", nil, false
}

// checkAddress says what is wrong with a mailbox, or nothing. It knows less
// than RFC 5321's grammar, but all that our own writing could get wrong.
func checkAddress(a string, allowUTF8 bool) (problem string) {
	at := strings.LastIndexByte(a, '@')
	local, domain := a[:max(at, 0)], a[at+1:]
	ascii := true
	for _, r := range a {
		if r < ' ' || r == 0x7f {
			return "control character in the address"
		}
		ascii = ascii && r < utf8.RuneSelf
	}
	switch {
	case len(a) > 254: // §4.5.3.1.3 less the brackets
		return "address too long"
	case local == "" || domain == "":
		return "want local@domain"
	case local[0] != '"' && strings.ContainsAny(local, ` "(),:;<>@[\]`), strings.ContainsAny(domain, ` "(),;<>@\`):
		return "character that needs quotes"
	case !utf8.ValidString(a):
		return "not UTF-8"
	case !ascii && !allowUTF8:
		return "needs SMTPUTF8"
	}
	return ""
}
