package smtp

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/emersion/go-sasl"

	"github.com/stormpost/stormpost/internal/credential"
)

// dial makes a connection that is ready for a message: greeted, encrypted and
// signed in as the configuration says, within DialTimeout. Where the credential is refused and there
// is another by then, it tries once more.
func (p *Provider) dial(ctx context.Context) (*conn, error) {
	c, err := p.dialOnce(ctx)
	if err != nil && errors.Is(err, ErrCredentials) && ctx.Err() == nil {
		refused := err
		if c, err = p.dialOnce(ctx); errors.Is(err, credential.ErrNone) {
			err = refused // why there is none
		}
	}
	return c, err
}

func (p *Provider) dialOnce(ctx context.Context) (*conn, error) {
	dctx, cancel := context.WithTimeout(ctx, p.cfg.DialTimeout)
	defer cancel()
	var use credential.Use
	if p.cfg.Credential != nil {
		var err error
		if use, err = p.cfg.Credential.Use(dctx); err != nil {
			return nil, err
		}
	}
	raw, err := p.dialer.DialContext(dctx, "tcp", p.cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConnect, err)
	}
	c := newConn(raw)
	c.use = use
	stop := context.AfterFunc(dctx, c.interrupt)
	err = p.greet(c)
	if !stop() && err == nil {
		err = dctx.Err()
	}
	if err != nil {
		c.close()
		return nil, err
	}
	c.verified = p.cfg.Now()
	return c, nil
}

func (p *Provider) greet(c *conn) error {
	if p.cfg.TLS == ImplicitTLS {
		if err := p.handshake(c); err != nil {
			return err
		}
	}
	if err := c.arm(p.limits.command); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	r, err := readReply(c.br)
	if err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if err := r.want(2, "greeting"); err != nil {
		return err
	}
	if err := p.hello(c); err != nil {
		return err
	}
	if err := p.startTLS(c); err != nil {
		return err
	}
	return p.signIn(c)
}

func (p *Provider) hello(c *conn) error {
	r, err := c.expect(p.limits.command, 2, "EHLO", "EHLO "+p.localName(c))
	if err != nil {
		return err
	}
	c.caps = parseExtensions(r.lines)
	return nil
}

// localName is what stands after EHLO; without a name it is an address literal
// (RFC 5321 §4.1.1.1, §4.1.3).
func (p *Provider) localName(c *conn) string {
	if p.cfg.LocalName != "" {
		return p.cfg.LocalName
	}
	host, _, err := net.SplitHostPort(c.raw.LocalAddr().String())
	ip := net.ParseIP(host)
	switch {
	case err != nil || ip == nil:
		return "localhost"
	case ip.To4() == nil:
		return "[IPv6:" + ip.String() + "]"
	}
	return "[" + ip.String() + "]"
}

func (p *Provider) startTLS(c *conn) error {
	switch {
	case p.cfg.TLS == ImplicitTLS:
		return nil
	case !c.caps.startTLS && p.cfg.TLS == StartTLSRequired:
		return errors.New("STARTTLS: required, but the server doesn't offer it")
	case !c.caps.startTLS:
		return nil
	}
	if _, err := c.expect(p.limits.command, 2, "STARTTLS", "STARTTLS"); err != nil {
		return err
	}
	// What came with the reply was sent in the clear, by anybody, to be taken
	// for a reply under TLS (CVE-2011-0411).
	if c.br.Buffered() > 0 {
		return fmt.Errorf("STARTTLS: %w: bytes after the reply", errProtocol)
	}
	if err := p.handshake(c); err != nil {
		return err
	}
	// RFC 3207 §4.2: what the server said in the clear is void.
	return p.hello(c)
}

func (p *Provider) handshake(c *conn) error {
	cfg := &tls.Config{
		ServerName: p.cfg.ServerName,
		RootCAs:    p.cfg.RootCAs,
		MinVersion: tls.VersionTLS12,
		// See StartTLSIfOffered.
		InsecureSkipVerify: p.cfg.TLS == StartTLSIfOffered && p.cfg.Username == "" && p.cfg.RootCAs == nil, //nolint:gosec // opportunistic TLS, RFC 7435
	}
	if err := c.arm(p.cfg.DialTimeout); err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	tc := tls.Client(c.raw, cfg)
	if err := tc.Handshake(); err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	c.speakOver(tc)
	return nil
}

// signIn authenticates (RFC 4954) where a username is configured.
func (p *Provider) signIn(c *conn) error {
	if p.cfg.Username == "" {
		return nil
	}
	if !c.overTLS() && !(p.cfg.AllowInsecureAuth && isLoopback(c.raw.RemoteAddr())) {
		return errors.New("AUTH: no password is sent without TLS")
	}
	mech, err := p.mechanism(c)
	if err != nil {
		return err
	}
	err = p.exchange(c, mech)
	var refusal *Error
	switch {
	case err == nil:
		c.use.Accepted()
	case errors.As(err, &refusal) && refusesCredential(refusal.Code):
		c.use.Rejected(refusal.Reply)
		return fmt.Errorf("%w: %w", ErrCredentials, err)
	}
	return err
}

// refusesCredential says whether a reply to AUTH is about what was shown, rather
// than about how (RFC 4954 §4, §6).
func refusesCredential(code int) bool {
	return code >= 505 && code != 534 && code != 538
}

func (p *Provider) mechanism(c *conn) (sasl.Client, error) {
	user, value := p.cfg.Username, c.use.Value()
	check := CheckToken
	if p.cfg.Auth == Password {
		check = CheckPassword
	}
	if err := check(value); err != nil {
		return nil, fmt.Errorf("AUTH: %w", err)
	}
	switch {
	case p.cfg.Auth == XOAuth2 && c.caps.xoauth2:
		return &bearer{name: "XOAUTH2", initial: "user=" + user + "\x01auth=Bearer " + value + "\x01\x01"}, nil
	case p.cfg.Auth == XOAuth2:
		return nil, errors.New("AUTH: the server doesn't offer XOAUTH2")
	case p.cfg.Auth == OAuthBearer && c.caps.oauthBearer:
		return newOAuthBearer(user, value, p.cfg.Addr), nil
	case p.cfg.Auth == OAuthBearer:
		return nil, errors.New("AUTH: the server doesn't offer OAUTHBEARER")
	case c.caps.plain:
		return sasl.NewPlainClient("", user, value), nil
	case c.caps.login:
		return sasl.NewLoginClient(user, value), nil
	}
	return nil, errors.New("AUTH: the server offers neither PLAIN nor LOGIN")
}

func (p *Provider) exchange(c *conn, mech sasl.Client) error {
	name, initial, err := mech.Start()
	if err != nil {
		return fmt.Errorf("AUTH: %w", err)
	}
	shown := base64.StdEncoding.EncodeToString(initial)
	secrets := []string{shown, c.use.Value()}
	line := "AUTH " + name + " " + shown
	for {
		r, err := c.command(p.limits.command, line)
		if err != nil {
			return fmt.Errorf("AUTH: %w", err)
		}
		if r.code != 334 {
			return r.without(secrets).want(2, "AUTH")
		}
		challenge, err := base64.StdEncoding.DecodeString(strings.TrimSpace(strings.Join(r.lines, "")))
		if err != nil {
			return fmt.Errorf("AUTH: %w: challenge is not base64", errProtocol)
		}
		// A mechanism answers a bounded number of challenges, then fails.
		response, err := mech.Next(challenge)
		if err != nil {
			return fmt.Errorf("AUTH: %w", err)
		}
		line = base64.StdEncoding.EncodeToString(response)
		secrets = append(secrets, line)
	}
}

func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}
