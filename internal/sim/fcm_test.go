package sim

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

func startFCM(t testing.TB, o FCMOptions) *FCMServer {
	t.Helper()
	if o.Store == nil {
		o.Store = openStore(t, t.TempDir())
	}
	s, err := StartFCM(t.Context(), o)
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

// transports are the ways to reach a server, by HTTP's version there.
func transports(s *FCMServer) map[string]*http.Transport {
	h2c := &http.Transport{Protocols: new(http.Protocols)}
	h2c.Protocols.SetUnencryptedHTTP2(true)
	if s.Pool() == nil {
		return map[string]*http.Transport{"HTTP/1.1": {}, "HTTP/2.0": h2c}
	}
	conf := &tls.Config{RootCAs: s.Pool()}
	return map[string]*http.Transport{
		"HTTP/1.1": {TLSClientConfig: conf.Clone()},
		"HTTP/2.0": {TLSClientConfig: conf.Clone(), ForceAttemptHTTP2: true},
	}
}

type fcmAnswer struct {
	Name  string `json:"name"`
	Error struct {
		Code            int
		Message, Status string
		Details         []struct {
			Type            string `json:"@type"`
			ErrorCode       string `json:"errorCode"`
			FieldViolations []struct{ Field string }
		}
	} `json:"error"`
}

func post(ctx context.Context, c *http.Client, url, token, body string) (int, http.Header, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, "POST", url, strings.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	r.GetBody = nil // no replays by the transport
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := c.Do(r)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, b, err
}

func push(t testing.TB, c *http.Client, s *FCMServer, body string) (int, http.Header, fcmAnswer) {
	t.Helper()
	status, header, b, err := post(t.Context(), c, s.URL()+"/v1/projects/p/messages:send", "any", body)
	if err != nil {
		t.Fatal(err)
	}
	var a fcmAnswer
	if err := json.Unmarshal(b, &a); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return status, header, a
}

func TestFCMTakesAMessage(t *testing.T) {
	for _, secure := range []bool{false, true} {
		s := startFCM(t, FCMOptions{TLS: secure})
		for version, tr := range transports(s) {
			c := httpClient(t, tr)
			body := `{"message":{"token":"tok","notification":{"title":"Hi","body":"x"},"data":{"stormpost_id":"msg_1"},"android":{"ttl":"3.5s","priority":"high","collapse_key":"k"}}}`
			status, _, a := push(t, c, s, body)
			if status != 200 || !regexp.MustCompile(`^projects/p/messages/0:\d+%[0-9a-f]{8}$`).MatchString(a.Name) {
				t.Fatalf("%d %+v", status, a)
			}
			x, _, err := s.o.Store.Get(s.o.Store.Count())
			if err != nil || x.Channel != "push" || x.Provider != "fcm" || x.From != "p" || x.To != "tok" || x.Subject != "Hi" ||
				x.MessageID != "msg_1" || string(x.Raw) != body || x.Size != len(body) || x.Via != version || x.Conn == 0 {
				t.Fatalf("stored %+v, %v", x, err)
			}
			_, _, a = push(t, c, s, `{"message":{"topic":"news"}}`)
			if x := s.o.Store.List(1, nil)[0]; x.To != "/topics/news" || x.MessageID != a.Name {
				t.Fatalf("stored %+v", x)
			}
			n := s.o.Store.Count()
			if _, _, a = push(t, c, s, `{"validate_only":true,"message":{"condition":"'a' in topics"}}`); a.Name != "projects/p/messages/fake_message_id" || s.o.Store.Count() != n {
				t.Fatalf("validate_only: %+v, %d stored", a, s.o.Store.Count()-n)
			}
		}
	}
}

func TestFCMRefuses(t *testing.T) {
	s := startFCM(t, FCMOptions{})
	c := httpClient(t, &http.Transport{})
	for _, tc := range []struct{ name, body, field string }{
		{"no JSON", `{`, ""},
		{"more", `{"message":{"token":"t"}} {}`, ""},
		{"no message", `{}`, "message"},
		{"unknown field", `{"message":{"token":"t","to":"x"}}`, ""},
		{"unknown android field", `{"message":{"token":"t","android":{"time_to_live":1}}}`, ""},
		{"data not text", `{"message":{"token":"t","data":{"n":1}}}`, ""},
		{"no target", `{"message":{"data":{"a":"b"}}}`, "message"},
		{"two targets", `{"message":{"token":"t","topic":"x"}}`, "message"},
		{"bad token", `{"message":{"token":"a b"}}`, "message.token"},
		{"bad topic", `{"message":{"topic":"/topics/x"}}`, "message.topic"},
		{"reserved key", `{"message":{"token":"t","data":{"from":"x"}}}`, "message.data"},
		{"google's key", `{"message":{"token":"t","data":{"google.x":"x"}}}`, "message.data"},
		{"ttl", `{"message":{"token":"t","android":{"ttl":"1m"}}}`, "message.android.ttl"},
		{"long ttl", `{"message":{"token":"t","android":{"ttl":"2419201s"}}}`, "message.android.ttl"},
		{"priority", `{"message":{"token":"t","android":{"priority":"10"}}}`, "message.android.priority"},
		{"too big", fmt.Sprintf(`{"message":{"token":"t","data":{"k":%q}}}`, strings.Repeat("x", 4096)), "message"},
		{"too big for a topic", fmt.Sprintf(`{"message":{"topic":"t","data":{"k":%q}}}`, strings.Repeat("x", 2048)), "message"},
		{"notification too big", fmt.Sprintf(`{"message":{"token":"t","notification":{"body":%q}}}`, strings.Repeat("x", 4093)), "message"},
		{"huge", strings.Repeat(" ", RawLimit+1), ""},
	} {
		status, _, a := push(t, c, s, tc.body)
		if status != 400 || a.Error.Code != 400 || a.Error.Status != "INVALID_ARGUMENT" || a.Error.Message == "" || a.Error.Details[0].ErrorCode != "INVALID_ARGUMENT" {
			t.Errorf("%s: %d %+v", tc.name, status, a)
		}
		if tc.field != "" && (len(a.Error.Details) != 2 || a.Error.Details[1].FieldViolations[0].Field != tc.field) {
			t.Errorf("%s: details %+v", tc.name, a.Error.Details)
		}
	}
	if status, _, _ := push(t, c, s, fmt.Sprintf(`{"message":{"token":"t","data":{"k":%q}}}`, strings.Repeat("x", 4095))); status != 200 {
		t.Errorf("4096 bytes: %d", status)
	}
	if status, _, _, err := post(t.Context(), c, s.URL()+"/v1/projects/p/messages:sendAll", "any", "{}"); status != 404 || err != nil {
		t.Errorf("another method: %d, %v", status, err)
	}
	if n := s.o.Store.Count(); n != 1 {
		t.Fatalf("%d stored, want 1", n)
	}
}

func TestFCMWantsAToken(t *testing.T) {
	tokens := startToken(t, TokenOptions{Project: "p"})
	s := startFCM(t, FCMOptions{Tokens: tokens})
	c := httpClient(t, &http.Transport{})
	tok, err := fetch(t, account(t, tokens))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		token, project string
		status         int
		want           string
	}{
		{tok.AccessToken, "p", 200, ""},
		{tok.AccessToken, "q", 403, "PERMISSION_DENIED"},
		{"bad", "p", 401, "UNAUTHENTICATED"},
		{"", "p", 401, "UNAUTHENTICATED"},
	} {
		status, _, b, err := post(t.Context(), c, s.URL()+"/v1/projects/"+tc.project+"/messages:send", tc.token, `{"message":{"token":"t"}}`)
		if err != nil || status != tc.status || !bytes.Contains(b, []byte(tc.want)) || bytes.Contains(b, []byte("FcmError")) {
			t.Errorf("%+v: %d %s %v", tc, status, b, err)
		}
	}
	if n := s.o.Store.Count(); n != 1 {
		t.Fatalf("%d stored, want 1", n)
	}
}

func TestFCMFaultAnswers(t *testing.T) {
	s := startFCM(t, FCMOptions{})
	c := httpClient(t, &http.Transport{})
	for _, tc := range []struct {
		fault          Fault
		status         int
		rpc, errorCode string
	}{
		{Fault{Error: "INVALID_ARGUMENT"}, 400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"},
		{Fault{Error: "UNREGISTERED"}, 404, "NOT_FOUND", "UNREGISTERED"},
		{Fault{Error: "SENDER_ID_MISMATCH"}, 403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH"},
		{Fault{Error: "QUOTA_EXCEEDED", RetryAfter: 7 * time.Second}, 429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"},
		{Fault{Error: "UNAVAILABLE"}, 503, "UNAVAILABLE", "UNAVAILABLE"},
		{Fault{Error: "INTERNAL"}, 500, "INTERNAL", "INTERNAL"},
		{Fault{Error: "THIRD_PARTY_AUTH_ERROR"}, 401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"},
		{Fault{Code: 401}, 401, "UNAUTHENTICATED", ""},
		{Fault{Code: 503}, 503, "UNAVAILABLE", "UNAVAILABLE"},
		{Fault{Code: 504}, 504, "UNKNOWN", ""},
		{Fault{Code: 503, Error: "NEW_ONE"}, 503, "UNKNOWN", "NEW_ONE"},
	} {
		tc.fault.Step, tc.fault.Do = StepBody, Answer
		setFaults(t, s, tc.fault)
		status, header, a := push(t, c, s, `{"message":{"token":"t"}}`)
		code := ""
		if len(a.Error.Details) > 0 {
			code = a.Error.Details[0].ErrorCode
		}
		if status != tc.status || a.Error.Code != tc.status || a.Error.Status != tc.rpc || code != tc.errorCode {
			t.Errorf("%+v: %d %+v", tc.fault, status, a)
		}
		if got := header.Get("Retry-After"); (got == "7") != (tc.fault.RetryAfter > 0) {
			t.Errorf("%+v: Retry-After %q", tc.fault, got)
		}
	}
	if n := s.o.Store.Count(); n != 0 {
		t.Fatalf("%d stored", n)
	}
	// Delivered anyway, as FCM has been seen to do.
	setFaults(t, s, Fault{Step: StepReply, Do: Answer, Code: 503})
	if status, _, _ := push(t, c, s, `{"message":{"token":"t"}}`); status != 503 || s.o.Store.Count() != 1 {
		t.Fatalf("%d, %d stored", status, s.o.Store.Count())
	}
}

func TestFCMFaultAtEachStep(t *testing.T) {
	for _, secure := range []bool{false, true} {
		for _, version := range []string{"HTTP/1.1", "HTTP/2.0"} {
			for _, step := range []Step{StepConnect, StepHeaders, StepBody, StepReply} {
				for _, do := range []Action{Slow, Hang, Drop, Reset, Partial, Garbage} {
					if step == StepConnect && do == Partial {
						continue
					}
					t.Run(fmt.Sprint(secure, version, step, do), func(t *testing.T) {
						t.Parallel()
						s := startFCM(t, FCMOptions{TLS: secure})
						c := httpClient(t, transports(s)[version])
						called := make(chan struct{}, 1)
						ctx, giveUp := context.WithCancel(t.Context())
						defer giveUp()
						setFaults(t, s, Fault{Step: step, Do: do, To: map[Step]string{StepBody: "tok", StepReply: "tok"}[step], Times: 1, Hook: func(Event) {
							called <- struct{}{}
							if do == Hang {
								giveUp()
							}
						}})
						status, _, b, err := post(ctx, c, s.URL()+"/v1/projects/p/messages:send", "any", `{"message":{"token":"tok"}}`)
						if do == Slow {
							if status != 200 || err != nil {
								t.Fatalf("%d %s %v", status, b, err)
							}
						} else if err == nil {
							t.Fatalf("got a whole answer: %d %s", status, b)
						}
						<-called
						if err := s.Close(); err != nil {
							t.Fatal(err)
						}
						want := 0
						if step == StepReply || do == Slow {
							want = 1
						}
						if n := s.o.Store.Count(); n != want {
							t.Fatalf("%d stored, want %d", n, want)
						}
					})
				}
			}
		}
	}
}
