package smtp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/mail"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
)

// TestPeers hands email to a real Postfix and a real Dovecot submission service,
// and judges by what is in the mailbox then.
func TestPeers(t *testing.T) {
	s := startPeers(t)
	t.Run("mechanisms", s.mechanisms)
	t.Run("refused", s.refusals)
	t.Run("wrong password", s.wrongPassword)
	t.Run("tokens rotate", s.tokensRotate)
	t.Run("restart", s.restart)
	t.Run("restart under load", s.restartUnderLoad)
}

// provider hands over to the server at addr, encrypted and signed in.
func (s *peers) provider(t *testing.T, addr string, change func(*Config)) *Provider {
	t.Helper()
	cfg := Config{
		Name: "relay", Addr: addr, TLS: StartTLSRequired, RootCAs: s.pool, ServerName: "localhost", LocalName: "client.example",
		Connections: 4, DialTimeout: peerPatience, CommandTimeout: peerPatience, ReplyLimit: peerPatience,
	}
	password(t, &cfg, peerUser, peerPassword)
	if change != nil {
		change(&cfg)
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// to is every server that takes mail from clients, by name.
func (s *peers) to() map[string]string {
	return map[string]string{"postfix": s.submission, "dovecot": s.dovecot.addr}
}

var peerMails atomic.Int64

// mailTo is a message of its own, with all that makes its bytes hard to carry.
func mailTo(recipient string, change func(*message.Email)) *message.Envelope {
	e := &message.Email{
		From: "Läden & Bücher <shop@sender.example>", To: []string{recipient},
		Subject: fmt.Sprintf("Größe %d: 日本語, und ein langes Thema, das gefaltet werden muss, damit es passt", peerMails.Add(1)),
		Headers: map[string]string{"X-Order": "№ 42"},
		Text:    "Hello.\n",
	}
	if change != nil {
		change(e)
	}
	return envelopeOf(e)
}

// letters are what a server could get wrong.
func letters() map[string]func(*message.Email) {
	return map[string]func(*message.Email){
		"dots":       func(e *message.Email) { e.Text = ".\n..\n.x\n\n.\r\n...\nend.\n.\n" },
		"only a dot": func(e *message.Email) { e.Text = "." },
		"8bit":       func(e *message.Email) { e.Text = "Grüße, 日本語\n.ü\n" },
		"long lines": func(e *message.Email) {
			e.Text = strings.Repeat("x", 998) + "\n." + strings.Repeat("y", 997) + "\n" + strings.Repeat("ü", 499) + "\n"
		},
		"longer lines":     func(e *message.Email) { e.Text = strings.Repeat("x", 5000) + "\n.\n" },
		"no last line end": func(e *message.Email) { e.Text = "Hello" },
		"From and blanks":  func(e *message.Email) { e.Text = "\n\nFrom me\n  \n\t\n\n\n" },
		"large": func(e *message.Email) { // many writes, and a dot at the beginning of most packets
			e.Text = strings.Repeat(".\n", 150_000) + strings.Repeat("."+strings.Repeat("z", 200)+"\n", 2000)
		},
		"parts": func(e *message.Email) {
			e.HTML = "<p>.ü</p>\n.\n"
			e.Attachments = []message.Attachment{{Filename: "rechnung ü.pdf", Content: bytes.Repeat([]byte{0, '\r', '\n', '.', 0xff}, 10_000)}}
		},
	}
}

// exact holds what arrived of env to what should have: once, and to the byte.
func exact(t *testing.T, p *Provider, env *message.Envelope, all map[string][]letter) {
	t.Helper()
	id := env.ID.String() + "@sender.example"
	if n := handOvers(all[id]); n != 1 {
		t.Errorf("%q arrived %d times: %v", env.Content.Email.Subject, n, all[id])
		return
	}
	got := all[id][0]
	m, err := mail.ReadMessage(bytes.NewReader(got.text))
	if err != nil {
		t.Errorf("%v: %v", got, err)
		return
	}
	at, err := m.Header.Date()
	if err != nil || time.Since(at).Abs() > time.Hour {
		t.Errorf("%v is dated %v, %v", got, at, err)
	}
	// All but the time is known before.
	c := &conn{caps: extensions{eightBit: true, utf8: true}}
	then := &Provider{cfg: p.cfg, keys: p.keys}
	then.cfg.Now = func() time.Time { return at }
	if _, _, err := (&slot{p: then, c: c}).prepare(env); err != nil {
		t.Error(err)
		return
	}
	if want := c.msg.Bytes(); !bytes.Equal(got.text, want) {
		t.Errorf("%q: what arrived differs from byte %d on, of %d and %d", env.Content.Email.Subject, differ(got.text, want), len(got.text), len(want))
	}
	if !onlyTrace.Match(got.trace) {
		t.Errorf("it was changed otherwise:\n%s", got.trace)
	}
}

// onlyTrace is what a server that delivers puts before a message (RFC 5321 §4.4).
var onlyTrace = regexp.MustCompile(`^((Return-Path|X-Original-To|Delivered-To|Received): [^\n]*\n([ \t][^\n]*\n)*)+$`)

func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// mechanisms: each of them signs in at each server, over STARTTLS, and what is
// handed over then arrives once and unchanged.
func (s *peers) mechanisms(t *testing.T) {
	s.issuer.set("CANARY.token")
	bearer := func(mode AuthMode) func(*Config) {
		return func(c *Config) { password(t, c, peerUser, "CANARY.token"); c.Auth = mode }
	}
	type way struct {
		name, addr string
		change     func(*Config)
	}
	var ways []way
	for name, addr := range s.to() {
		ways = append(ways, way{name + " PLAIN", addr, nil}, way{name + " XOAUTH2", addr, bearer(XOAuth2)}, way{name + " OAUTHBEARER", addr, bearer(OAuthBearer)})
	}
	ways = append(ways, way{"postfix LOGIN", s.loginOnly, nil})
	sent := make(map[*Provider][]*message.Envelope)
	try := func(w way, contents map[string]func(*message.Email)) {
		p := s.provider(t, w.addr, w.change)
		offers := offered(t, p)
		if !offers.startTLS || !offers.pipelining || !offers.eightBit || offers.plain == (w.addr == s.loginOnly) || !offers.login {
			t.Errorf("%s offers %+v", w.name, offers)
		}
		for what, change := range contents {
			env := mailTo("ann@reader.example", change)
			if r := send(t, p, env); r.Outcome != message.Sent || r.Reference == "" {
				t.Errorf("%s, %s: %+v", w.name, what, r)
			}
			sent[p] = append(sent[p], env)
		}
		if n := p.opened.Load(); n != 1 {
			t.Errorf("%s: %d connections for %d messages, one after the other", w.name, n, len(contents))
		}
		if st := p.Credential().Status(); st.Health != credential.Working || st.Rejections > 0 {
			t.Errorf("%s: %+v", w.name, st)
		}
		// An address in UTF-8 goes where the server takes it, and nowhere else.
		env := mailTo("jörg@reader.example", nil)
		switch r := send(t, p, env); {
		case offers.utf8 && r.Outcome == message.Sent:
			sent[p] = append(sent[p], env)
		case offers.utf8 || r.Outcome != message.Rejected || r.Code != "5.6.7":
			t.Errorf("%s, SMTPUTF8 %v: %+v", w.name, offers.utf8, r)
		}
	}
	for _, w := range ways {
		few := map[string]func(*message.Email){"plain": nil}
		if strings.HasSuffix(w.name, "PLAIN") {
			few = letters()
		}
		try(w, few)
	}
	// Dovecot offers all or none at all its ports.
	s.dovecot.stop(t, syscall.SIGTERM)
	s.configureDovecot(t, "login")
	s.dovecot.start(t)
	p := s.provider(t, s.dovecot.addr, nil)
	if o := offered(t, p); o.plain || !o.login {
		t.Errorf("Dovecot offers %+v", o)
	}
	env := mailTo("ann@reader.example", nil)
	if r := send(t, p, env); r.Outcome != message.Sent {
		t.Errorf("dovecot LOGIN: %+v", r)
	}
	sent[p] = append(sent[p], env)
	s.dovecot.stop(t, syscall.SIGTERM)
	s.configureDovecot(t, "plain login xoauth2 oauthbearer")
	s.dovecot.start(t)

	all := s.arrived(t)
	n := 0
	for p, envs := range sent {
		for _, env := range envs {
			exact(t, p, env, all)
			n++
		}
	}
	if len(all) != n {
		t.Errorf("%d messages arrived of %d", len(all), n)
	}
}

// offered is what p's server offers once signed in.
func offered(t *testing.T, p *Provider) extensions {
	t.Helper()
	slot := reserve(t, p).(*slot)
	defer slot.Release()
	if !slot.overTLS() {
		t.Error("not encrypted")
	}
	offers := slot.c.caps
	offers.startTLS = true // it was required, and isn't offered again
	return offers
}

// refusals: what a server says of a recipient is the message's end, and the
// connection goes on.
func (s *peers) refusals(t *testing.T) {
	for name, addr := range s.to() {
		p := s.provider(t, addr, func(c *Config) { c.Connections = 1 })
		before := len(s.arrived(t))
		if r := send(t, p, mailTo("gone@reader.example", nil)); r.Outcome != message.Rejected || r.Code != message.RecipientGone || !strings.Contains(r.Reply, "550 5.1.1") {
			t.Errorf("%s, nobody there: %+v", name, r)
		}
		if r := send(t, p, mailTo("ann@elsewhere.example", nil)); r.Outcome != message.Rejected || r.Code != "554" || !strings.Contains(r.Reply, "5.7.1") {
			t.Errorf("%s, elsewhere: %+v", name, r)
		}
		env := mailTo("ann@reader.example", nil)
		if r := send(t, p, env); r.Outcome != message.Sent {
			t.Errorf("%s, after them: %+v", name, r)
		}
		all := s.arrived(t)
		exact(t, p, env, all)
		if n := len(all) - before; n != 1 {
			t.Errorf("%s: %d messages arrived of one", name, n)
		}
	}
	// A server that can't do TLS is not spoken to, nor is one that nobody trusts.
	for fails, p := range map[string]*Provider{
		"required":    s.provider(t, s.relay, nil),
		"certificate": s.provider(t, s.submission, func(c *Config) { c.ServerName = "mx.reader.example" }),
	} {
		if slot, err := p.Reserve(t.Context()); err == nil || !strings.Contains(err.Error(), fails) {
			t.Errorf("Reserve: %v, %v, want %q", slot, err, fails)
		}
	}
}

// wrongPassword: each server refuses it, once. The error and the status say which
// credential that is, and neither shows it.
func (s *peers) wrongPassword(t *testing.T) {
	for name, addr := range s.to() {
		for _, mode := range []AuthMode{Password, XOAuth2, OAuthBearer} {
			p := s.provider(t, addr, func(c *Config) { password(t, c, peerUser, "CANARY.wrong"); c.Auth = mode })
			err := p.Authenticate(t.Context())
			var refusal *Error
			if !errors.Is(err, ErrCredentials) || !errors.As(err, &refusal) || refusal.Code != 535 || refusal.Step != "AUTH" {
				t.Errorf("%s %s: %v", name, mode, err)
			}
			st := p.Credential().Status()
			if st.Name != "relay" || st.Health != credential.Refused || !strings.Contains(st.Trouble, "535") || st.Rejections != 1 {
				t.Errorf("%s %s: %+v", name, mode, st)
			}
			_, again := p.Reserve(t.Context())
			if again == nil || !strings.Contains(again.Error(), "credential relay") || !strings.Contains(again.Error(), "535") {
				t.Errorf("%s %s, Reserve: %v", name, mode, again)
			}
			if text := fmt.Sprintf("%v %v %+v", err, again, st); strings.Contains(text, "CANARY") {
				t.Errorf("the secret is shown: %s", text)
			}
		}
		if err := s.provider(t, addr, nil).Authenticate(t.Context()); err != nil {
			t.Errorf("%s, with the right one afterwards: %v", name, err)
		}
	}
}

// rotating is a Source whose token is a new one each time that it is asked.
type rotating struct {
	issuer *issuer
	asked  atomic.Int64
}

func (r *rotating) Fetch(context.Context) (credential.Material, error) {
	token := fmt.Sprintf("CANARY.%d", r.asked.Add(1))
	r.issuer.set(token)
	return credential.Material{Value: credential.Secret(token)}, nil
}

func (r *rotating) String() string { return "rotating" }

// tokensRotate: a token is taken back while messages are sent, each signing in by
// itself. No message fails for it, and one new token a time is asked for.
func (s *peers) tokensRotate(t *testing.T) {
	const rotations, workers = 3, 2
	for name, addr := range s.to() {
		source := &rotating{issuer: s.issuer}
		token := credential.New(credential.Config{Name: "token", Source: source, Check: CheckToken})
		defer token.Close()
		p := s.provider(t, addr, func(c *Config) {
			c.Username, c.Credential, c.Auth, c.MaxPerConnection = peerUser, token, XOAuth2, 1
		})
		before, refused := len(s.arrived(t)), s.issuer.refusals()
		var sent []*message.Envelope
		for range rotations {
			var wg sync.WaitGroup
			var mu sync.Mutex
			for range workers {
				wg.Go(func() {
					slot, err := p.Reserve(t.Context())
					if err != nil {
						t.Errorf("%s: %v", name, err)
						return
					}
					defer slot.Release()
					env := mailTo("ann@reader.example", nil)
					if r := slot.Send(t.Context(), env, yes); r.Outcome != message.Sent {
						t.Errorf("%s: %+v", name, r)
					}
					mu.Lock()
					defer mu.Unlock()
					sent = append(sent, env)
				})
			}
			wg.Wait()
			s.issuer.set("taken back")
		}
		all := s.arrived(t)
		for _, env := range sent {
			exact(t, p, env, all)
		}
		if n := len(all) - before; n != rotations*workers {
			t.Errorf("%s: %d messages arrived of %d", name, n, rotations*workers)
		}
		if n := source.asked.Load(); n != rotations {
			t.Errorf("%s: %d tokens for %d rotations", name, n, rotations)
		}
		if s.issuer.refusals() == refused {
			t.Errorf("%s: no token was ever refused", name)
		}
	}
}

// restart: a server, or Postfix behind Dovecot, goes and comes back between two
// messages. The connection that was kept is found dead, and both arrive once.
func (s *peers) restart(t *testing.T) {
	for _, c := range []struct {
		name, addr string
		restarted  *daemon
		sig        syscall.Signal
	}{
		{"postfix ends", s.submission, s.postfix, syscall.SIGTERM},
		{"postfix is killed", s.submission, s.postfix, syscall.SIGKILL},
		{"dovecot ends", s.dovecot.addr, s.dovecot, syscall.SIGTERM},
		{"dovecot is killed", s.dovecot.addr, s.dovecot, syscall.SIGKILL},
		{"postfix ends behind dovecot", s.dovecot.addr, s.postfix, syscall.SIGTERM},
	} {
		p := s.provider(t, c.addr, nil)
		before := len(s.arrived(t))
		one, two := mailTo("ann@reader.example", nil), mailTo("ann@reader.example", nil)
		if r := send(t, p, one); r.Outcome != message.Sent {
			t.Errorf("%s, before: %+v", c.name, r)
		}
		c.restarted.stop(t, c.sig)
		c.restarted.start(t)
		if r := send(t, p, two); r.Outcome != message.Sent {
			t.Errorf("%s, after: %+v", c.name, r)
		}
		all := s.arrived(t)
		exact(t, p, one, all)
		exact(t, p, two, all)
		if n := len(all) - before; n != 2 {
			t.Errorf("%s: %d messages arrived of two", c.name, n)
		}
	}
}
