package apns

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/delivery/providertest"
	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testKey = sync.OnceValue(func() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
})

func p8() []byte {
	der, err := x509.MarshalPKCS8PrivateKey(testKey())
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// token is a credential of provider tokens, by the test's key and a clock.
func token(t *testing.T, now func() time.Time) *credential.Credential {
	t.Helper()
	key := credential.New(credential.Config{Name: "key", Source: credential.Fixed("test", string(p8())), Now: now})
	tokens := credential.New(credential.Config{Name: "apns", Source: &credential.APNs{Key: key, KeyID: "KEY4567890", TeamID: "TEAM567890", Now: now}, Now: now})
	t.Cleanup(func() { tokens.Close(); key.Close() })
	return tokens
}

func config(o providertest.HTTPService) Config {
	return Config{
		Options: overhttp.Options{Name: "apns", BaseURL: o.Base, Concurrency: o.Concurrency, ReplyLimit: o.ReplyLimit, RootCAs: o.Roots},
		Topic:   "com.example.app",
	}
}

func newProvider(t *testing.T, cfg Config) *Provider {
	t.Helper()
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// envelope is the nth message; n stands in its device token.
func envelope(n int) *message.Envelope {
	push := &message.Push{
		Platform: "apns", To: message.Target{Token: fmt.Sprintf("%064x", n)},
		Notification: &message.Notification{Title: "Your code", Body: "123456"}, Data: map[string]string{"order": "42"},
	}
	return &message.Envelope{
		Position: message.PositionOf(message.Lane{Class: message.Transactional, Channel: message.ChannelPush}, int64(n)+1, 0),
		ID:       message.SubmissionID(message.HashKey(1, strconv.Itoa(n)), message.FingerprintOf(nil)).Message(0),
		Attempt:  1, Tenant: 1, Recipient: push.To.Token, Content: &message.Content{Push: push}, ExpiresAt: time.Unix(1_800_000_000, 0),
	}
}

var uuid = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

// number holds a request to what Apple documents.
func number(r *http.Request, body []byte) (int, error) {
	token, ok := strings.CutPrefix(r.URL.Path, "/3/device/")
	n, err := strconv.ParseInt(token, 16, 32)
	if r.Method != http.MethodPost || r.ProtoMajor != 2 || !ok || err != nil {
		return 0, fmt.Errorf("%s %s %s", r.Proto, r.Method, r.URL.Path)
	}
	id := envelope(int(n)).ID.String()
	for name, want := range map[string]string{
		"Apns-Topic": "com.example.app", "Apns-Push-Type": "alert", "Apns-Priority": "10", "Apns-Expiration": "1800000000", "Apns-Collapse-Id": id,
	} {
		if got := r.Header.Get(name); got != want {
			return 0, fmt.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if !uuid.MatchString(r.Header.Get("Apns-Id")) {
		return 0, fmt.Errorf("apns-id %q", r.Header.Get("Apns-Id"))
	}
	if err := verify(strings.TrimPrefix(r.Header.Get("Authorization"), "bearer ")); err != nil {
		return 0, err
	}
	var b struct {
		APS struct {
			Alert struct{ Title, Body string }
		}
		ID    string `json:"stormpost_id"`
		Order string
	}
	if err := json.Unmarshal(body, &b); err != nil || b.APS.Alert.Body != "123456" || b.ID != id || b.Order != "42" {
		return 0, fmt.Errorf("body %s: %v", body, err)
	}
	return int(n), nil
}

// verify checks a provider token by the letter of RFC 7515.
func verify(token string) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return fmt.Errorf("token has %d parts", len(parts))
	}
	var head struct{ Alg, Kid string }
	var claims struct {
		Iss string
		Iat int64
	}
	for i, v := range []any{&head, &claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, v); err != nil {
			return err
		}
	}
	if head.Alg != "ES256" || head.Kid != "KEY4567890" || claims.Iss != "TEAM567890" || claims.Iat == 0 {
		return fmt.Errorf("token says %+v %+v", head, claims)
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(sig) != 64 {
		return fmt.Errorf("signature has %d bytes, %v", len(sig), err)
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if !ecdsa.Verify(&testKey().PublicKey, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		return errors.New("signature is wrong")
	}
	return nil
}

// TestProvider runs the suite for providers over HTTP: the contract, every
// documented status and reason, and a cut at every step.
func TestProvider(t *testing.T) {
	answer := func(status int, reason string) providertest.HTTPAnswer {
		a := providertest.HTTPAnswer{Status: status}
		if reason != "" {
			a.Body = `{"reason":"` + reason + `","timestamp":1732480000000}`
		}
		return a
	}
	var answers []providertest.HTTPCase
	for status, reasons := range map[int]map[message.Outcome][]string{
		400: {
			message.Rejected: {
				"BadCollapseId", "BadDeviceToken", "BadExpirationDate", "BadMessageId", "BadPriority", "DeviceTokenNotForTopic",
				"DuplicateHeaders", "InvalidPushType", "MissingDeviceToken", "PayloadEmpty",
			},
			message.Deferred: {"BadTopic", "MissingTopic", "TopicDisallowed", "IdleTimeout", "BadCertificate", "BadCertificateEnvironment"},
			message.Unknown:  {"", "Unregistered", "NewReason"},
		},
		403: {message.Deferred: {
			"BadCertificate", "BadCertificateEnvironment", "Forbidden", "",
		}},
		404: {message.Deferred: {"BadPath", ""}},
		405: {message.Deferred: {"MethodNotAllowed", ""}},
		410: {message.Unknown: {"", "NewReason"}},
		413: {message.Rejected: {"PayloadTooLarge", ""}},
		429: {message.Deferred: {"TooManyProviderTokenUpdates", "TooManyRequests", ""}},
		500: {message.Unknown: {"InternalServerError", ""}},
		502: {message.Unknown: {"", "ServiceUnavailable"}},
		503: {message.Unknown: {"", "NewReason"}},
		202: {message.Unknown: {""}},
		302: {message.Unknown: {""}},
	} {
		for outcome, list := range reasons {
			for _, reason := range list {
				code := reason
				if code == "" {
					code = strconv.Itoa(status)
				}
				answers = append(answers, providertest.HTTPCase{HTTPAnswer: answer(status, reason), Outcome: outcome, Code: code})
			}
		}
	}
	busy := answer(503, "Shutdown")
	busy.Header = http.Header{"Retry-After": {"7"}}
	answers = append(answers,
		providertest.HTTPCase{HTTPAnswer: answer(200, ""), Outcome: message.Sent},
		providertest.HTTPCase{HTTPAnswer: answer(410, "Unregistered"), Outcome: message.Rejected, Code: message.RecipientGone},
		providertest.HTTPCase{HTTPAnswer: answer(410, "ExpiredToken"), Outcome: message.Rejected, Code: message.RecipientGone},
		providertest.HTTPCase{HTTPAnswer: answer(503, "ServiceUnavailable"), Outcome: message.Deferred, RetryAfter: 15 * time.Minute},
		providertest.HTTPCase{HTTPAnswer: busy, Outcome: message.Deferred, RetryAfter: 7 * time.Second},
	)
	tokens := token(t, time.Now)
	if _, err := tokens.Use(t.Context()); err != nil { // its goroutines are there before the suite counts
		t.Fatal(err)
	}
	providertest.RunHTTP(t, providertest.HTTP{
		New: func(t *testing.T, o providertest.HTTPService) delivery.Provider {
			cfg := config(o)
			cfg.Token = tokens
			return newProvider(t, cfg)
		},
		Envelope: envelope, Number: number,
		Taken: answer(200, ""), Defer: answer(429, "TooManyRequests"), Reject: answer(400, "BadDeviceToken"),
		Answers: answers, HTTP2: true,
	})
}

func TestRequest(t *testing.T) {
	cfg := config(providertest.HTTPService{Base: "https://127.0.0.1:1"})
	cfg.Token = token(t, time.Now)
	p := newProvider(t, cfg)
	defer p.Close()
	lane := func(c message.Class) message.Position {
		return message.PositionOf(message.Lane{Class: c, Channel: message.ChannelPush}, 1, 0)
	}
	for name, c := range map[string]struct {
		change func(*message.Envelope)
		header map[string]string
		body   string
	}{
		"campaign": {func(e *message.Envelope) { e.Position = lane(message.Campaign) },
			map[string]string{"Apns-Push-Type": "alert", "Apns-Priority": "5"}, `"aps":{"alert":{"title":"Your code","body":"123456"}}`},
		"background": {func(e *message.Envelope) { e.Content.Push.Notification = nil },
			map[string]string{"Apns-Push-Type": "background", "Apns-Priority": "5"}, `"aps":{"content-available":1}`},
		"image": {func(e *message.Envelope) { e.Content.Push.Notification.Image = "https://img.example/?a=1&b=2" }, nil,
			`"mutable-content":1},"order":"42","stormpost_id":"msg_`},
		"image's link": {func(e *message.Envelope) { e.Content.Push.Notification.Image = "https://img.example/?a=1&b=2" }, nil,
			`"stormpost_image":"https://img.example/?a=1&b=2"`},
		"collapse key":      {func(e *message.Envelope) { e.Content.Push.CollapseKey = "score" }, map[string]string{"Apns-Collapse-Id": "score"}, ""},
		"odd collapse key":  {func(e *message.Envelope) { e.Content.Push.CollapseKey = "a b" }, map[string]string{"Apns-Collapse-Id": "yGh6CKpdbtIEQyj6aml6uOltw0KR6MIDSujDjm_MbWU"}, ""},
		"no expiry":         {func(e *message.Envelope) { e.ExpiresAt = time.Time{} }, map[string]string{"Apns-Expiration": "0"}, ""},
		"repeat, 2 attempt": {func(e *message.Envelope) { e.Attempt = 2 }, map[string]string{"Apns-Id": p.header(envelope(1), "")["Apns-Id"][0]}, ""},
	} {
		env := envelope(1)
		c.change(env)
		h := p.header(env, "t")
		for k, want := range c.header {
			if got := h[k][0]; got != want {
				t.Errorf("%s: %s is %q, want %q", name, k, got, want)
			}
		}
		body, err := encode(env.Content.Push, env.ID)
		if err != nil || !strings.Contains(string(body), c.body) {
			t.Errorf("%s: body %s, %v", name, body, err)
		}
	}
	if apnsID(envelope(1).ID) == apnsID(envelope(2).ID) {
		t.Error("two messages have one apns-id")
	}
}

// What Check lets through is at most what APNs takes, with the id that Send adds.
func TestCheck(t *testing.T) {
	fill := func(n int) *message.Push {
		p := envelope(1).Content.Push
		p.Data["pad"] = strings.Repeat("x", n)
		return p
	}
	size := func(p *message.Push) int {
		b, err := encode(p, envelope(1).ID)
		if err != nil {
			t.Fatal(err)
		}
		return len(b)
	}
	room := MaxPayload - size(fill(0))
	if err := Check(fill(room)); err != nil || size(fill(room)) != MaxPayload {
		t.Errorf("the largest: %d bytes, %v", size(fill(room)), err)
	}
	for name, c := range map[string]struct {
		push  *message.Push
		field string
	}{
		"a byte more":                   {fill(room + 1), "data"},
		"all of it in the notification": {&message.Push{To: envelope(1).Content.Push.To, Notification: &message.Notification{Body: strings.Repeat("x", 5000)}}, "notification"},
		"aps":                           {&message.Push{To: envelope(1).Content.Push.To, Data: map[string]string{"aps": "x"}}, "data.aps"},
		"stormpost_image":               {&message.Push{To: envelope(1).Content.Push.To, Data: map[string]string{"stormpost_image": "x"}}, "data.stormpost_image"},
		"no hex":                        {&message.Push{To: message.Target{Token: strings.Repeat("g", 64)}, Data: map[string]string{"a": "x"}}, "to"},
		"short":                         {&message.Push{To: message.Target{Token: "abcd"}, Data: map[string]string{"a": "x"}}, "to"},
		"odd":                           {&message.Push{To: message.Target{Token: strings.Repeat("a", 65)}, Data: map[string]string{"a": "x"}}, "to"},
	} {
		err := Check(c.push)
		var fields message.FieldErrors
		if !errors.As(err, &fields) || len(fields) != 1 || fields[0].Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConfigRefused(t *testing.T) {
	tokens := token(t, time.Now)
	for field, change := range map[string]func(*Config){
		"name":        func(c *Config) { c.Name = "" },
		"token":       func(c *Config) { c.Token = nil },
		"topic":       func(c *Config) { c.Topic = "" },
		"topic odd":   func(c *Config) { c.Topic = "a\r\nb" },
		"base_url":    func(c *Config) { c.BaseURL = "http://127.0.0.1:1" },
		"connections": func(c *Config) { c.Connections = 1000 },
		"concurrency": func(c *Config) { c.Concurrency = -1 },
		"reply_limit": func(c *Config) { c.ReplyLimit = time.Nanosecond },
	} {
		cfg := config(providertest.HTTPService{})
		cfg.Token = tokens
		change(&cfg)
		_, err := New(cfg)
		var fields message.FieldErrors
		if want, _, _ := strings.Cut(field, " "); !errors.As(err, &fields) || len(fields) != 1 || fields[0].Field != want {
			t.Errorf("%s: %v", field, err)
		}
	}
	cfg := config(providertest.HTTPService{})
	cfg.Token = tokens
	p := newProvider(t, cfg)
	defer p.Close()
	if got := p.base.String(); got != Production || p.ReplyLimit() != time.Minute || p.Capabilities().Repeats != delivery.RepeatsReplaced {
		t.Errorf("by default %s, %v, %+v", got, p.ReplyLimit(), p.Capabilities())
	}
}

// APNs is HTTP/2: nothing else is spoken, whatever the server offers.
func TestOnlyHTTP2(t *testing.T) {
	var hits atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	cfg := config(providertest.HTTPService{Base: s.URL, Roots: roots})
	cfg.Token = token(t, time.Now)
	p := newProvider(t, cfg)
	defer p.Close()
	if slot, err := p.Reserve(t.Context()); err == nil {
		slot.Release()
		t.Error("a place on a connection of HTTP/1.1")
	}
	if hits.Load() != 0 {
		t.Error("a request by HTTP/1.1")
	}
}

// Signing in is told from being refused, and hands nothing over.
func TestAuthenticate(t *testing.T) {
	for reason, good := range map[string]bool{"BadDeviceToken": true, "InvalidProviderToken": false, "TopicDisallowed": false, "": false} {
		var path atomic.Value
		s := providertest.ServeHTTP2(t, func(w http.ResponseWriter, r *http.Request, _ []byte) {
			path.Store(r.URL.Path)
			status := 400
			if reason == "InvalidProviderToken" {
				status = 403
			}
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"reason":%q}`, reason)
		})
		cfg := config(s)
		cfg.Token = token(t, time.Now)
		p := newProvider(t, cfg)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := p.Authenticate(ctx); (err == nil) != good {
			t.Errorf("%s: %v", reason, err)
		}
		cancel()
		p.Close()
		if got := path.Load(); got != "/3/device/00" {
			t.Errorf("asked for %v", got)
		}
	}
}
