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
)

// dial makes a connection that is ready for a message: greeted, encrypted and
// signed in as the configuration says.
func (p *Provider) dial(ctx context.Context) (*conn, error) {
	dctx, cancel := context.WithTimeout(ctx, p.cfg.DialTimeout)
	defer cancel()
	raw, err := p.dialer.DialContext(dctx, "tcp", p.cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	c := newConn(raw)
	stop := context.AfterFunc(ctx, c.interrupt)
	err = p.greet(c)
	if !stop() && err == nil {
		err = ctx.Err()
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
	var mech sasl.Client
	switch {
	case c.caps.plain:
		mech = sasl.NewPlainClient("", p.cfg.Username, p.cfg.Password)
	case c.caps.login:
		mech = sasl.NewLoginClient(p.cfg.Username, p.cfg.Password)
	default:
		return errors.New("AUTH: the server offers neither PLAIN nor LOGIN")
	}
	err := p.exchange(c, mech)
	var refusal *Error
	if errors.As(err, &refusal) && refusal.Code >= 500 {
		return fmt.Errorf("%w: %w", ErrCredentials, err)
	}
	return err
}

func (p *Provider) exchange(c *conn, mech sasl.Client) error {
	name, initial, err := mech.Start()
	if err != nil {
		return fmt.Errorf("AUTH: %w", err)
	}
	line := "AUTH " + name + " " + base64.StdEncoding.EncodeToString(initial)
	for {
		r, err := c.command(p.limits.command, line)
		if err != nil {
			return fmt.Errorf("AUTH: %w", err)
		}
		if r.code != 334 {
			return r.want(2, "AUTH")
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
	}
}

func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}
