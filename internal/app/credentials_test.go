package app

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/sim"
)

// signingIn is a process with nothing but what it signs in with.
func signingIn(t *testing.T, change func(*config.Config)) (*process, error) {
	t.Helper()
	cfg := config.Default()
	change(&cfg)
	p := &process{cfg: cfg, log: slog.New(slog.DiscardHandler)}
	t.Cleanup(p.teardown)
	if err := p.buildCredentials(); err != nil {
		return p, err
	}
	if cfg.SMTP.Addr != "" {
		pr, err := p.smtp()
		if err != nil {
			return p, err
		}
		p.providers = append(p.providers, pr)
		p.creds.need(pr)
	}
	if cfg.FCM.ServiceAccount != "" || cfg.FCM.Token != "" {
		pr, err := p.fcm()
		if err != nil {
			return p, err
		}
		p.providers = append(p.providers, pr)
		p.creds.need(pr)
	}
	return p, nil
}

func secretFile(t *testing.T, text string, mode os.FileMode) config.Live {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return config.Live("file:" + path)
}

// What is wrong with a secret is refused at start, by the name of its setting.
func TestBadSecretsAreRefused(t *testing.T) {
	tokens, err := sim.StartToken(t.Context(), sim.TokenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer tokens.Close()
	account := string(tokens.ServiceAccount())
	p8 := func(curve elliptic.Curve) string {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	apns := func(c *config.Config, key config.Live) {
		c.Credentials = []config.Credential{{Name: "apple", Source: "apns", Key: key, KeyID: "ABCDE12345", TeamID: "TEAM567890"}}
	}
	password := func(c *config.Config, l config.Live) {
		c.SMTP.Addr, c.SMTP.Username, c.SMTP.Password = "127.0.0.1:25", "shop", l
	}
	for name, tc := range map[string]struct {
		change func(*config.Config)
		want   string
	}{
		"missing":             {func(c *config.Config) { password(c, "file:/nowhere/CANARY") }, "smtp.password: open /nowhere/"},
		"world-readable":      {func(c *config.Config) { password(c, secretFile(t, "CANARY", 0o644)) }, "smtp.password: "},
		"outside":             {func(c *config.Config) { password(c, secretFile(t, "CANARY", 0o600)); c.Secrets.Root = t.TempDir() }, "smtp.password: "},
		"NUL":                 {func(c *config.Config) { password(c, secretFile(t, "CAN\x00ARY", 0o600)) }, "smtp.password: a password can't hold a NUL"},
		"no token":            {func(c *config.Config) { password(c, "CAN ARY"); c.SMTP.Auth = "xoauth2" }, "smtp.password: an access token has"},
		"unknown name":        {func(c *config.Config) { password(c, "credential:none") }, "smtp.password: there is no credential"},
		"p8 of another curve": {func(c *config.Config) { apns(c, secretFile(t, p8(elliptic.P384()), 0o600)) }, "credentials[0] (apple).key: is on P-384, want P-256"},
		"no p8":               {func(c *config.Config) { apns(c, secretFile(t, "CANARY", 0o600)) }, "credentials[0] (apple).key: is not PEM"},
		"p8 without an id": {func(c *config.Config) {
			apns(c, secretFile(t, p8(elliptic.P256()), 0o600))
			c.Credentials[0].KeyID = ""
		}, "credentials[0] (apple).key: comes with no good key_id"},
		"no service account":     {func(c *config.Config) { c.FCM.ServiceAccount = secretFile(t, "CANARY", 0o600) }, "fcm.service_account: service_account: is not a service account's JSON key file"},
		"half a service account": {func(c *config.Config) { c.FCM.ServiceAccount = secretFile(t, account[:len(account)/2], 0o600) }, "fcm.service_account: "},
		"plain token_uri": {func(c *config.Config) {
			c.FCM.ServiceAccount = config.Live(strings.Replace(account, tokens.TokenURL(), "http://login.example/", 1))
		}, "fcm.service_account: service_account.token_uri: is plain http"},
		"an open safe": {func(c *config.Config) {
			dir := t.TempDir()
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			c.Secrets.Safe, c.Secrets.SafeKey = dir, "CANARYCANARYCANARYCANARYCANARYCA"
		}, "secrets.safe: "},
		"half a safe's key": {func(c *config.Config) { c.Secrets.Safe, c.Secrets.SafeKey = t.TempDir(), "CANARY" }, "secrets.safe_key: want 32"},
		"another project":   {func(c *config.Config) { c.FCM.ServiceAccount, c.FCM.Project = config.Live(account), "other" }, "fcm.service_account: service_account.project_id"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := signingIn(t, tc.change)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			if strings.Contains(strings.ReplaceAll(err.Error(), "/nowhere/CANARY", ""), "CANARY") || strings.Contains(err.Error(), "PRIVATE") {
				t.Errorf("shows a secret: %v", err)
			}
		})
	}
}

// tokensAndFCM starts a token server, and an FCM that takes its tokens.
func tokensAndFCM(t *testing.T) (*sim.TokenServer, *sim.FCMServer) {
	t.Helper()
	tokens, err := sim.StartToken(t.Context(), sim.TokenOptions{ClientID: "stormpost", ClientSecret: "CANARY-secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tokens.Close() })
	store, err := sim.OpenStore(t.TempDir(), sim.StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	fcm, err := sim.StartFCM(t.Context(), sim.FCMOptions{Store: store, Tokens: tokens})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fcm.Close() })
	return tokens, fcm
}

// Named credentials are made once, of each other, and shared by their users.
func TestNamedCredentialsAreShared(t *testing.T) {
	tokens, fcm := tokensAndFCM(t)
	p, err := signingIn(t, func(c *config.Config) {
		c.Credentials = []config.Credential{
			{Name: "secret", Source: "value", Value: secretFile(t, "CANARY-secret\n", 0o600)},
			{Name: "google", Source: "client-credentials", URL: tokens.TokenURL(), ClientID: "stormpost", ClientSecret: "credential:secret", Scopes: []string{"a", "b"}},
		}
		c.SMTP.Addr, c.SMTP.Username, c.SMTP.Password, c.SMTP.Auth = "127.0.0.1:1", "shop", "credential:google", "xoauth2"
		c.FCM.Token, c.FCM.Project, c.FCM.BaseURL = "credential:google", tokens.Project(), fcm.URL()
	})
	if err != nil {
		t.Fatal(err)
	}
	tests, found := p.creds.Test(t.Context(), "google")
	if !found || len(tests) != 2 || tests[0].Route != "smtp" || tests[0].Err == nil || tests[1].Route != "fcm" || tests[1].Err != nil {
		t.Errorf("%+v", tests)
	}
	if tests, found = p.creds.Test(t.Context(), "secret"); !found || len(tests) != 1 || tests[0].Route != "" || tests[0].Err != nil {
		t.Errorf("%+v", tests)
	}
	if _, found = p.creds.Test(t.Context(), "other"); found {
		t.Error("there is another")
	}
	var names []string
	for _, s := range p.creds.List() {
		names = append(names, s.Name)
		if s.Health != credential.Working {
			t.Errorf("%s is %s: %s", s.Name, s.Health, s.Trouble)
		}
	}
	if got := strings.Join(names, " "); got != "secret google" || tokens.Requests() != 1 {
		t.Errorf("made %s, with %d requests", got, tokens.Requests())
	}
}

// With a safe, a process that starts while the token server is away works with
// what the last one had; without, it has nothing.
func TestSafeOutlivesTheProcess(t *testing.T) {
	tokens, fcm := tokensAndFCM(t)
	dir := filepath.Join(t.TempDir(), "safe")
	start := func(safe string) *process {
		t.Helper()
		p, err := signingIn(t, func(c *config.Config) {
			c.Credentials = []config.Credential{{Name: "google", Source: "client-credentials", URL: tokens.TokenURL(), ClientID: "stormpost", ClientSecret: "CANARY-secret"}}
			c.FCM.Token, c.FCM.Project, c.FCM.BaseURL = "credential:google", tokens.Project(), fcm.URL()
			if c.Secrets.Safe = safe; safe != "" {
				c.Secrets.SafeKey = "CANARYCANARYCANARYCANARYCANARYCA"
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	signIn := func(p *process) error {
		t.Helper()
		tests, _ := p.creds.Test(t.Context(), "google")
		if len(tests) != 1 {
			t.Fatalf("%+v", tests)
		}
		return tests[0].Err
	}
	first := start(dir)
	if err := signIn(first); err != nil {
		t.Fatal(err)
	}
	first.teardown()
	if err := tokens.SetFaults(sim.Fault{Step: sim.StepHeaders, Do: sim.Answer, Code: 503, Error: "temporarily_unavailable"}); err != nil {
		t.Fatal(err)
	}
	if err := signIn(start("")); err == nil {
		t.Error("a token from nowhere")
	}
	if _, err := signingIn(t, func(c *config.Config) { c.Secrets.Safe, c.Secrets.SafeKey = dir, "CANARY, a key with 32 bytes, too" }); err == nil ||
		!strings.Contains(err.Error(), "secrets.safe_key: it is not the key") {
		t.Errorf("with another key: %v", err)
	}
	second := start(dir)
	if err := signIn(second); err != nil {
		t.Errorf("with what was kept: %v", err)
	}
	kept := 0
	for _, s := range second.creds.List() {
		if strings.Contains(fmt.Sprintf("%+v", s), "CANARY") {
			t.Errorf("shows a secret: %+v", s)
		}
		for _, g := range s.Generations {
			if g.Kept {
				kept++
			}
		}
	}
	all, err := os.ReadDir(dir)
	if err != nil || kept != 1 {
		t.Errorf("%d kept generations, want the token's; in the folder %v, %v", kept, all, err)
	}
	for _, f := range all {
		if b, err := os.ReadFile(filepath.Join(dir, f.Name())); err != nil || strings.Contains(string(b), "CANARY") || strings.Contains(string(b), "ya29") {
			t.Errorf("%s: %v, or a secret as it is", f.Name(), err)
		}
	}
}

// gatekeeper is a service that answers what it is told.
type gatekeeper struct{ err error }

func (g *gatekeeper) Authenticate(context.Context) error { return g.err }

// A starting process is ready when each route has signed in once, and stays so. A
// service that can't be reached says nothing about a credential that is there.
func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there := credential.New(credential.Config{Name: "smtp", Source: credential.Fixed("test", "x")})
		defer there.Close()
		missing := credential.New(credential.Config{Name: "fcm", Source: nothing{}})
		defer missing.Close()
		refused, away := &gatekeeper{errors.New("535 no")}, &gatekeeper{fmt.Errorf("%w: refused", delivery.ErrUnreachable)}
		uses := []signIn{{"smtp", there, refused}, {"relay", there, away}, {"fcm", missing, away}}
		r := newReadiness(uses)
		failing := func() (names []string) {
			for _, c := range r.checks() {
				if c.Err != nil {
					names = append(names, c.Name)
				}
			}
			return names
		}
		if got := failing(); len(got) != 3 {
			t.Errorf("at first: %v", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, u := range uses {
			wg.Go(func() { r.prove(ctx, u) })
		}
		time.Sleep(time.Minute)
		if got := strings.Join(failing(), ", "); got != "credential of smtp, credential of fcm" {
			t.Errorf("after a minute: %s", got)
		}
		refused.err = nil
		time.Sleep(proveLast)
		refused.err = errors.New("535 no") // it isn't asked any more
		time.Sleep(time.Minute)
		if got := strings.Join(failing(), ", "); got != "credential of fcm" {
			t.Errorf("later: %s", got)
		}
		cancel()
		wg.Wait()
	})
}

// nothing is a source that has none.
type nothing struct{}

func (nothing) Fetch(context.Context) (credential.Material, error) {
	return credential.Material{}, errors.New("there is none")
}
func (nothing) String() string { return "nothing" }
