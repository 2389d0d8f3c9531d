package sim

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"sync"
	"time"
)

// Limits of the SMTP server.
const (
	smtpMaxMessage    = 30 << 20 // bytes, as SIZE announces
	smtpMaxLine       = 4 << 10  // bytes of a command, CRLF included
	smtpMaxRecipients = 100      // RFC 5321 §4.5.3.1.8 asks for at least these
	smtpMaxErrors     = 20       // refused commands, then 421
	smtpTimeout       = 5 * time.Minute
)

// SMTPOptions configure an SMTPServer. Store is required.
type SMTPOptions struct {
	Addr     string // where to listen; default a free port of 127.0.0.1
	Store    *Store
	Hostname string // in the greeting and the certificate; default localhost
	// Accounts are the passwords by user name. If there are any, mail is taken
	// only after AUTH.
	Accounts map[string]string
	// Tokens are taken by AUTH XOAUTH2 and OAUTHBEARER, of any user. A session
	// whose token isn't good any more is signed out at its next message: 530.
	Tokens *TokenServer
	// Implicit begins each session with TLS (RFC 8314 §3.3).
	Implicit bool
	// PlainAuth offers AUTH without TLS, too.
	PlainAuth bool
	// NoTLS leaves out STARTTLS.
	NoTLS   bool
	Timeout time.Duration // for the next bytes, either way; default 5 minutes
	Clock   func() time.Time
	Log     *slog.Logger
}

// SMTPServer takes mail by ESMTP (RFC 5321) with PIPELINING (RFC 2920),
// 8BITMIME (RFC 6152), SMTPUTF8 (RFC 6531), SIZE (RFC 1870),
// ENHANCEDSTATUSCODES (RFC 2034), STARTTLS (RFC 3207) and AUTH PLAIN and LOGIN
// (RFC 4954), XOAUTH2 and OAUTHBEARER (RFC 7628). Each recipient of a transaction is a Taken of its own.
//
// It refuses, after reading them to their end, messages that hold a CR or LF
// alone (RFC 5321 §2.3.8), and only <CRLF>.<CRLF> ends a message: what others
// might take for an end can't smuggle a second one in.
type SMTPServer struct {
	*Faults
	o    SMTPOptions
	gate *gate
	cert *certificate
	wg   sync.WaitGroup

	mu       sync.Mutex
	accounts map[string]string
}

// StartSMTP listens and serves until Close. ctx is for starting only.
func StartSMTP(ctx context.Context, o SMTPOptions) (*SMTPServer, error) {
	if o.Store == nil {
		return nil, errors.New("start SMTP simulator: no store")
	}
	if o.Hostname == "" {
		o.Hostname = "localhost"
	}
	if o.Timeout == 0 {
		o.Timeout = smtpTimeout
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	cert, err := newCertificate(o.Hostname, o.Clock())
	if err != nil {
		return nil, fmt.Errorf("start SMTP simulator: %w", err)
	}
	g, err := listen(ctx, o.Addr)
	if err != nil {
		return nil, fmt.Errorf("start SMTP simulator: %w", err)
	}
	s := &SMTPServer{
		Faults: newFaults(o.Clock, checkSMTPFault, StepConnect, StepEHLO, StepSTARTTLS, StepAuth, StepMail, StepRcpt,
			StepData, StepMidData, StepDot, StepReply, StepQuit),
		o:        o,
		gate:     g,
		cert:     cert,
		accounts: maps.Clone(o.Accounts),
	}
	s.wg.Go(s.acceptLoop)
	return s, nil
}

func (s *SMTPServer) acceptLoop() {
	for {
		c, err := s.gate.accept()
		switch {
		case err == nil:
			s.wg.Go(func() { newSMTPConn(s, c).serve() })
		case errors.Is(err, net.ErrClosed):
			return
		default: // out of file descriptors, or the client gave up
			s.o.Log.Warn("accept failed", "error", err)
			select {
			case <-time.After(50 * time.Millisecond):
			case <-s.gate.ctx.Done():
			}
		}
	}
}

// Addr is host:port.
func (s *SMTPServer) Addr() string { return s.gate.Addr().String() }

// Pool holds the certificate that a client must trust to use STARTTLS.
func (s *SMTPServer) Pool() *x509.CertPool { return s.cert.pool }

// SetAccounts replaces all accounts, for sessions that authenticate from now
// on. Two passwords of a rotation are two user names.
func (s *SMTPServer) SetAccounts(accounts map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accounts = maps.Clone(accounts)
}

func (s *SMTPServer) needsAuth() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.accounts) > 0 || s.o.Tokens != nil
}

func (s *SMTPServer) knows(user, password string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	want, ok := s.accounts[user]
	return ok && want == password
}

// Close ends all sessions and waits for them, so also for the Hook that one of
// them is in.
func (s *SMTPServer) Close() error {
	err := s.gate.Close()
	s.wg.Wait()
	return err
}
