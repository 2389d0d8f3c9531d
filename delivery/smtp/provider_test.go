package smtp

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/delivery/providertest"
	"github.com/stormpost/stormpost/internal/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// envelope is message n: a plain one to one recipient.
func envelope(n int) *message.Envelope {
	return envelopeOf(&message.Email{
		From: "Shop <shop@sender.example>", To: []string{"ann@reader.example"},
		Subject: "No. " + strconv.Itoa(n), Text: "Hello.\n",
	})
}

// envelopeOf is an email to its first recipient.
func envelopeOf(e *message.Email) *message.Envelope {
	c := &message.Content{Email: e}
	b, err := c.Encode()
	if err != nil {
		panic(err)
	}
	id := message.SubmissionID(message.HashKey(1, "key"), message.FingerprintOf(b)).Message(0)
	return &message.Envelope{ID: id, Attempt: 1, Tenant: 1, Recipient: c.Recipients()[0], Content: c}
}

func newProvider(t *testing.T, srv *testServer, change func(*Config)) *Provider {
	t.Helper()
	cfg := Config{Name: "relay", Addr: srv.addr(), LocalName: "client.example", ReplyLimit: time.Minute, CommandTimeout: time.Minute}
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

// reserve gets a slot, or fails the test.
func reserve(t *testing.T, p *Provider) delivery.Slot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	slot, err := p.Reserve(ctx)
	if err != nil {
		t.Fatalf("Reserve: %v", err)
	}
	return slot
}

func yes() error { return nil }

// send hands env over in a slot of its own.
func send(t *testing.T, p *Provider, env *message.Envelope) message.Result {
	t.Helper()
	slot := reserve(t, p)
	defer slot.Release()
	return slot.Send(t.Context(), env, yes)
}

// conformServer is a testServer as the suite drives it.
type conformServer struct {
	*testServer
	good script
}

func (s conformServer) Misbehave(f providertest.Fault) {
	sc := s.good
	switch f {
	case providertest.Down:
		sc.replies = map[string]string{"greeting": cut, "RSET": cut}
		s.set(sc)
		s.dropAll()
		return
	case providertest.EarlyDefer:
		sc.replies = map[string]string{"RCPT": "450 4.2.1 later", "DATA": "503 5.5.1 no recipient"}
	case providertest.EarlyCut:
		sc.replies = map[string]string{"DATA": cut}
	case providertest.EarlyHang:
		sc.replies = map[string]string{"MAIL": hang}
	case providertest.Defer:
		sc.replies = map[string]string{"dot": "451 4.3.0 later"}
	case providertest.Reject:
		sc.replies = map[string]string{"dot": "554 5.7.1 never"}
	case providertest.Cut:
		sc.replies = map[string]string{"dot": cut}
	case providertest.Garbage:
		sc.replies = map[string]string{"dot": "HTTP/1.1 200 OK"}
	case providertest.Hang:
		sc.replies = map[string]string{"dot": hang}
	}
	s.set(sc)
}

func (s *testServer) dropAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close()
	}
}

var numbered = regexp.MustCompile(`Subject: No\. (\d+)\r\n`)

func (s conformServer) Got() (all []int) {
	for _, m := range s.got() {
		n, err := strconv.Atoi(string(numbered.FindSubmatch(m)[1]))
		if err != nil {
			panic(err)
		}
		all = append(all, n)
	}
	return all
}

func (s conformServer) Hanging() <-chan struct{} { return s.hanging }

func TestConformance(t *testing.T) {
	cert, pool := certificate(t, "relay.example")
	for _, mode := range []struct {
		name string
		good script
		size int
	}{
		{"pipelined", script{offers: everything}, 0},
		{"plain", script{}, 0},
		{"large", script{offers: everything}, 40 << 10},
		{"STARTTLS", script{offers: append([]string{"STARTTLS"}, everything...), cert: cert}, 0},
		{"TLS, large", script{offers: everything, cert: cert, implicit: true}, 40 << 10},
	} {
		t.Run(mode.name, func(t *testing.T) {
			providertest.Run(t, providertest.Subject{
				Start: func(t *testing.T, concurrency int) (delivery.Provider, providertest.Server) {
					srv := startServer(t, mode.good)
					cfg := Config{Name: "relay", Addr: srv.addr(), Connections: concurrency}
					if mode.good.cert != nil {
						cfg.RootCAs, cfg.ServerName, cfg.TLS = pool, "relay.example", StartTLSRequired
					}
					if mode.good.implicit {
						cfg.TLS = ImplicitTLS
					}
					p, err := New(cfg)
					if err != nil {
						t.Fatal(err)
					}
					return p, conformServer{srv, mode.good}
				},
				Envelope: func(n int) *message.Envelope {
					env := envelope(n)
					env.Content.Email.Text += strings.Repeat("More of it.\n", mode.size/12)
					return env
				},
			})
		})
	}
}

func ExampleDownError() {
	err := error(&DownError{Provider: "relay", Until: time.Unix(0, 0), Err: fmt.Errorf("connect: refused")})
	fmt.Println(err)
	// Output: smtp: relay can't be reached, next try at 1970-01-01T00:00:00Z: connect: refused
}
