package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/delivery/providertest"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The secret, id, time, payload and signature that Standard Webhooks' own
// libraries test with.
const (
	secret     = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	nextSecret = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"
)

func config(base string) Config {
	return Config{Options: overhttp.Options{Name: "main", BaseURL: base}, Secrets: []string{secret, nextSecret}, AllowPrivate: true}
}

func TestProvider(t *testing.T) {
	answers := []providertest.HTTPCase{
		providertest.Answered(303, ``, message.Unknown, "303"),
		providertest.Answered(408, ``, message.Unknown, "408"),
		providertest.Answered(409, ``, message.Unknown, "409"),
	}
	for _, status := range []int{200, 201, 202, 204, 299} {
		answers = append(answers, providertest.Answered(status, ``, message.Sent, strconv.Itoa(status)))
	}
	for _, status := range []int{400, 413, 422} {
		answers = append(answers, providertest.Answered(status, `$SECRET`, message.Rejected, strconv.Itoa(status)))
	}
	for _, status := range []int{301, 302, 307, 308, 401, 403, 404, 405, 410, 415} {
		c := providertest.Answered(status, `$SECRET`, message.Deferred, strconv.Itoa(status))
		c.Header = http.Header{"Location": {"/elsewhere"}}
		answers = append(answers, c)
	}
	for _, status := range []int{425, 429} {
		c := providertest.Answered(status, ``, message.Deferred, strconv.Itoa(status))
		c.RetryAfter = time.Second
		later := c
		later.RetryAfter, later.Header = 90*time.Second, http.Header{"Retry-After": {"90"}}
		answers = append(answers, c, later)
	}
	for _, status := range []int{500, 502, 503, 504} {
		answers = append(answers, providertest.Answered(status, ``, message.Unknown, strconv.Itoa(status)))
	}
	providertest.RunHTTP(t, providertest.HTTP{
		New: func(t *testing.T, o providertest.HTTPService) delivery.Provider {
			cfg := config(o.Base + "/in/")
			cfg.RootCAs, cfg.Concurrency, cfg.ReplyLimit = o.Roots, o.Concurrency, o.ReplyLimit
			p, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			return p
		},
		Envelope: func(n int) *message.Envelope { return providertest.Email(n, nil) },
		Number: func(r *http.Request, body []byte) (int, error) {
			var e event
			if err := json.Unmarshal(body, &e); err != nil {
				return 0, fmt.Errorf("body %s: %v", body, err)
			}
			at, err := strconv.ParseInt(r.Header.Get("webhook-timestamp"), 10, 64)
			if age := time.Since(time.Unix(at, 0)); err != nil || age < -time.Second || age > time.Minute || r.Method != http.MethodPost ||
				r.URL.Path != "/in/" || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("webhook-id") != e.Data.ID.String() ||
				len(strings.Fields(r.Header.Get("webhook-signature"))) != 2 {
				return 0, fmt.Errorf("%s %s with %v", r.Method, r.URL, r.Header)
			}
			return providertest.EmailNumber(e.Data.Recipient)
		},
		Taken:   providertest.HTTPAnswer{Status: 200, Body: "ok"},
		Defer:   providertest.HTTPAnswer{Status: 429},
		Reject:  providertest.HTTPAnswer{Status: 422, Body: "no"},
		Garbage: providertest.HTTPAnswer{Status: 599}, // whatever a 2xx says, it is a 2xx
		Secret:  secret,
		Answers: answers,
	})
}

// What is meant for all messages stops them, and what is for one doesn't.
func TestFault(t *testing.T) {
	for status, want := range map[int]bool{200: false, 401: true, 404: false, 410: true, 422: false, 429: true, 502: true, 503: true, 504: true} {
		res, _ := (&slot{p: &Provider{}}).judge(overhttp.Answer{Status: status, Whole: true})
		if res.Fault != want {
			t.Errorf("%d: fault %t, want %t", status, res.Fault, want)
		}
	}
}

// The test vector is the specification's.
func TestSign(t *testing.T) {
	p, err := New(config("https://receiver.example"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	got := strings.Fields(p.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []byte(`{"test": 2432232314}`)))
	if len(got) != 2 || got[0] != "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=" {
		t.Errorf("signatures %q", got)
	}
}

func TestEncode(t *testing.T) {
	env := providertest.Email(7, func(e *message.Email) { e.Bcc, e.Text = []string{"hidden@reader.example"}, "<b>&" })
	env.ExpiresAt = time.Date(2026, 11, 24, 13, 0, 0, 0, time.FixedZone("", 3600))
	got, err := encode(env, message.ChannelEmail)
	want := `{"type":"message.deliver","data":{"id":"` + env.ID.String() + `","channel":"email","class":"transactional","recipient":"r7@reader.example",` +
		`"expires_at":"2026-11-24T12:00:00Z","email":{"from":"Shop <shop@sender.example>","to":["r7@reader.example"],"subject":"Your code","text":"<b>&"}}}`
	if string(got) != want {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
	if len(env.Content.Email.Bcc) != 1 {
		t.Error("the content itself was changed")
	}
	env.Attempt = 2
	if again, _ := encode(env, message.ChannelEmail); string(again) != string(got) {
		t.Error("another attempt has other bytes")
	}
}

// Whatever name stands for a private address, nothing is connected to it.
func TestPrivateIsRefused(t *testing.T) {
	var conns atomic.Int32
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ConnState = func(net.Conn, http.ConnState) { conns.Add(1) }
	s.StartTLS()
	defer s.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(s.URL, "https://"), ":")
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"} {
		cfg := config("https://" + host + ":" + port)
		cfg.AllowPrivate = false
		p, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		slot, err := p.Reserve(t.Context())
		if err == nil {
			slot.Release()
			t.Errorf("%s: connected", host)
		} else if !errors.Is(err, overhttp.ErrNotPublic) {
			t.Errorf("%s: %v", host, err)
		}
		p.Close()
	}
	if n := conns.Load(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

// A redirect is an answer; what is signed for one place isn't for another.
func TestRedirectIsNotFollowed(t *testing.T) {
	var other atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { other.Add(1) }))
	defer elsewhere.Close()
	s := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer s.Close()
	p, err := New(config(s.URL))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	slot, err := p.Reserve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer slot.Release()
	if r := slot.Send(t.Context(), providertest.Email(1, nil), func() error { return nil }); r.Outcome != message.Deferred || other.Load() != 0 {
		t.Errorf("%+v, followed %d times", r, other.Load())
	}
}

func TestCapabilities(t *testing.T) {
	for window, want := range map[time.Duration]delivery.Repeats{0: delivery.RepeatsDoubled, time.Hour: delivery.RepeatsAbsorbed} {
		cfg := config("https://receiver.example")
		cfg.RepeatWindow = window
		p, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if c := p.Capabilities(); c.Repeats != want || c.RepeatWindow != window {
			t.Errorf("%v: %+v", window, c)
		}
		p.Close()
	}
}

func TestConfigRefused(t *testing.T) {
	for field, change := range map[string]func(*Config){
		"name":          func(c *Config) { c.Name = "" },
		"base_url":      func(c *Config) { c.BaseURL, c.AllowPrivate = "http://127.0.0.1/CANARY", false },
		"secrets":       func(c *Config) { c.Secrets = nil },
		"secrets[1]":    func(c *Config) { c.Secrets[1] = "whsec_CANARY" },
		"channel":       func(c *Config) { c.Channel = 9 },
		"repeat_window": func(c *Config) { c.RepeatWindow = -1 },
	} {
		cfg := config("https://receiver.example/hook")
		change(&cfg)
		_, err := New(cfg)
		var fields message.FieldErrors
		if !errors.As(err, &fields) || len(fields) != 1 || fields[0].Field != field || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", field, err)
		}
	}
}
