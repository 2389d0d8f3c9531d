package credential

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
)

// bearer is a source of tokens from i, whose key is used by it alone.
func bearer(t *testing.T, i *issuer, log *slog.Logger) *JWTBearer {
	t.Helper()
	key := New(Config{Name: "key", Source: Fixed("test", string(keyFile(t, nil))), Logger: log})
	t.Cleanup(key.Close)
	return &JWTBearer{Key: key, Scope: "push", Client: &http.Client{Transport: i}}
}

func TestJWTBearer(t *testing.T) {
	i := &issuer{answer: tokens(3600)}
	b := bearer(t, i, nil)
	m, err := b.Fetch(t.Context())
	if err != nil || m.Value != "token-1" || m.Label != "k1" || m.Expires.Sub(m.Issued).Seconds() != 3600 {
		t.Errorf("%+v, %v", m, err)
	}
	if st := b.Key.Status(); st.Health != Working {
		t.Errorf("the key is %s", st.Health)
	}
}

func TestBadAnswers(t *testing.T) {
	for name, body := range map[string]string{
		"no JSON":        `<html>`,
		"no token":       `{"token_type":"Bearer","expires_in":3600}`,
		"line break":     `{"access_token":"a\r\nX: y","token_type":"Bearer","expires_in":3600}`,
		"too long":       `{"access_token":"` + strings.Repeat("a", maxToken+1) + `","token_type":"Bearer","expires_in":3600}`,
		"another type":   `{"access_token":"CANARY","token_type":"mac","expires_in":3600}`,
		"without an end": `{"access_token":"CANARY","token_type":"Bearer"}`,
		"endless body":   `{"access_token":"` + strings.Repeat("a", maxTokenReply),
	} {
		t.Run(name, func(t *testing.T) {
			i := &issuer{answer: func(int, string) (int, string, error) { return 200, body, nil }}
			if m, err := bearer(t, i, nil).Fetch(t.Context()); err == nil || strings.Contains(err.Error(), "CANARY") {
				t.Errorf("%+v, %v", m, err)
			}
		})
	}
}

// An endpoint that repeats the assertion, as some do, puts it into no error and
// no log.
func TestRefusalShowsNoAssertion(t *testing.T) {
	var log bytes.Buffer
	var sent string
	i := &issuer{answer: func(_ int, assertion string) (int, string, error) {
		sent = assertion
		return 400, `{"error":"invalid_scope","error_description":"no\nto ` + assertion + `"}`, nil
	}}
	logger := slog.New(slog.NewTextHandler(&log, nil))
	c := New(Config{Name: "fcm", Source: bearer(t, i, logger), Logger: logger})
	defer c.Close()
	_, err := c.Use(t.Context())
	var refused *ExchangeError
	if !errors.As(err, &refused) || refused.Status != 400 || refused.Code != "invalid_scope" || refused.Description != "no to [secret]" {
		t.Fatalf("Use = %#v", err)
	}
	if text := err.Error() + log.String(); strings.Contains(text, sent) || !strings.Contains(log.String(), "invalid_scope") {
		t.Errorf("error and log: %s", text)
	}
}

// A key that the endpoint refuses gives way to the last one that worked.
func TestRefusedKeyFallsBack(t *testing.T) {
	keys := &file{}
	good, bad := string(keyFile(t, nil)), string(keyFile(t, map[string]string{"private_key_id": "k2"}))
	keys.m = Material{Value: Secret(good)}
	bubble(t, keys, func(t *testing.T, key *Credential) {
		var now Source = &JWTBearer{Key: key, Scope: "push", Client: &http.Client{Transport: refusing{"k2", &issuer{answer: tokens(3600)}}}}
		fetch := func() {
			t.Helper()
			if m, err := now.Fetch(context.Background()); err != nil || m.Label != "k1" {
				t.Fatalf("%+v, %v", m, err)
			}
		}
		fetch()
		keys.put(Material{Value: Secret(bad)})
		for key.Status().Generations[0].Number < 2 {
			sleepASecond()
		}
		fetch()
		mustBe(t, key, FellBack, "invalid_grant")
	})
}

func TestCheckURL(t *testing.T) {
	for text, good := range map[string]bool{
		"https://login.example/token": true, "http://127.0.0.1:1/x": true, "http://localhost:1": true, "http://[::1]:1": true,
		"http://login.example/CANARY": false, "http://localhost.example": false, "ftp://127.0.0.1": false, "login.example": false, "": false,
		"https://a:CANARY@login.example": false, "https://login.example?key=CANARY": false, "https://[CANARY": false, "http://169.254.169.254/": false,
	} {
		if _, err := CheckURL(text); (err == nil) != good || err != nil && strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestCheckServiceAccount(t *testing.T) {
	plain := string(keyFile(t, map[string]string{"token_uri": "http://tokens.example/"}))
	if err := CheckServiceAccount("", "")(plain); err == nil || !strings.Contains(err.Error(), "token_uri") {
		t.Errorf("plain http: %v", err)
	}
	if err := CheckServiceAccount("", "https://tokens.example/")(plain); err != nil {
		t.Errorf("replaced: %v", err)
	}
	if err := CheckServiceAccount("p2", "")(string(keyFile(t, nil))); err == nil || !strings.Contains(err.Error(), "project_id") {
		t.Errorf("another project: %v", err)
	}
}
