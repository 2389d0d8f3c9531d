package credential

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// bubble runs f in a synctest bubble, where time passes by itself and
// synctest.Wait waits for whatever goes on in the background.
func bubble(t *testing.T, f func(t *testing.T, i *issuer, tok *Tokens)) {
	account := testAccount(t)
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{answer: tokens(3600)}
		tok := NewTokens(TokensConfig{Account: account, Scope: "push", Client: &http.Client{Transport: i}})
		t.Cleanup(tok.Close)
		f(t, i, tok)
	})
}

func mustGet(t *testing.T, tok *Tokens, want string) {
	t.Helper()
	if got, err := tok.Get(t.Context()); err != nil || got != want {
		t.Fatalf("Get = %q, %v; want %q", got, err, want)
	}
}

func down(int, string) (int, string, error) { return 0, "", errors.New("connection refused") }

func TestManyAskOnce(t *testing.T) {
	bubble(t, func(t *testing.T, i *issuer, tok *Tokens) {
		release := make(chan struct{})
		i.set(func(n int, a string) (int, string, error) { <-release; return tokens(3600)(n, a) })
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if got, err := tok.Get(t.Context()); err != nil || got != "token-1" {
					t.Errorf("Get = %q, %v", got, err)
				}
			})
		}
		synctest.Wait() // all of them wait for the one request
		close(release)
		wg.Wait()
		if n := i.count(); n != 1 {
			t.Errorf("%d requests for one token", n)
		}
	})
}

func TestRenewedAhead(t *testing.T) {
	bubble(t, func(t *testing.T, i *issuer, tok *Tokens) {
		mustGet(t, tok, "token-1")
		time.Sleep(38 * time.Minute)
		mustGet(t, tok, "token-1")
		synctest.Wait()
		if n := i.count(); n != 1 {
			t.Fatalf("%d requests after 38 minutes, want 1", n)
		}
		time.Sleep(8 * time.Minute) // past three quarters of its life
		mustGet(t, tok, "token-1")  // nobody waits for the new one
		synctest.Wait()
		mustGet(t, tok, "token-2")
		if n := i.count(); n != 2 {
			t.Errorf("%d requests, want 2", n)
		}
	})
}

func TestOldTokenOutlivesTheEndpoint(t *testing.T) {
	bubble(t, func(t *testing.T, i *issuer, tok *Tokens) {
		mustGet(t, tok, "token-1")
		i.set(down)
		for range 58 {
			time.Sleep(time.Minute)
			mustGet(t, tok, "token-1")
			synctest.Wait()
		}
		if n := i.count(); n < 5 || n > 25 {
			t.Errorf("%d requests, want one a minute from the 45th on", n)
		}
		time.Sleep(2 * time.Minute)
		if got, err := tok.Get(t.Context()); err == nil {
			t.Fatalf("Get = %q, an hour old", got)
		}
		i.set(tokens(3600))
		time.Sleep(retryMax)
		if _, err := tok.Get(t.Context()); err != nil {
			t.Errorf("with the endpoint back: %v", err)
		}
	})
}

func TestPauseAfterFailure(t *testing.T) {
	bubble(t, func(t *testing.T, i *issuer, tok *Tokens) {
		i.set(down)
		for range 100 {
			if _, err := tok.Get(t.Context()); err == nil {
				t.Fatal("a token from nowhere")
			}
		}
		if n := i.count(); n != 1 {
			t.Errorf("%d requests within no time, want 1", n)
		}
		for begin := time.Now(); time.Since(begin) < 10*time.Minute; time.Sleep(time.Second) {
			_, _ = tok.Get(t.Context())
		}
		if n := i.count(); n < 20 || n > 50 {
			t.Errorf("%d requests in ten minutes, want about one in 15 to 30 s", n)
		}
	})
}

func TestRejected(t *testing.T) {
	bubble(t, func(t *testing.T, i *issuer, tok *Tokens) {
		mustGet(t, tok, "token-1")
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				tok.Reject("token-1")
				if got, err := tok.Get(t.Context()); err != nil || got != "token-2" {
					t.Errorf("Get = %q, %v", got, err)
				}
			})
		}
		wg.Wait()
		if n := i.count(); n != 2 {
			t.Fatalf("%d requests, want one more than before", n)
		}
		tok.Reject("token-1") // late news of the old one
		mustGet(t, tok, "token-2")

		tok.Reject("token-2")
		if _, err := tok.Get(t.Context()); !errors.Is(err, errRefused) {
			t.Fatalf("after two refusals in a row: %v", err)
		}
		time.Sleep(rejectPause)
		mustGet(t, tok, "token-3")
	})
}

func TestGetEndsWithContext(t *testing.T) {
	bubble(t, func(t *testing.T, i *issuer, tok *Tokens) {
		i.hang = true
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := tok.Get(ctx); err != context.DeadlineExceeded {
			t.Errorf("Get = %v", err)
		}
		begin := time.Now()
		if _, err := tok.Get(t.Context()); err == nil || time.Since(begin) > fetchTimeout {
			t.Errorf("a hanging endpoint: %v after %v", err, time.Since(begin))
		}
	})
}

func TestCloseEndsTheRequest(t *testing.T) {
	bubble(t, func(t *testing.T, i *issuer, tok *Tokens) {
		i.hang = true
		got := make(chan error)
		go func() { _, err := tok.Get(t.Context()); got <- err }()
		synctest.Wait()
		tok.Close()
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Errorf("Get = %v", err)
		}
		if _, err := tok.Get(t.Context()); !errors.Is(err, errClosed) {
			t.Errorf("Get after Close = %v", err)
		}
	})
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
			bubble(t, func(t *testing.T, i *issuer, tok *Tokens) {
				i.set(func(int, string) (int, string, error) { return 200, body, nil })
				if got, err := tok.Get(t.Context()); err == nil || strings.Contains(err.Error(), "CANARY") {
					t.Errorf("Get = %q, %v", got, err)
				}
			})
		})
	}
}

// An endpoint that repeats the assertion, as some do, puts it into no error
// and no log.
func TestRefusalShowsNoAssertion(t *testing.T) {
	account := testAccount(t)
	var log bytes.Buffer
	var sent string
	i := &issuer{answer: func(_ int, assertion string) (int, string, error) {
		sent = assertion
		return 400, `{"error":"invalid_grant","error_description":"no\nto ` + assertion + `"}`, nil
	}}
	tok := NewTokens(TokensConfig{Account: account, Scope: "push", Client: &http.Client{Transport: i}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	defer tok.Close()
	_, err := tok.Get(t.Context())
	var refused *ExchangeError
	if !errors.As(err, &refused) || refused.Status != 400 || refused.Code != "invalid_grant" || refused.Description != "no to [assertion]" {
		t.Fatalf("Get = %#v", err)
	}
	if text := err.Error() + log.String(); strings.Contains(text, sent) || !strings.Contains(log.String(), "invalid_grant") {
		t.Errorf("error and log: %s", text)
	}
}
