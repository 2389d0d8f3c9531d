package fcm

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const sendPath = "/v1/projects/p1/messages:send"

var testKey = sync.OnceValue(func() string {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
})

func keyFile(tokenURI string) []byte {
	b, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "p1", "private_key_id": "k1", "private_key": testKey(),
		"client_email": "sender@p1.example", "token_uri": tokenURI,
	})
	if err != nil {
		panic(err)
	}
	return b
}

// hit is a request for messages:send that arrived whole.
type hit struct {
	proto  string
	header http.Header
	body   string
	conn   net.Conn
}

// server is FCM and its token endpoint. Requests for messages:send are
// answered by reply once they are read, the n-th is n = 1.
type server struct {
	*httptest.Server
	reply func(w http.ResponseWriter, n int, h hit)
	token func(w http.ResponseWriter, n int)

	mu     sync.Mutex
	hits   []hit
	tokens int
	conns  int
}

type connKey struct{}

// start runs s over TLS with HTTP/2, or without both.
func (s *server) start(t *testing.T, secure bool) {
	t.Helper()
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		s.mu.Lock()
		s.conns++
		s.mu.Unlock()
		return context.WithValue(ctx, connKey{}, c)
	}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	if secure {
		s.EnableHTTP2 = true
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	s.mu.Lock()
	if r.URL.Path == "/token" {
		s.tokens++
		n := s.tokens
		s.mu.Unlock()
		if s.token != nil {
			s.token(w, n)
			return
		}
		fmt.Fprintf(w, `{"access_token":"CANARY-%d","token_type":"Bearer","expires_in":3600}`, n)
		return
	}
	h := hit{proto: r.Proto, header: r.Header, body: string(body), conn: r.Context().Value(connKey{}).(net.Conn)}
	if r.Method != http.MethodPost || r.URL.Path != sendPath {
		h.body = "not messages:send: " + r.Method + " " + r.URL.Path
	}
	s.hits = append(s.hits, h)
	n := len(s.hits)
	s.mu.Unlock()
	if s.reply == nil {
		taken(w, n)
		return
	}
	s.reply(w, n, h)
}

func taken(w http.ResponseWriter, n int) {
	fmt.Fprintf(w, `{"name":"projects/p1/messages/%d"}`, n)
}

func fail(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":{"code":%d,"message":"it failed","status":%q}}`, status, code)
}

func (s *server) seen() []hit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]hit(nil), s.hits...)
}

// counts is the requests for messages:send, those for tokens, and connections.
func (s *server) counts() (hits, tokens, conns int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.hits), s.tokens, s.conns
}

func (s *server) provider(t *testing.T, change func(*Config)) *Provider {
	t.Helper()
	cfg := Config{Name: "main", Project: "p1", BaseURL: s.URL, Logger: slog.New(slog.NewTextHandler(logs{t}, nil))}
	if s.Certificate() != nil {
		cfg.RootCAs = x509.NewCertPool()
		cfg.RootCAs.AddCert(s.Certificate())
	}
	cfg.Token = tokens(t, s.URL+"/token", s.Client())
	return newProvider(t, cfg, change)
}

// tokens is the credential that a service account makes of its key file.
func tokens(t *testing.T, url string, client *http.Client) *credential.Credential {
	t.Helper()
	log := slog.New(slog.NewTextHandler(logs{t}, nil))
	key := credential.New(credential.Config{Name: "key", Source: credential.Fixed("test", string(keyFile(url))), Logger: log})
	_, err := key.Use(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key.Close() // a key that never changes needs no refresh
	token := credential.New(credential.Config{Name: "main", Source: &credential.JWTBearer{Key: key, Scope: Scope, Client: client}, Logger: log})
	t.Cleanup(token.Close)
	return token
}

// alone closes its token with it, for who looks for goroutines after that.
type alone struct{ *Provider }

func (a alone) Close() error {
	a.cfg.Token.Close()
	return a.Provider.Close()
}

func newProvider(t *testing.T, cfg Config, change func(*Config)) *Provider {
	t.Helper()
	if change != nil {
		change(&cfg)
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return p
}

// logs fails the test when a secret is logged.
type logs struct{ t *testing.T }

func (l logs) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("CANARY")) {
		l.t.Errorf("logged: %s", b)
	}
	return len(b), nil
}

func envelope() *message.Envelope {
	return &message.Envelope{
		Position: message.PositionOf(message.Lane{Class: message.Transactional, Channel: message.ChannelPush}, 1, 0),
		Attempt:  1, Tenant: 1, Recipient: "device-1",
		Content: &message.Content{Push: &message.Push{
			Platform: "fcm", To: message.Target{Token: "device-1"},
			Notification: &message.Notification{Title: "Your code", Body: "123456"},
		}},
		ExpiresAt: time.Now().Add(time.Hour),
	}
}

// send hands one message over, and checks what holds for every one.
func send(t *testing.T, p *Provider) message.Result {
	t.Helper()
	res, _ := sendWith(t.Context(), t, p, func() error { return nil })
	return res
}

func sendWith(ctx context.Context, t *testing.T, p *Provider, last func() error) (res message.Result, lasts int) {
	t.Helper()
	s, err := p.Reserve(t.Context())
	if err != nil {
		t.Fatalf("Reserve: %v", err)
	}
	defer s.Release()
	res = s.Send(ctx, envelope(), func() error { lasts++; return last() })
	if lasts > 1 {
		t.Errorf("last was called %d times", lasts)
	}
	if text := fmt.Sprintf("%+v", res); strings.Contains(text, "CANARY") || strings.ContainsAny(text, "\r\n") || len(res.Reply) > 500 {
		t.Errorf("result shows what it shouldn't: %q", text)
	}
	return res, lasts
}

// protocols runs f against HTTP/1.1 and HTTP/2.
func protocols(t *testing.T, f func(t *testing.T, secure bool)) {
	t.Run("HTTP1", func(t *testing.T) { f(t, false) })
	t.Run("HTTP2", func(t *testing.T) { f(t, true) })
}
