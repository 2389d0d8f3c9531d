package fcm

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/message"
)

func TestSent(t *testing.T) {
	protocols(t, func(t *testing.T, secure bool) {
		var s server
		s.start(t, secure)
		p := s.provider(t, nil)
		for range 3 {
			res := send(t, p)
			if res.Outcome != message.Sent || !strings.HasPrefix(res.Reference, "projects/p1/messages/") {
				t.Errorf("result %+v", res)
			}
		}
		if hits, tokens, conns := s.counts(); hits != 3 || tokens != 1 || conns > 2 {
			t.Errorf("%d requests, %d for tokens, over %d connections; want 3, 1, 2", hits, tokens, conns)
		}
		want := "HTTP/1.1"
		if secure {
			want = "HTTP/2.0"
		}
		for _, h := range s.seen() {
			if h.proto != want || h.header.Get("Authorization") != "Bearer CANARY-1" || h.header.Get("Content-Type") != "application/json" ||
				h.header.Get("Accept-Encoding") != "" {
				t.Errorf("request by %s with %v", h.proto, h.header)
			}
		}
	})
}

// Every documented answer, and what stands for the rest.
func TestAnswers(t *testing.T) {
	const details = `,"details":[{"@type":"type.googleapis.com/google.firebase.fcm.v1.FcmError","errorCode":"`
	answers := []struct {
		status  int
		body    string
		outcome message.Outcome
		code    string
	}{
		{200, `{"name":"projects/p1/messages/7"}`, message.Sent, "200"},
		{200, ``, message.Unknown, "200"},
		{200, `{}`, message.Unknown, "200"},
		{200, `{"name":""}`, message.Unknown, "200"},
		{200, `{"name":"projects/p1/messages/7"`, message.Unknown, "200"},
		{200, `<html>Sign in to the network</html>`, message.Unknown, "200"},
		{200, `{"name":"` + strings.Repeat("x", 64<<10) + `"}`, message.Unknown, "200"},
		{201, `{"name":"projects/p1/messages/7"}`, message.Unknown, "201"},
		{204, ``, message.Unknown, "204"},
		{302, ``, message.Unknown, "302"},
		{307, ``, message.Unknown, "307"},
		{400, `{"error":{"status":"INVALID_ARGUMENT"}}`, message.Rejected, "INVALID_ARGUMENT"},
		{400, `{"error":{"status":"INVALID_ARGUMENT"` + details + `INVALID_ARGUMENT"}]}}`, message.Rejected, "INVALID_ARGUMENT"},
		{400, `{"error":{"status":"FAILED_PRECONDITION"}}`, message.Unknown, "FAILED_PRECONDITION"},
		{400, `bad request`, message.Unknown, "400"},
		{401, `{"error":{"status":"UNAUTHENTICATED"` + details + `THIRD_PARTY_AUTH_ERROR"}]}}`, message.Deferred, "THIRD_PARTY_AUTH_ERROR"},
		{403, `{"error":{"status":"PERMISSION_DENIED"` + details + `SENDER_ID_MISMATCH"}]}}`, message.Rejected, "SENDER_ID_MISMATCH"},
		{403, `{"error":{"status":"PERMISSION_DENIED"}}`, message.Deferred, "PERMISSION_DENIED"},
		{403, ``, message.Deferred, "403"},
		{404, `{"error":{"status":"NOT_FOUND"` + details + `UNREGISTERED"}]}}`, message.Rejected, "recipient_gone"},
		{404, `{"error":{"status":"NOT_FOUND"}}`, message.Deferred, "NOT_FOUND"},
		{404, `<html>`, message.Deferred, "404"},
		{408, ``, message.Unknown, "408"},
		{409, `{"error":{"status":"ABORTED"}}`, message.Unknown, "ABORTED"},
		{413, `<html>`, message.Rejected, "413"},
		{429, `{"error":{"status":"RESOURCE_EXHAUSTED"` + details + `QUOTA_EXCEEDED"}]}}`, message.Deferred, "QUOTA_EXCEEDED"},
		{429, ``, message.Deferred, "429"},
		{500, `{"error":{"status":"INTERNAL"` + details + `INTERNAL"}]}}`, message.Unknown, "INTERNAL"},
		{501, ``, message.Unknown, "501"},
		{502, `<html>`, message.Unknown, "502"},
		{503, `{"error":{"status":"UNAVAILABLE"` + details + `UNAVAILABLE"}]}}`, message.Unknown, "UNAVAILABLE"},
		{504, ``, message.Unknown, "504"},
		{599, `{"error":{"status":"UNREGISTERED"}}`, message.Unknown, "UNREGISTERED"},
	}
	protocols(t, func(t *testing.T, secure bool) {
		s := server{reply: func(w http.ResponseWriter, n int, _ hit) {
			w.Header().Set("Location", sendPath)
			w.WriteHeader(answers[n-1].status)
			_, _ = w.Write([]byte(answers[n-1].body))
		}}
		s.start(t, secure)
		p := s.provider(t, nil)
		for i, a := range answers {
			res := send(t, p)
			if res.Outcome != a.outcome || res.Code != a.code {
				t.Errorf("%d %.90s: %v %s, want %v %s", a.status, a.body, res.Outcome, res.Code, a.outcome, a.code)
			}
			if hits, _, _ := s.counts(); hits != i+1 {
				t.Fatalf("%d %.90s: %d requests for one message", a.status, a.body, hits-i)
			}
		}
	})
}

func TestRetryAfter(t *testing.T) {
	for value, want := range map[string]time.Duration{"": time.Minute, "17": 17 * time.Second} {
		s := server{reply: func(w http.ResponseWriter, _ int, _ hit) {
			w.Header().Set("Retry-After", value)
			fail(w, 429, "RESOURCE_EXHAUSTED")
		}}
		s.start(t, false)
		if res := send(t, s.provider(t, nil)); res.RetryAfter != want {
			t.Errorf("429 with Retry-After %q: wait %v, want %v", value, res.RetryAfter, want)
		}
	}
}

func TestTokenIsReplacedOnce(t *testing.T) {
	protocols(t, func(t *testing.T, secure bool) {
		s := server{reply: func(w http.ResponseWriter, n int, h hit) {
			if h.header.Get("Authorization") == "Bearer CANARY-1" {
				fail(w, 401, "UNAUTHENTICATED")
				return
			}
			taken(w, n)
		}}
		s.start(t, secure)
		p := s.provider(t, nil)
		if res := send(t, p); res.Outcome != message.Sent {
			t.Errorf("result %+v", res)
		}
		hits, tokens, _ := s.counts()
		if seen := s.seen(); hits != 2 || tokens != 2 || seen[0].body != seen[1].body {
			t.Errorf("%d requests with %d tokens, want the same request twice", hits, tokens)
		}
	})
}

func TestTokenRefusedAgain(t *testing.T) {
	s := server{reply: func(w http.ResponseWriter, _ int, h hit) {
		w.WriteHeader(401)
		_, _ = w.Write([]byte(`{"error":{"status":"UNAUTHENTICATED","message":"what is\n` + strings.TrimPrefix(h.header.Get("Authorization"), "Bearer ") + `"}}`))
	}}
	s.start(t, false)
	p := s.provider(t, nil)
	if res := send(t, p); res.Outcome != message.Returned || res.Code != "UNAUTHENTICATED" {
		t.Errorf("result %+v", res)
	}
	if hits, tokens, _ := s.counts(); hits != 2 || tokens != 2 {
		t.Errorf("%d requests with %d tokens, want 2 with 2", hits, tokens)
	}
	// The next message isn't even begun.
	if _, err := p.Reserve(t.Context()); err == nil {
		t.Error("a slot with a token that the service refuses")
	}
	if _, tokens, _ := s.counts(); tokens != 2 {
		t.Errorf("%d tokens, want no third at once", tokens)
	}
}

func TestNoTokenTouchesNoMessage(t *testing.T) {
	s := server{token: func(w http.ResponseWriter, _ int) {
		w.WriteHeader(400)
		_, _ = w.Write([]byte(`{"error":"invalid_grant","error_description":"account not found"}`))
	}}
	s.start(t, false)
	p := s.provider(t, nil)
	_, err := p.Reserve(t.Context())
	if err == nil || !strings.Contains(err.Error(), "fcm provider main: credential main: no working credential: ") {
		t.Errorf("Reserve: %v", err)
	}
	if hits, _, _ := s.counts(); hits != 0 {
		t.Errorf("%d requests", hits)
	}
}

func TestLastFails(t *testing.T) {
	protocols(t, func(t *testing.T, secure bool) {
		var s server
		s.start(t, secure)
		p := s.provider(t, nil)
		res, lasts := sendWith(t.Context(), t, p, func() error { return errors.New("claim is too old") })
		if res.Outcome != message.Returned || lasts != 1 || !strings.Contains(res.Reply, "claim is too old") {
			t.Errorf("result %+v after %d calls of last", res, lasts)
		}
		if res := send(t, p); res.Outcome != message.Sent { // over the same connection
			t.Errorf("the next one: %+v", res)
		}
		if hits, _, conns := s.counts(); hits != 1 || conns > 2 {
			t.Errorf("%d requests over %d connections, want 1 over 2", hits, conns)
		}
	})
}

func TestContextEnds(t *testing.T) {
	protocols(t, func(t *testing.T, secure bool) {
		arrived, release := make(chan struct{}), make(chan struct{})
		s := server{reply: func(w http.ResponseWriter, n int, _ hit) { arrived <- struct{}{}; <-release }}
		s.start(t, secure)
		p := s.provider(t, nil)

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if res, lasts := sendWith(ctx, t, p, func() error { return nil }); res.Outcome != message.Returned || lasts != 0 {
			t.Errorf("before the request: %+v, last called %d times", res, lasts)
		}

		ctx, cancel = context.WithCancel(t.Context())
		go func() { <-arrived; cancel() }()
		if res, _ := sendWith(ctx, t, p, func() error { return nil }); res.Outcome != message.Unknown {
			t.Errorf("during the request: %+v", res)
		}
		close(release)
	})
}

// No answer, or half of one, in time: nobody knows.
func TestNoAnswerInTime(t *testing.T) {
	for name, begin := range map[string]string{"silence": "", "half an answer": `{"name":"projects/p1/m`} {
		protocols(t, func(t *testing.T, secure bool) {
			release := make(chan struct{})
			s := server{reply: func(w http.ResponseWriter, n int, _ hit) {
				if n > 1 {
					taken(w, n)
					return
				}
				if begin != "" {
					_, _ = io.WriteString(w, begin)
					_ = http.NewResponseController(w).Flush()
				}
				<-release
			}}
			s.start(t, secure)
			defer close(release)
			p := s.provider(t, func(c *Config) { c.ReplyLimit = 200 * time.Millisecond })
			if res := send(t, p); res.Outcome != message.Unknown {
				t.Errorf("%s: %+v", name, res)
			}
			if res := send(t, p); res.Outcome != message.Sent {
				t.Errorf("the next one: %+v", res)
			}
		})
	}
}

// A connection that is given up is not torn away from those who still use it.
func TestOthersFinishOnGivenUpConnection(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	s := server{reply: func(w http.ResponseWriter, n int, _ hit) {
		arrived <- struct{}{}
		<-release
		taken(w, n)
	}}
	s.start(t, true)
	p := s.provider(t, nil)
	other := make(chan message.Result, 1)
	go func() { other <- send(t, p) }()
	<-arrived
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	if res, _ := sendWith(ctx, t, p, func() error { return nil }); res.Outcome != message.Unknown {
		t.Errorf("result %+v", res)
	}
	close(release)
	if res := <-other; res.Outcome != message.Sent {
		t.Errorf("the other: %+v", res)
	}
}

// The worker stops while the token is replaced: the message was certainly not
// taken, and goes back.
func TestContextEndsBetweenTries(t *testing.T) {
	asked := make(chan struct{})
	s := server{
		reply: func(w http.ResponseWriter, _ int, _ hit) { fail(w, 401, "UNAUTHENTICATED") },
	}
	release := make(chan struct{})
	s.token = func(w http.ResponseWriter, n int) {
		if n > 1 {
			close(asked)
			<-release
		}
		_, _ = io.WriteString(w, `{"access_token":"CANARY-1","token_type":"Bearer","expires_in":3600}`)
	}
	s.start(t, false)
	defer close(release)
	p := s.provider(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if res, lasts := sendWith(ctx, t, p, func() error { return nil }); res.Outcome != message.Returned || lasts != 1 {
		t.Errorf("result %+v, last called %d times", res, lasts)
	}
}

func TestConcurrency(t *testing.T) {
	var s server
	s.start(t, true)
	p := s.provider(t, func(c *Config) { c.Concurrency = 2 })
	a, err := p.Reserve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.Reserve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := p.Reserve(ctx); err != context.DeadlineExceeded {
		t.Errorf("a third slot: %v", err)
	}
	a.Release()
	if a, err = p.Reserve(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.Release()
	b.Release()
}

// Many at a time share what HTTP/2 gives, and open no more connections than
// slots with HTTP/1.1; all at once ask for one token.
func TestManyAtATime(t *testing.T) {
	protocols(t, func(t *testing.T, secure bool) {
		var s server
		s.start(t, secure)
		p := s.provider(t, func(c *Config) { c.Concurrency = 20 })
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				if res := send(t, p); res.Outcome != message.Sent {
					t.Errorf("result %+v", res)
				}
			})
		}
		wg.Wait()
		hits, tokens, conns := s.counts()
		most := 1 + 20
		if secure {
			most = 1 + 1
		}
		if hits != 200 || tokens != 1 || conns > most {
			t.Errorf("%d requests, %d tokens, %d connections; want 200, 1, at most %d", hits, tokens, conns, most)
		}
	})
}

// Authenticate shows the token, and has nothing sent.
func TestAuthenticate(t *testing.T) {
	var refuse atomic.Bool
	s := server{reply: func(w http.ResponseWriter, n int, h hit) {
		switch {
		case !strings.Contains(h.body, `"validate_only":true`):
			t.Errorf("a message: %s", h.body)
		case refuse.Load():
			w.WriteHeader(401)
			_, _ = w.Write([]byte(`{"error":{"status":"UNAUTHENTICATED","message":"` + strings.TrimPrefix(h.header.Get("Authorization"), "Bearer ") + `"}}`))
		case h.header.Get("Authorization") == "Bearer CANARY-1":
			fail(w, 401, "UNAUTHENTICATED")
		default:
			taken(w, n)
		}
	}}
	s.start(t, true)
	p := s.provider(t, nil)
	if err := p.Authenticate(t.Context()); err != nil {
		t.Errorf("with a second token: %v", err)
	}
	if hits, tokens, _ := s.counts(); hits != 2 || tokens != 2 {
		t.Errorf("%d requests with %d tokens, want 2 with 2", hits, tokens)
	}
	refuse.Store(true)
	if err := p.Authenticate(t.Context()); err == nil || strings.Contains(err.Error(), "CANARY") || errors.Is(err, delivery.ErrUnreachable) {
		t.Errorf("refused: %v", err)
	}
	s.Close()
	nobody := s.provider(t, func(c *Config) { c.Token = token(t) })
	if err := nobody.Authenticate(t.Context()); !errors.Is(err, delivery.ErrUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
}
