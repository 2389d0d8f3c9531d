package sim

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/jwt"
)

func startToken(t testing.TB, o TokenOptions) *TokenServer {
	t.Helper()
	s, err := StartToken(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// account reads the service account file as a client does.
func account(t testing.TB, s *TokenServer) *jwt.Config {
	t.Helper()
	var file struct {
		Type         string `json:"type"`
		ProjectID    string `json:"project_id"`
		PrivateKeyID string `json:"private_key_id"`
		PrivateKey   string `json:"private_key"`
		ClientEmail  string `json:"client_email"`
		TokenURI     string `json:"token_uri"`
	}
	if err := json.Unmarshal(s.ServiceAccount(), &file); err != nil {
		t.Fatal(err)
	}
	if file.Type != "service_account" || file.ProjectID != s.Project() {
		t.Fatalf("account %+v", file)
	}
	return &jwt.Config{
		Email: file.ClientEmail, PrivateKey: []byte(file.PrivateKey), PrivateKeyID: file.PrivateKeyID,
		Scopes: []string{FCMScope}, TokenURL: file.TokenURI,
	}
}

// httpClient is one whose connections end with the test.
func httpClient(t testing.TB, tr *http.Transport) *http.Client {
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

func fetch(t testing.TB, c *jwt.Config) (*oauth2.Token, error) {
	t.Helper()
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, httpClient(t, &http.Transport{}))
	return c.TokenSource(ctx).Token()
}

func TestTokenIsGivenAndExpires(t *testing.T) {
	at := time.Now()
	s := startToken(t, TokenOptions{Lifetime: 10 * time.Minute, Clock: func() time.Time { return at }})
	tok, err := fetch(t, account(t, s))
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(tok.Expiry); tok.TokenType != "Bearer" || left < 9*time.Minute || left > 10*time.Minute {
		t.Fatalf("token %+v", tok)
	}
	if !s.Valid(tok.AccessToken) {
		t.Fatal("a fresh token isn't valid")
	}
	for _, bad := range []string{"", "x", tokenPrefix, tok.AccessToken + "A", tok.AccessToken[:len(tok.AccessToken)-2] + "AA", strings.ToUpper(tok.AccessToken)} {
		if s.Valid(bad) {
			t.Errorf("%q is valid", bad)
		}
	}
	at = at.Add(10 * time.Minute)
	if s.Valid(tok.AccessToken) {
		t.Fatal("an expired token is valid")
	}
	at = at.Add(-time.Minute)
	s.Revoke()
	if s.Valid(tok.AccessToken) {
		t.Fatal("a revoked token is valid")
	}
	s.SetLifetime(time.Second)
	if tok, err = fetch(t, account(t, s)); err != nil || time.Until(tok.Expiry) > time.Second {
		t.Fatalf("token %+v, %v", tok, err)
	}
	if n := s.Requests(); n != 2 {
		t.Fatalf("%d requests, want 2", n)
	}
}

func TestTokenIsRefused(t *testing.T) {
	s := startToken(t, TokenOptions{})
	other := startToken(t, TokenOptions{})
	for _, tc := range []struct {
		name, want string
		change     func(*jwt.Config)
	}{
		{"another's key", "invalid_grant", func(c *jwt.Config) { c.PrivateKey, c.PrivateKeyID = account(t, other).PrivateKey, "" }},
		{"key id", "invalid_grant", func(c *jwt.Config) { c.PrivateKeyID = "x" }},
		{"issuer", "invalid_grant", func(c *jwt.Config) { c.Email = "x@y" }},
		{"audience", "invalid_grant", func(c *jwt.Config) { c.Audience = "https://oauth2.googleapis.com/token" }},
		{"scope", "invalid_scope", func(c *jwt.Config) { c.Scopes = []string{FCMScope + "x"} }},
		{"life", "invalid_grant", func(c *jwt.Config) { c.Expires = 2 * time.Hour }},
	} {
		c := account(t, s)
		tc.change(c)
		_, err := fetch(t, c)
		var refused *oauth2.RetrieveError
		if !errors.As(err, &refused) || refused.Response.StatusCode != 400 || !strings.Contains(string(refused.Body), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	for _, ahead := range []time.Duration{2 * time.Hour, -time.Minute} {
		s := startToken(t, TokenOptions{Clock: func() time.Time { return time.Now().Add(ahead) }})
		if _, err := fetch(t, account(t, s)); err == nil || !strings.Contains(err.Error(), "iat, exp") {
			t.Errorf("clock ahead by %v: %v", ahead, err)
		}
	}
	for _, form := range []url.Values{{}, {"grant_type": {"client_credentials"}}, {"grant_type": {jwtBearer}, "assertion": {"a.b"}}, {"grant_type": {jwtBearer}, "assertion": {"e30.e30.e30"}}} {
		resp, err := httpClient(t, &http.Transport{}).PostForm(s.TokenURL(), form)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 400 {
			t.Errorf("%v: %s", form, resp.Status)
		}
	}
}

func TestTokenFaults(t *testing.T) {
	s := startToken(t, TokenOptions{})
	setFaults(t, s,
		Fault{Step: StepBody, Do: Answer, Code: 503, RetryAfter: 1500 * time.Millisecond, Times: 1},
		Fault{Step: StepHeaders, Do: Answer, Error: "invalid_grant", Times: 1},
		Fault{Step: StepReply, Do: Drop, Times: 1},
		Fault{Step: StepBody, Do: Garbage, Code: 502, Times: 1})
	var refused *oauth2.RetrieveError
	_, err := fetch(t, account(t, s))
	if !errors.As(err, &refused) || refused.Response.StatusCode != 400 || !strings.Contains(string(refused.Body), "invalid_grant") {
		t.Fatalf("headers: %v", err)
	}
	_, err = fetch(t, account(t, s))
	if !errors.As(err, &refused) || refused.Response.StatusCode != 503 || refused.Response.Header.Get("Retry-After") != "2" {
		t.Fatalf("body: %v", err)
	}
	_, err = fetch(t, account(t, s))
	if !errors.As(err, &refused) || refused.Response.StatusCode != 502 || !strings.Contains(string(refused.Body), "<!DOCTYPE") {
		t.Fatalf("garbage: %v", err)
	}
	if _, err = fetch(t, account(t, s)); err == nil || errors.As(err, &refused) && refused.Response.StatusCode == 200 {
		t.Fatalf("drop: %v", err)
	}
	if _, err := fetch(t, account(t, s)); err != nil {
		t.Fatal(err)
	}
}

// The key in the file is one that any PKCS #8 reader takes.
func TestServiceAccountKey(t *testing.T) {
	block, rest := pem.Decode(account(t, startToken(t, TokenOptions{})).PrivateKey)
	if block == nil || len(rest) != 0 {
		t.Fatal("not one PEM block")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if _, ok := key.(*rsa.PrivateKey); err != nil || !ok {
		t.Fatalf("%T, %v", key, err)
	}
}
