package credential_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
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

// Twenty rotations under load: every token that was given becomes invalid at
// once, in the middle of sessions, and so does Apple's key. No message counts it
// as an attempt, none comes twice, and a new token is asked for twice a rotation at
// most.
func TestTwentyRotations(t *testing.T) {
	for _, auth := range []smtp.AuthMode{smtp.XOAuth2, smtp.OAuthBearer} {
		t.Run(string(auth), func(t *testing.T) {
			s := newStage(t, sim.TokenOptions{})
			token := s.account() // shared by both
			keys := s.appleKeys()
			provider := s.credential("apns", keys)
			loads := []*load{start(t, s.relay(token, auth), email), start(t, s.fcm(token), push), start(t, s.apns(provider), iPhone)}
			more := func() {
				for _, l := range loads {
					l.more(t, 20)
				}
			}
			more()
			before, fetched, begun := s.tokens.Requests(), keys.fetched.Load(), time.Now()
			for range 20 {
				s.tokens.Revoke()
				keys.rotate()
				more()
			}
			took := time.Since(begun)
			sent, back := int64(0), int64(0)
			for _, l := range loads {
				l.end()
				l.check(t)
				sent += l.sent.Load()
				back += l.returned.Load()
			}
			if took > time.Minute {
				t.Errorf("20 rotations took %v", took)
			}
			for what, n := range map[string]int64{"requests for tokens": s.tokens.Requests() - before, "provider tokens": keys.fetched.Load() - fetched} {
				if n < 20 || n > 40 {
					t.Errorf("%d %s in 20 rotations, want one or two for each", n, what)
				}
			}
			if back > 0 {
				t.Errorf("%d messages were given back", back)
			}
			if got := int64(s.store.Count()); got != sent {
				t.Errorf("%d messages arrived of %d", got, sent)
			}
		})
	}
}

// Tokens that end by themselves are replaced before they do: nobody is refused.
func TestExpiryUnderLoad(t *testing.T) {
	s := newStage(t, sim.TokenOptions{Lifetime: 2 * time.Second})
	token := s.account()
	pushes := start(t, s.fcm(token), push)
	until(t, "six tokens", func() bool { return s.tokens.Requests() >= 6 })
	pushes.end()
	pushes.check(t)
	if st := token.Status(); st.Rejections > 0 || pushes.returned.Load() > 0 {
		t.Errorf("%d rejections, %d given back", st.Rejections, pushes.returned.Load())
	}
}

// The token server is away for a while: nothing is noticed while the token lives.
func TestTokenServerOutage(t *testing.T) {
	s := newStage(t, sim.TokenOptions{Lifetime: 8 * time.Second})
	token := s.account()
	pushes := start(t, s.fcm(token), push)
	pushes.more(t, 20)
	if err := s.tokens.SetFaults(sim.Fault{Step: sim.StepHeaders, Do: sim.Answer, Code: 503, Error: "temporarily_unavailable"}); err != nil {
		t.Fatal(err)
	}
	until(t, "failing refreshes", func() bool { return token.Status().Health == credential.Failing })
	pushes.more(t, 20)
	s.tokens.ClearFaults()
	until(t, "a working one", func() bool { return token.Status().Health == credential.Working && s.tokens.Requests() > 2 })
	pushes.more(t, 20)
	pushes.end()
	pushes.check(t)
	if n := pushes.returned.Load(); n > 0 {
		t.Errorf("%d messages were given back", n)
	}
}

// A token server whose clock is far from ours is spoken to by its own.
func TestClockSkew(t *testing.T) {
	for _, skew := range []time.Duration{2 * time.Hour, -2 * time.Hour} {
		s := newStage(t, sim.TokenOptions{Clock: func() time.Time { return time.Now().Add(skew) }})
		use, err := s.account().Use(t.Context())
		if err != nil || use.Value() == "" {
			t.Errorf("%v: %v", skew, err)
		}
		if n := s.tokens.Requests(); n != 2 {
			t.Errorf("%v: %d requests, want one more than without", skew, n)
		}
	}
}

// jwt is a token that says until when it is good, signed by nobody.
func jwt(issued, expires time.Time) string {
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	return part(map[string]any{"alg": "none"}) + "." + part(map[string]any{"iat": issued.Unix(), "exp": expires.Unix(), "jti": "CANARY"}) + ".x"
}

// deploy swaps the folder that a mounted secret is read through, as Kubernetes
// does.
func deploy(t *testing.T, mount, version, text string) {
	t.Helper()
	dir := filepath.Join(mount, version)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.WriteFile(filepath.Join(dir, "token"), []byte(text), 0o600),
		os.Symlink(version, filepath.Join(mount, "..tmp")),
		os.Rename(filepath.Join(mount, "..tmp"), filepath.Join(mount, "..data")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// The first outage: a deploy delivers an expired token in place of the working
// one, under load.
func TestDeployDeliversAnExpiredToken(t *testing.T) {
	s := newStage(t, sim.TokenOptions{})
	mount := t.TempDir()
	// The relay takes the simulator's own tokens, which don't tell their end; the
	// file does.
	working, err := s.account().Use(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	file := func(token string, issued, expires time.Time) string {
		b, err := json.Marshal(map[string]any{"access_token": token, "issued_at": issued.Unix(), "expires_at": expires})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	now := time.Now()
	deploy(t, mount, "..1", file(working.Value(), now.Add(-time.Minute), now.Add(time.Hour)))
	if err := os.Symlink(filepath.Join("..data", "token"), filepath.Join(mount, "token")); err != nil {
		t.Fatal(err)
	}
	source := &credential.File{Path: filepath.Join(mount, "token"), Rules: credential.FileRules{Root: mount}}
	token := s.credential("relay", source)
	relay := s.relay(token, smtp.XOAuth2)
	token.ProveBy(relay.Authenticate)
	mails := start(t, relay, email)
	mails.more(t, 50)

	for version, text := range map[string]string{
		"..2": file("CANARY-expired", now.Add(-2*time.Hour), now.Add(-time.Hour)),
		"..3": jwt(now.Add(-2*time.Hour), now.Add(-time.Hour)),
		"..4": file("CANARY-older", now.Add(-2*time.Hour), now.Add(2*time.Hour)),
		"..5": file("CANARY-refused", now, now.Add(2*time.Hour)),
		"..6": "\n\n",
	} {
		deployed := time.Now()
		deploy(t, mount, version, text)
		until(t, "it is known", func() bool {
			h := token.Status().Health
			return h == credential.FellBack || h == credential.Failing
		})
		if took := time.Since(deployed); took > 10*time.Second {
			t.Errorf("%s: known after %v", version, took)
		}
		mails.more(t, 50)
		deploy(t, mount, version+"-good", file(working.Value(), now.Add(-time.Minute), now.Add(time.Hour)))
		until(t, "all is well", func() bool { return token.Status().Health == credential.Working })
	}
	mails.end()
	mails.check(t)
	if n := mails.returned.Load(); n > 0 {
		t.Errorf("%d messages were given back", n)
	}
	text := fmt.Sprintf("%+v", token.Status())
	if strings.Contains(text, "CANARY") || strings.Contains(text, working.Value()) {
		t.Errorf("shows a secret: %s", text)
	}

	// A process that starts with only the expired one has none.
	deploy(t, mount, "..9", file("CANARY-expired", now.Add(-2*time.Hour), now.Add(-time.Hour)))
	fresh := s.relay(s.credential("fresh", source), smtp.XOAuth2)
	if err := fresh.Authenticate(t.Context()); err == nil || !strings.Contains(err.Error(), "credential fresh") || strings.Contains(err.Error(), "CANARY") {
		t.Errorf("Authenticate: %v", err)
	}
}

// A new client secret is delivered before or after the server takes it.
func TestClientSecretRotates(t *testing.T) {
	s := newStage(t, sim.TokenOptions{ClientID: "stormpost", ClientSecret: "CANARY-1"})
	path := filepath.Join(t.TempDir(), "secret")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	put("CANARY-1")
	secret := s.credential("secret", &credential.File{Path: path})
	token := s.credential("token", &credential.OAuth2{URL: s.tokens.TokenURL(), ClientID: "stormpost", Secret: secret})
	pushes := start(t, s.fcm(token), push)
	pushes.more(t, 20)

	put("CANARY-2") // too early: refused, and the old one is used
	until(t, "it fell back", func() bool { return secret.Status().Health == credential.FellBack })
	s.tokens.Revoke()
	pushes.more(t, 20)

	s.tokens.SetClientSecret("CANARY-2")
	s.tokens.Revoke()
	pushes.more(t, 20)
	until(t, "the new one is used", func() bool { return secret.Status().Health == credential.Working })

	s.tokens.SetClientSecret("CANARY-3") // too late: the new one is not delivered yet
	s.tokens.Revoke()
	until(t, "there is none", func() bool { h := token.Status().Health; return h == credential.Missing || h == credential.Refused })
	put("CANARY-3")
	pushes.more(t, 20)
	pushes.end()
	for _, bad := range pushes.bad {
		if !strings.HasPrefix(bad, "Reserve: ") || strings.Contains(bad, "CANARY") {
			t.Errorf("a message failed: %s", bad)
		}
	}
}

func TestRefreshTokenRotates(t *testing.T) {
	s := newStage(t, sim.TokenOptions{ClientID: "stormpost", RefreshToken: "CANARY-first", RotateRefresh: true})
	refresh := s.credential("refresh", credential.Fixed("test", "CANARY-first"))
	token := s.credential("token", &credential.OAuth2{URL: s.tokens.TokenURL(), ClientID: "stormpost", Refresh: refresh})
	pushes := start(t, s.fcm(token), push)
	for range 5 {
		pushes.more(t, 20)
		s.tokens.Revoke()
	}
	pushes.more(t, 20)
	pushes.end()
	pushes.check(t)
	s.tokens.SetRefreshToken("another")
	s.tokens.Revoke()
	use, err := token.Use(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	use.Rejected("401")
	if _, err := token.Use(t.Context()); err == nil || strings.Contains(err.Error(), "CANARY") {
		t.Errorf("with a refresh token that is taken back: %v", err)
	}
}
