package credential_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/delivery/smtp"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/sim"
)

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
