package smtp

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
)

// TLSMode says when a connection is encrypted.
type TLSMode string

const (
	// StartTLSIfOffered is the default. Without Username and RootCAs the
	// server's certificate is not verified: whoever could forge it could as
	// well hide the offer (RFC 7435). With either of them it is.
	StartTLSIfOffered TLSMode = "starttls-if-offered"
	// StartTLSRequired uses no server that doesn't offer STARTTLS.
	StartTLSRequired TLSMode = "starttls-required"
	// ImplicitTLS begins with TLS, usually on port 465 (RFC 8314 §3.3).
	ImplicitTLS TLSMode = "implicit"
)

// AuthMode says how to sign in.
type AuthMode string

const (
	// Password is the default: AUTH PLAIN or LOGIN, as the server offers.
	Password AuthMode = ""
	// XOAuth2 shows an access token as Gmail and Outlook ask for it:
	// https://developers.google.com/workspace/gmail/imap/xoauth2-protocol
	XOAuth2 AuthMode = "xoauth2"
	// OAuthBearer shows an access token by RFC 7628.
	OAuthBearer AuthMode = "oauthbearer"
)

// Config says which relay to use and how. Only Name and Addr are required.
type Config struct {
	Name string
	Addr string // host:port

	// Username and Credential, a password or with XOAuth2 and OAuthBearer an
	// access token, sign in; both or neither. They are sent over TLS only, unless
	// AllowInsecureAuth is set and the server is a loopback address.
	Username          string
	Credential        *credential.Credential
	Auth              AuthMode
	AllowInsecureAuth bool

	TLS        TLSMode
	ServerName string         // in the certificate; default: the host of Addr
	RootCAs    *x509.CertPool // default: the system's

	LocalName string // in EHLO; default: the host's qualified name, else its address

	Connections      int           // at most; default 24
	IdleTimeout      time.Duration // after which an unused connection is closed; default 30 s
	MaxPerConnection int           // messages; default 1,000

	DialTimeout time.Duration // for everything from TCP to AUTH; default 30 s
	// CommandTimeout replaces the time allowed for each step before the final
	// dot; by default these are the minimums of RFC 5321 §4.5.3.2. The claim's end
	// bounds them together.
	CommandTimeout time.Duration
	// ReplyLimit is the time allowed for the final write and its reply;
	// default 10 minutes, the minimum of RFC 5321 §4.5.3.2.6.
	ReplyLimit time.Duration

	// DKIM signs with every key whose Domain is that of the message's From.
	DKIM []DKIMKey

	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default: discards
}

// DKIMKey is one signing key (RFC 6376, RFC 8463). Two keys of one domain, RSA
// and Ed25519, make two signatures.
type DKIMKey struct {
	Domain   string // in lower-case ASCII
	Selector string
	Key      crypto.Signer // *rsa.PrivateKey of 1,024 bits or more, or ed25519.PrivateKey
}

// CheckPassword is a credential's Check for passwords.
func CheckPassword(value string) error {
	if strings.ContainsRune(value, 0) {
		return errors.New("a password can't hold a NUL (RFC 4616 §2)")
	}
	return nil
}

// CheckToken is a credential's Check for XOAuth2 and OAuthBearer.
func CheckToken(value string) error {
	if strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("an access token has printable ASCII characters only (RFC 6750 §2.1)")
	}
	return nil
}

// String leaves out the credential and the keys, as does LogValue.
func (c Config) String() string { return "smtp relay " + c.Name + " at " + c.Addr }

// LogValue is String for slog.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

const (
	maxConnections = 10_000
	minReplyLimit  = time.Second
)

// Validate fails with message.FieldErrors that name everything that is wrong.
// Zero fields stand for their defaults.
func (c Config) Validate() error {
	var errs message.FieldErrors
	add := func(field, format string, args ...any) {
		errs = append(errs, message.FieldError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	if c.Name == "" {
		add("name", "is required")
	}
	if err := checkAddr(c.Addr); err != nil {
		add("addr", "%v", err)
	}
	switch {
	case c.Credential != nil && c.Username == "":
		add("username", "is required with a password")
	case c.Credential == nil && c.Username != "":
		add("password", "is required with a username")
	case strings.ContainsAny(c.Username, "\x00\x01"):
		add("username", "can't hold a NUL (RFC 4616 §2) or SOH (RFC 7628 §3.1)")
	}
	switch c.Auth {
	case Password, XOAuth2, OAuthBearer:
	default:
		add("auth", "is %q, want %s or %s, or nothing for a password", c.Auth, XOAuth2, OAuthBearer)
	}
	if c.Auth != Password && c.Credential == nil {
		add("auth", "%s needs a username and a token", c.Auth)
	}
	switch c.TLS {
	case "", StartTLSIfOffered, StartTLSRequired, ImplicitTLS:
	default:
		add("tls", "is %q, want %s, %s or %s", c.TLS, StartTLSIfOffered, StartTLSRequired, ImplicitTLS)
	}
	if c.LocalName != "" && !isLocalName(c.LocalName) {
		add("local_name", "is not a host name or address literal")
	}
	if c.Connections < 0 || c.Connections > maxConnections {
		add("connections", "is %d, want 1 to %d", c.Connections, maxConnections)
	}
	if c.MaxPerConnection < 0 {
		add("max_per_connection", "is negative")
	}
	for _, d := range []struct {
		field string
		value time.Duration
	}{
		{"idle_timeout", c.IdleTimeout}, {"dial_timeout", c.DialTimeout},
		{"command_timeout", c.CommandTimeout}, {"reply_limit", c.ReplyLimit},
	} {
		if d.value < 0 {
			add(d.field, "is negative")
		}
	}
	if c.ReplyLimit > 0 && c.ReplyLimit < minReplyLimit {
		add("reply_limit", "is under %v: each slow reply would be a doubt", minReplyLimit)
	}
	for i, k := range c.DKIM {
		if field, problem := k.check(); field != "" {
			add(fmt.Sprintf("dkim[%d].%s", i, field), "%s", problem)
		}
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}

func checkAddr(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return errors.New("want HOST:PORT")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errors.New("want a port from 1 to 65535")
	}
	return nil
}

// isLocalName allows what can stand after EHLO: letters, digits, dots and
// hyphens, and the marks of an address literal.
func isLocalName(s string) bool {
	return len(s) <= 255 && !strings.ContainsFunc(s, func(r rune) bool {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		return !letter && (r < '0' || r > '9') && !strings.ContainsRune(".-_:[]", r)
	})
}

func (c Config) withDefaults() Config {
	setDefault(&c.TLS, StartTLSIfOffered)
	if c.ServerName == "" {
		c.ServerName, _, _ = net.SplitHostPort(c.Addr)
	}
	if c.LocalName == "" {
		if name, err := os.Hostname(); err == nil && strings.Contains(name, ".") && isLocalName(name) {
			c.LocalName = name
		}
	}
	setDefault(&c.Connections, 24)
	setDefault(&c.IdleTimeout, 30*time.Second)
	setDefault(&c.MaxPerConnection, 1000)
	setDefault(&c.DialTimeout, 30*time.Second)
	setDefault(&c.ReplyLimit, 10*time.Minute)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// timeouts of the steps before the final dot, by RFC 5321 §4.5.3.2.
type timeouts struct{ command, data, block time.Duration }

func (c Config) timeouts() timeouts {
	if c.CommandTimeout > 0 {
		return timeouts{c.CommandTimeout, c.CommandTimeout, c.CommandTimeout}
	}
	return timeouts{command: 5 * time.Minute, data: 2 * time.Minute, block: 3 * time.Minute}
}
