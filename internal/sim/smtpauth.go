package sim

import (
	"encoding/base64"
	"errors"
	"strings"
)

const smtpMaxAuthErrors = 3

func (c *smtpConn) offersAuth() bool {
	return c.srv.needsAuth() && (c.secure || c.srv.o.PlainAuth)
}

// mechanisms is what EHLO offers.
func (s *SMTPServer) mechanisms() string {
	line := "AUTH PLAIN LOGIN"
	if s.o.Tokens != nil {
		line += " XOAUTH2 OAUTHBEARER"
	}
	return line
}

// auth is RFC 4954 with PLAIN (RFC 4616), LOGIN, XOAUTH2 and OAUTHBEARER.
func (c *smtpConn) auth(arg string) error {
	mechanism, initial, _ := strings.Cut(arg, " ")
	switch {
	case !c.srv.needsAuth():
		return c.refuse("502 5.5.1 no AUTH here")
	case !c.extended:
		return c.refuse("503 5.5.1 EHLO first")
	case c.user != "":
		return c.refuse("503 5.5.1 authenticated already")
	case c.tx.open:
		return c.refuse("503 5.5.1 not within a transaction")
	case !c.offersAuth():
		return c.refuse("538 5.7.11 STARTTLS first")
	}
	if answered, err := c.fault(StepAuth); answered || err != nil {
		return err
	}
	var user, password string
	var err error
	known := c.srv.knows
	switch name := strings.ToUpper(mechanism); name {
	case "XOAUTH2", "OAUTHBEARER":
		if c.srv.o.Tokens == nil {
			return c.refuse("504 5.5.4 PLAIN or LOGIN")
		}
		user, password, err = c.authToken(name, initial)
		known = func(user, token string) bool { return user != "" && c.srv.o.Tokens.Valid(token) }
	case "PLAIN":
		user, password, err = c.authPlain(initial)
	case "LOGIN":
		user, password, err = c.authLogin(initial)
	default:
		return c.refuse("504 5.5.4 PLAIN or LOGIN")
	}
	switch {
	case errors.Is(err, errBadAuth):
		return c.refuse("501 5.5.2 canceled, or not base64 as it should be")
	case err != nil:
		return err
	case !known(user, password):
		if c.authErrs++; c.authErrs >= smtpMaxAuthErrors {
			return errors.Join(c.reply("421 4.7.0 too many failures"), errEnd)
		}
		return c.reply("535 5.7.8 wrong user name or password")
	}
	c.user = user
	if m := strings.ToUpper(mechanism); m == "XOAUTH2" || m == "OAUTHBEARER" {
		c.token = password
	}
	return c.reply("235 2.7.0 welcome")
}

// authToken reads user and token. A bad token is explained in a challenge, which
// the client answers before it gets its 535.
func (c *smtpConn) authToken(mechanism, initial string) (user, token string, err error) {
	if initial == "" {
		if initial, err = c.challenge(""); err != nil {
			return "", "", err
		}
	}
	text, err := decodeAuth(initial)
	if err != nil {
		return "", "", err
	}
	// "user=U^Aauth=Bearer T^A^A", or "n,a=U,^A…^Aauth=Bearer T^A^A" (RFC 7628 §3.1).
	fields := strings.Split(text, "\x01")
	switch gs2 := strings.Split(fields[0], ","); {
	case mechanism == "XOAUTH2":
		user, _ = strings.CutPrefix(fields[0], "user=")
	case len(gs2) == 3 && gs2[0] == "n":
		user = strings.NewReplacer("=3D", "=", "=2C", ",").Replace(strings.TrimPrefix(gs2[1], "a="))
	}
	for _, f := range fields {
		if rest, ok := strings.CutPrefix(f, "auth=Bearer "); ok {
			token = rest
		}
	}
	if len(fields) < 4 || user == "" || !strings.HasSuffix(text, "\x01\x01") {
		return "", "", errBadAuth
	}
	if !c.srv.o.Tokens.Valid(token) {
		if _, err := c.challenge(`{"status":"401","schemes":"bearer"}`); err != nil {
			return "", "", err
		}
	}
	return user, token, nil
}

var errBadAuth = errors.New("bad AUTH exchange")

func (c *smtpConn) authPlain(initial string) (user, password string, err error) {
	if initial == "" {
		if initial, err = c.challenge(""); err != nil {
			return "", "", err
		}
	}
	text, err := decodeAuth(initial)
	if err != nil {
		return "", "", err
	}
	parts := strings.Split(text, "\x00") // authzid, authcid, passwd
	if len(parts) != 3 || parts[0] != "" && parts[0] != parts[1] {
		return "", "", errBadAuth
	}
	return parts[1], parts[2], nil
}

func (c *smtpConn) authLogin(initial string) (user, password string, err error) {
	if initial == "" {
		if initial, err = c.challenge("Username:"); err != nil {
			return "", "", err
		}
	}
	if user, err = decodeAuth(initial); err != nil {
		return "", "", err
	}
	answer, err := c.challenge("Password:")
	if err != nil {
		return "", "", err
	}
	password, err = decodeAuth(answer)
	return user, password, err
}

func (c *smtpConn) challenge(text string) (string, error) {
	if err := c.reply("334 " + base64.StdEncoding.EncodeToString([]byte(text))); err != nil {
		return "", err
	}
	return c.readLine()
}

func decodeAuth(s string) (string, error) {
	if s == "=" { // an empty initial response, RFC 4954 §4
		return "", nil
	}
	b, err := base64.StdEncoding.DecodeString(s) // fails on the "*" that cancels
	if err != nil {
		return "", errBadAuth
	}
	return string(b), nil
}
