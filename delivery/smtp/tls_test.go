package smtp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
)

// certificate is a self-signed one for name.
func certificate(t *testing.T, name string) (*tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// password has c sign in.
func password(t *testing.T, c *Config, user, value string) {
	t.Helper()
	c.Username = user
	c.Credential = credential.New(credential.Config{Name: "relay", Source: credential.Fixed("test", value), Check: CheckPassword})
	t.Cleanup(c.Credential.Close)
}

func TestTLS(t *testing.T) {
	cert, pool := certificate(t, "relay.example")
	withTLS := append([]string{"STARTTLS"}, everything...)
	authPlain, authLogin := append([]string{"AUTH PLAIN LOGIN"}, everything...), append([]string{"AUTH LOGIN"}, everything...)
	good := func(c *Config) { c.RootCAs, c.ServerName = pool, "relay.example" }
	signIn := func(c *Config) { good(c); password(t, c, "shop", "s3cret") }
	for _, c := range []struct {
		name   string
		script script
		change func(*Config)
		fails  string // text of Reserve's error; empty: the message is sent
		over   bool   // TLS is spoken
	}{
		{"if offered, not offered", script{offers: everything}, nil, "", false},
		{"if offered, offered, nobody to trust", script{offers: withTLS, cert: cert}, nil, "", true},
		{"if offered, verified", script{offers: withTLS, cert: cert}, good, "", true},
		{"if offered, wrong name", script{offers: withTLS, cert: cert}, func(c *Config) { good(c); c.ServerName = "other.example" }, "certificate", false},
		{"if offered, refused", script{offers: withTLS, replies: map[string]string{"STARTTLS": "454 4.7.0 no"}}, nil, "STARTTLS: 454", false},
		{"required, not offered", script{offers: everything}, func(c *Config) { c.TLS = StartTLSRequired }, "STARTTLS", false},
		{"required, untrusted", script{offers: withTLS, cert: cert}, func(c *Config) { c.TLS = StartTLSRequired }, "certificate", false},
		{"required, good", script{offers: withTLS, cert: cert}, func(c *Config) { good(c); c.TLS = StartTLSRequired }, "", true},
		{"implicit", script{offers: everything, cert: cert, implicit: true}, func(c *Config) { good(c); c.TLS = ImplicitTLS }, "", true},
		{"AUTH PLAIN", script{offers: withTLS, tlsOffers: authPlain, cert: cert, user: "shop", pass: "s3cret"}, signIn, "", true},
		{"AUTH LOGIN", script{offers: withTLS, tlsOffers: authLogin, cert: cert, user: "shop", pass: "s3cret"}, signIn, "", true},
		{"AUTH not offered", script{offers: withTLS, tlsOffers: everything, cert: cert}, signIn, "neither PLAIN nor LOGIN", true},
		{"AUTH refused", script{offers: withTLS, tlsOffers: authPlain, cert: cert, user: "shop", pass: "other"}, signIn, "credentials refused", true},
		{"AUTH unverified", script{offers: withTLS, tlsOffers: authPlain, cert: cert, user: "shop", pass: "s3cret"},
			func(c *Config) { password(t, c, "shop", "s3cret") }, "certificate", false},
		{"AUTH in the clear", script{offers: authPlain, user: "shop", pass: "s3cret"}, signIn, "without TLS", false},
		{"AUTH in the clear, allowed on loopback", script{offers: authPlain, user: "shop", pass: "s3cret"},
			func(c *Config) { signIn(c); c.AllowInsecureAuth = true }, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := startServer(t, c.script)
			p := newProvider(t, srv, c.change)
			slot, err := p.Reserve(t.Context())
			if c.fails != "" {
				var down *DownError
				if err == nil || !strings.Contains(err.Error(), c.fails) || !errors.As(err, &down) {
					t.Fatalf("Reserve: %v, want %q", err, c.fails)
				}
				if errors.Is(err, ErrCredentials) != (c.fails == "credentials refused") {
					t.Errorf("ErrCredentials: %v", err)
				}
				if !c.over && srv.count("AUTH") > 0 {
					t.Error("the password was sent")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r := slot.Send(t.Context(), envelope(1), yes); r.Outcome != message.Sent {
				t.Errorf("%+v", r)
			}
			if over := slot.(interface{ overTLS() bool }).overTLS(); over != c.over {
				t.Errorf("over TLS: %v", over)
			}
			slot.Release()
		})
	}
}

// A server that breaks off at any step before MAIL is down: nothing is claimed
// meanwhile, and once it is well it gets the message.
func TestCutBeforeMail(t *testing.T) {
	cert, pool := certificate(t, "relay.example")
	good := script{
		offers: append([]string{"STARTTLS"}, everything...), tlsOffers: append([]string{"AUTH PLAIN"}, everything...),
		cert: cert, user: "shop", pass: "s3cret",
	}
	for _, step := range []string{"greeting", "EHLO", "STARTTLS", "AUTH"} {
		for name, how := range map[string]string{"cut": cut, "partial": partial, "garbage": "hello"} {
			t.Run(step+"/"+name, func(t *testing.T) {
				t.Parallel()
				bad := good
				bad.replies = map[string]string{step: how}
				srv := startServer(t, bad)
				p := newProvider(t, srv, func(c *Config) {
					c.RootCAs, c.ServerName, c.TLS = pool, "relay.example", StartTLSRequired
					password(t, c, "shop", "s3cret")
				})
				var down *DownError
				if slot, err := p.Reserve(t.Context()); !errors.As(err, &down) || errors.Is(err, ErrCredentials) {
					t.Fatalf("Reserve: %v, %v", slot, err)
				}
				srv.set(good)
				slot, err := p.Reserve(t.Context())
				for deadline := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
					slot, err = p.Reserve(t.Context())
				}
				if err != nil {
					t.Fatal(err)
				}
				defer slot.Release()
				if r := slot.Send(t.Context(), envelope(1), yes); r.Outcome != message.Sent || len(srv.got()) != 1 {
					t.Errorf("%+v, and it has %d", r, len(srv.got()))
				}
			})
		}
	}
}

func (s *slot) overTLS() bool { return s.c.overTLS() }

// What comes in one packet with the reply to STARTTLS was never encrypted
// (CVE-2011-0411).
func TestStartTLSInjection(t *testing.T) {
	cert, pool := certificate(t, "relay.example")
	srv := startServer(t, script{
		offers: []string{"STARTTLS"}, cert: cert,
		replies: map[string]string{"STARTTLS": "220 go on\r\n250-evil\r\n250 AUTH PLAIN"},
	})
	p := newProvider(t, srv, func(c *Config) { c.RootCAs, c.ServerName = pool, "relay.example" })
	if slot, err := p.Reserve(t.Context()); !errors.Is(err, errProtocol) {
		t.Errorf("Reserve: %v, %v", slot, err)
	}
}

// What a server offers in the clear doesn't hold under TLS.
func TestOffersAreForgotten(t *testing.T) {
	cert, _ := certificate(t, "relay.example")
	srv := startServer(t, script{offers: append([]string{"STARTTLS"}, everything...), tlsOffers: []string{}, cert: cert})
	p := newProvider(t, srv, nil)
	if r := send(t, p, envelope(1)); r.Outcome != message.Sent {
		t.Errorf("%+v", r)
	}
	if lines := srv.lines(); slices.Contains(lines, "MAIL FROM:<shop@sender.example> SIZE") || srv.count("EHLO client.example") != 2 {
		t.Errorf("%q", lines)
	}
	if srv.count("MAIL FROM:<shop@sender.example>") != 1 || strings.Contains(strings.Join(srv.lines(), "\n"), "SIZE=") {
		t.Errorf("%q", srv.lines())
	}
}

func TestNoPasswordBeyondLoopback(t *testing.T) {
	for addr, want := range map[string]bool{"127.0.0.1:25": true, "[::1]:25": true, "192.0.2.1:25": false} {
		a, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := isLoopback(a); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}

// A server that takes the connection and then says nothing holds Reserve up
// only as long as ctx and the limits allow.
func TestReserveHangs(t *testing.T) {
	srv := startServer(t, script{replies: map[string]string{"greeting": hang}})
	p := newProvider(t, srv, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-srv.hanging; cancel() }()
	if slot, err := p.Reserve(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Reserve: %v, %v", slot, err)
	}
	q := newProvider(t, srv, func(c *Config) { c.CommandTimeout = 50 * time.Millisecond })
	var down *DownError
	if slot, err := q.Reserve(t.Context()); !errors.As(err, &down) {
		t.Errorf("Reserve: %v, %v", slot, err)
	}
}
