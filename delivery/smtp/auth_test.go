package smtp

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/sim"
)

// relay is a simulated relay, over TLS from the beginning, and a token server
// whose tokens it takes.
func relay(t *testing.T) (*sim.SMTPServer, *sim.TokenServer, *credential.Credential) {
	t.Helper()
	store, err := sim.OpenStore(t.TempDir(), sim.StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	tokens, err := sim.StartToken(t.Context(), sim.TokenOptions{ClientID: "stormpost", ClientSecret: "CANARY"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tokens.Close() })
	srv, err := sim.StartSMTP(t.Context(), sim.SMTPOptions{Store: store, Tokens: tokens, Implicit: true, Accounts: map[string]string{"shop": "CANARY-1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close() })
	secret := credential.New(credential.Config{Name: "secret", Source: credential.Fixed("test", "CANARY")})
	t.Cleanup(secret.Close)
	token := credential.New(credential.Config{Name: "token", Source: &credential.OAuth2{URL: tokens.TokenURL(), ClientID: "stormpost", Secret: secret}})
	t.Cleanup(token.Close)
	return srv, tokens, token
}

func relayed(t *testing.T, srv *sim.SMTPServer, change func(*Config)) *Provider {
	t.Helper()
	cfg := Config{Name: "relay", Addr: srv.Addr(), TLS: ImplicitTLS, RootCAs: srv.Pool(), ServerName: "localhost", LocalName: "client.example", Connections: 1}
	change(&cfg)
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestTokenSignsIn(t *testing.T) {
	for _, auth := range []AuthMode{XOAuth2, OAuthBearer} {
		t.Run(string(auth), func(t *testing.T) {
			srv, tokens, token := relay(t)
			p := relayed(t, srv, func(c *Config) { c.Username, c.Credential, c.Auth = "shop=1,a@sender.example", token, auth })
			if r := send(t, p, envelope(1)); r.Outcome != message.Sent {
				t.Fatalf("%+v", r)
			}
			// In the middle of the session, at MAIL.
			tokens.Revoke()
			if r := send(t, p, envelope(2)); r.Outcome != message.Sent {
				t.Errorf("after the token was taken back: %+v", r)
			}
			if n := tokens.Requests(); n != 2 {
				t.Errorf("%d tokens, want 2", n)
			}
			// And with no other to be had: not an attempt.
			if err := tokens.SetFaults(sim.Fault{Step: sim.StepHeaders, Do: sim.Answer, Code: 503}); err != nil {
				t.Fatal(err)
			}
			tokens.Revoke()
			r := send(t, p, envelope(3))
			if r.Outcome != message.Returned || r.Code != "530" || strings.Contains(r.Reply, "ya29") {
				t.Errorf("without a token server: %+v", r)
			}
			if _, err := p.Reserve(t.Context()); err == nil || strings.Contains(err.Error(), "ya29") {
				t.Errorf("Reserve: %v", err)
			}
		})
	}
}

// A relay that refuses a single sender with 530 has refused one message, and no
// credential.
func TestSignedOutForOneMessage(t *testing.T) {
	srv, tokens, token := relay(t)
	p := relayed(t, srv, func(c *Config) { c.Username, c.Credential, c.Auth = "shop", token, XOAuth2 })
	if err := srv.SetFaults(sim.Fault{Step: sim.StepMail, Do: sim.Answer, Code: 530, Times: 2}); err != nil {
		t.Fatal(err)
	}
	if r := send(t, p, envelope(1)); r.Outcome != message.Deferred || r.Code != "530" {
		t.Errorf("%+v", r)
	}
	if r := send(t, p, envelope(2)); r.Outcome != message.Sent {
		t.Errorf("the next one: %+v", r)
	}
	if st := token.Status(); tokens.Requests() != 1 || st.Health != credential.Working {
		t.Errorf("%d tokens, %s", tokens.Requests(), st.Health)
	}
}

// A password is replaced at the relay, and in the file: the next connection
// finds out, and no message does.
func TestPasswordRotates(t *testing.T) {
	srv, _, _ := relay(t)
	path := filepath.Join(t.TempDir(), "password")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("CANARY-1")
	var log lockedBuffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	password := credential.New(credential.Config{Name: "relay", Source: &credential.File{Path: path}, Check: CheckPassword, Logger: logger})
	defer password.Close()
	p := relayed(t, srv, func(c *Config) {
		c.Username, c.Credential, c.MaxPerConnection, c.Logger = "shop", password, 1, logger // each message signs in
	})
	for n := range 3 {
		if r := send(t, p, envelope(n)); r.Outcome != message.Sent {
			t.Fatalf("%+v", r)
		}
	}
	srv.SetAccounts(map[string]string{"shop": "CANARY-2"})
	put("CANARY-2")
	for n := range 3 {
		if r := send(t, p, envelope(n)); r.Outcome != message.Sent {
			t.Fatalf("after the rotation: %+v", r)
		}
	}
	if st := password.Status(); st.Rejections > 1 || st.Health != credential.Working {
		t.Errorf("%+v", st)
	}
	srv.SetAccounts(map[string]string{"shop": "CANARY-3"})
	if _, err := p.Reserve(t.Context()); !errors.Is(err, ErrCredentials) || strings.Contains(err.Error(), "CANARY") {
		t.Errorf("Reserve: %v", err)
	}
	if text := log.String() + fmt.Sprintf("%+v", password.Status()); strings.Contains(text, "CANARY") ||
		strings.Contains(text, base64.StdEncoding.EncodeToString([]byte("\x00shop\x00CANARY-1"))) {
		t.Errorf("a secret is shown: %s", text)
	}
}

// A relay that lets nobody else in, by mistake or for good, leaves the connections
// that are signed in: mail goes on over them while there is no other password.
func TestOpenConnectionsGoOn(t *testing.T) {
	srv, _, _ := relay(t)
	password := credential.New(credential.Config{Name: "relay", Source: credential.Fixed("test", "CANARY-1"), Check: CheckPassword})
	defer password.Close()
	p := relayed(t, srv, func(c *Config) { c.Username, c.Credential, c.Connections = "shop", password, 2 })
	first, err := p.Reserve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	srv.SetAccounts(map[string]string{"shop": "another"})
	got := make(chan delivery.Slot)
	go func() {
		second, err := p.Reserve(t.Context()) // signs in, and is refused
		if err != nil {
			t.Error(err)
		}
		got <- second
	}()
	for password.Status().Health != credential.Refused {
		time.Sleep(time.Millisecond)
	}
	first.Release()
	second := <-got
	if second == nil {
		t.Fatal("nothing can be sent, though a connection is open")
	}
	if r := second.Send(t.Context(), envelope(1), func() error { return nil }); r.Outcome != message.Sent {
		t.Errorf("%+v", r)
	}
	second.Release()
	if r := send(t, p, envelope(2)); r.Outcome != message.Sent {
		t.Errorf("%+v", r)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A server that repeats what it was shown puts it into no error.
func TestReplyShowsNoSecret(t *testing.T) {
	plain := base64.StdEncoding.EncodeToString([]byte("\x00shop\x00CANARY"))
	cert, pool := certificate(t, "relay.example")
	srv := startServer(t, script{
		offers: []string{"AUTH PLAIN"}, cert: cert, implicit: true,
		answer: func(line string) string {
			if strings.HasPrefix(line, "AUTH") {
				return "535 5.7.8 CANARY as " + line + " is wrong"
			}
			return ""
		},
	})
	p := newProvider(t, srv, func(c *Config) {
		password(t, c, "shop", "CANARY")
		c.TLS, c.RootCAs, c.ServerName = ImplicitTLS, pool, "relay.example"
	})
	_, err := p.Reserve(t.Context())
	if err == nil || strings.Contains(err.Error(), "CANARY") || strings.Contains(err.Error(), plain) || !strings.Contains(err.Error(), "[secret]") {
		t.Errorf("Reserve: %v", err)
	}
	if n := srv.count("AUTH"); n != 1 {
		t.Errorf("%d tries with one password", n)
	}
}

func TestAuthenticate(t *testing.T) {
	srv, _, token := relay(t)
	p := relayed(t, srv, func(c *Config) { c.Username, c.Credential, c.Auth = "shop", token, XOAuth2 })
	if err := p.Authenticate(t.Context()); err != nil {
		t.Error(err)
	}
	wrong := relayed(t, srv, func(c *Config) { password(t, c, "shop", "wrong") })
	if err := wrong.Authenticate(t.Context()); !errors.Is(err, ErrCredentials) || errors.Is(err, delivery.ErrUnreachable) {
		t.Errorf("a wrong password: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	nobody := relayed(t, srv, func(c *Config) {
		c.Addr = l.Addr().String()
		c.DialTimeout = 5 * time.Second
		password(t, c, "shop", "x")
	})
	if err := nobody.Authenticate(t.Context()); !errors.Is(err, delivery.ErrUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
}

func TestMechanismNotOffered(t *testing.T) {
	cert, pool := certificate(t, "relay.example")
	srv := startServer(t, script{offers: []string{"AUTH PLAIN LOGIN"}, cert: cert, implicit: true})
	for _, auth := range []AuthMode{XOAuth2, OAuthBearer} {
		p := newProvider(t, srv, func(c *Config) {
			password(t, c, "shop", "CANARY")
			c.TLS, c.RootCAs, c.ServerName, c.Auth = ImplicitTLS, pool, "relay.example", auth
		})
		if _, err := p.Reserve(t.Context()); err == nil || !strings.Contains(err.Error(), "doesn't offer "+strings.ToUpper(string(auth))) {
			t.Errorf("%s: %v", auth, err)
		}
	}
	if srv.count("AUTH") > 0 {
		t.Error("the token was sent")
	}
}
