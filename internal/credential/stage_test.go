package credential_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/delivery/apns"
	"github.com/stormpost/stormpost/delivery/fcm"
	"github.com/stormpost/stormpost/delivery/smtp"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
	"github.com/stormpost/stormpost/internal/sim"
)

// patience bounds what must happen soon. It is never waited for unless a test
// fails.
const patience = 30 * time.Second

// stage is the simulators, with everything that is logged.
type stage struct {
	t      *testing.T
	store  *sim.Store
	tokens *sim.TokenServer
	mail   *sim.SMTPServer
	push   *sim.FCMServer
	apple  *sim.APNSServer
	log    *slog.Logger
	logged *locked
}

type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newStage(t *testing.T, o sim.TokenOptions) *stage {
	t.Helper()
	s := &stage{t: t, logged: &locked{}}
	s.log = newLog(s.logged)
	var err error
	if s.store, err = sim.OpenStore(t.TempDir(), sim.StoreOptions{}); err != nil {
		t.Fatal(err)
	}
	s.closes(s.store.Close)
	if s.tokens, err = sim.StartToken(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	s.closes(s.tokens.Close)
	if s.mail, err = sim.StartSMTP(t.Context(), sim.SMTPOptions{Store: s.store, Tokens: s.tokens, Implicit: true}); err != nil {
		t.Fatal(err)
	}
	s.closes(s.mail.Close)
	if s.push, err = sim.StartFCM(t.Context(), sim.FCMOptions{Store: s.store, Tokens: s.tokens}); err != nil {
		t.Fatal(err)
	}
	s.closes(s.push.Close)
	if s.apple, err = sim.StartAPNS(t.Context(), sim.APNSOptions{Store: s.store}); err != nil {
		t.Fatal(err)
	}
	s.closes(s.apple.Close)
	t.Cleanup(func() {
		if text := s.logged.String(); strings.Contains(text, "ya29.sim") || strings.Contains(text, "CANARY") || strings.Contains(text, "PRIVATE KEY") {
			t.Errorf("a secret was logged: %s", text)
		}
	})
	return s
}

func newLog(w *locked) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func (s *stage) closes(f func() error) {
	s.t.Cleanup(func() {
		if err := f(); err != nil {
			s.t.Error(err)
		}
	})
}

func (s *stage) credential(name string, source credential.Source) *credential.Credential {
	c := credential.New(credential.Config{Name: name, Source: source, Logger: s.log})
	s.t.Cleanup(c.Close)
	return c
}

// account is the access tokens of the token server's service account.
func (s *stage) account() *credential.Credential {
	key := s.credential("key", credential.Fixed("test", string(s.tokens.ServiceAccount())))
	return s.credential("account", &credential.JWTBearer{Key: key, Scope: sim.FCMScope})
}

func (s *stage) relay(token *credential.Credential, auth smtp.AuthMode) *smtp.Provider {
	s.t.Helper()
	p, err := smtp.New(smtp.Config{
		Name: "relay", Addr: s.mail.Addr(), TLS: smtp.ImplicitTLS, RootCAs: s.mail.Pool(), ServerName: "localhost", LocalName: "client.example",
		Username: "shop@sender.example", Credential: token, Auth: auth, Connections: 4, Logger: s.log,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.closes(p.Close)
	return p
}

func (s *stage) fcm(token *credential.Credential) *fcm.Provider {
	s.t.Helper()
	p, err := fcm.New(fcm.Config{Name: "fcm", Project: s.tokens.Project(), Token: token, BaseURL: s.push.URL(), Concurrency: 4, Logger: s.log})
	if err != nil {
		s.t.Fatal(err)
	}
	s.closes(p.Close)
	return p
}

// appleKeys is a Source of provider tokens, by whichever key of the developer
// account is the newest.
type appleKeys struct {
	s       *stage
	fetched atomic.Int64

	mu     sync.Mutex
	number int
	newest *credential.APNs
}

func (s *stage) appleKeys() *appleKeys {
	return &appleKeys{s: s, newest: s.appleKey(sim.APNSKeyID, s.apple.Key())}
}

func (s *stage) appleKey(id string, p8 []byte) *credential.APNs {
	key := s.credential("key "+id, credential.Fixed("test", string(p8)))
	return &credential.APNs{Key: key, KeyID: id, TeamID: sim.APNSTeamID}
}

func (k *appleKeys) String() string { return "the newest key" }

func (k *appleKeys) Fetch(ctx context.Context) (credential.Material, error) {
	k.fetched.Add(1)
	k.mu.Lock()
	a := k.newest
	k.mu.Unlock()
	return a.Fetch(ctx)
}

// rotate replaces the key by one of another id, and takes the old one back.
func (k *appleKeys) rotate() {
	k.s.t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.number++
	old, id := k.newest.KeyID, fmt.Sprintf("ROTATED%03d", k.number)
	p8, err := k.s.apple.AddKey(id)
	if err != nil {
		k.s.t.Fatal(err)
	}
	k.newest = k.s.appleKey(id, p8)
	k.s.apple.RevokeKey(old)
}

func (s *stage) apns(token *credential.Credential) *apns.Provider {
	s.t.Helper()
	p, err := apns.New(apns.Config{
		Options: overhttp.Options{Name: "apns", BaseURL: s.apple.URL(), RootCAs: s.apple.Pool(), Concurrency: 4, ReplyLimit: time.Minute},
		Token:   token, Topic: s.apple.Topic(),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.closes(p.Close)
	return p
}

// iPhone is the nth push by way of APNs.
func iPhone(n int64) *message.Envelope {
	return envelope(&message.Content{Push: &message.Push{
		Platform: "apns", To: message.Target{Token: fmt.Sprintf("%064x", n)}, Notification: &message.Notification{Title: fmt.Sprint("No. ", n)},
	}}, message.ChannelPush)
}

func email(n int64) *message.Envelope {
	return envelope(&message.Content{Email: &message.Email{
		From: "Shop <shop@sender.example>", To: []string{"ann@reader.example"}, Subject: fmt.Sprint("No. ", n), Text: "Hello.\n",
	}}, message.ChannelEmail)
}

func push(n int64) *message.Envelope {
	return envelope(&message.Content{Push: &message.Push{
		Platform: "fcm", To: message.Target{Token: fmt.Sprintf("device-%d", n)}, Notification: &message.Notification{Title: fmt.Sprint("No. ", n)},
	}}, message.ChannelPush)
}

func envelope(c *message.Content, channel message.Channel) *message.Envelope {
	b, err := c.Encode()
	if err != nil {
		panic(err)
	}
	id := message.SubmissionID(message.HashKey(1, "key"), message.FingerprintOf(b)).Message(0)
	return &message.Envelope{
		ID: id, Position: message.PositionOf(message.Lane{Class: message.Transactional, Channel: channel}, 1, 0),
		Attempt: 1, Tenant: 1, Recipient: c.Recipients()[0], Content: c, ExpiresAt: time.Now().Add(time.Hour),
	}
}

// load hands messages over, without a pause, until it is stopped.
type load struct {
	provider delivery.Provider
	envelope func(n int64) *message.Envelope

	begun, sent, returned atomic.Int64
	mu                    sync.Mutex
	bad                   []string
	wg                    sync.WaitGroup
	stop                  context.CancelFunc
}

func start(t *testing.T, p delivery.Provider, envelope func(int64) *message.Envelope) *load {
	l := &load{provider: p, envelope: envelope}
	ctx, stop := context.WithCancel(t.Context())
	l.stop = stop
	for range 4 {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				l.one(ctx)
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

func (l *load) end() { l.stop(); l.wg.Wait() }

func (l *load) one(ctx context.Context) {
	slot, err := l.provider.Reserve(ctx)
	if err != nil {
		if ctx.Err() == nil {
			l.note("Reserve: " + err.Error())
		}
		return
	}
	defer slot.Release()
	r := slot.Send(context.WithoutCancel(ctx), l.envelope(l.begun.Add(1)), func() error { return nil })
	switch r.Outcome {
	case message.Sent:
		l.sent.Add(1)
	case message.Returned:
		l.returned.Add(1)
	default:
		l.note(fmt.Sprintf("%+v", r))
	}
}

func (l *load) note(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.bad) < 10 {
		l.bad = append(l.bad, what)
	}
}

// more waits until n more messages were sent.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	want := l.sent.Load() + n
	until(t, fmt.Sprintf("%d more by %s", n, l.provider.Name()), func() bool { return l.sent.Load() >= want })
}

func (l *load) check(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.bad) > 0 {
		t.Errorf("%s: failures: %s", l.provider.Name(), strings.Join(l.bad, "\n"))
	}
	t.Logf("%s: %d sent, %d given back", l.provider.Name(), l.sent.Load(), l.returned.Load())
}

// until polls: what is waited for are the simulators' counters.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(time.Millisecond)
	}
}
