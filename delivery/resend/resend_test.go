package resend

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/delivery/providertest"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const key = "re_CANARY"

func failure(status int, name string) providertest.HTTPAnswer {
	return providertest.HTTPAnswer{Status: status, Body: fmt.Sprintf(`{"statusCode":%d,"message":"no\n$SECRET","name":%q}`, status, name)}
}

// start makes a provider of the service that o describes.
func start(t *testing.T, o providertest.HTTPService) delivery.Provider {
	k := providertest.FixedKey(key)
	p, err := New(Config{Key: k, Options: overhttp.Options{
		Name: "main", BaseURL: o.Base, RootCAs: o.Roots, Concurrency: o.Concurrency, ReplyLimit: o.ReplyLimit,
	}})
	if err != nil {
		t.Fatal(err)
	}
	return providertest.Keyed{Provider: p, Key: k}
}

func TestAuthenticate(t *testing.T) {
	providertest.RunSignIn(t, providertest.HTTP{New: start, Secret: key}, "/domains", "Authorization",
		providertest.SignedIn(200, `{"data":[]}`, true), providertest.SignedIn(401, `{"name":"restricted_api_key"}`, true),
		providertest.SignedIn(401, `{"name":"missing_api_key","message":"$SECRET"}`, false), providertest.SignedIn(403, `{"name":"invalid_api_key"}`, false),
		providertest.SignedIn(400, `{"name":"validation_error","message":"API key is invalid"}`, false),
		providertest.SignedIn(401, `<html>`, false), providertest.SignedIn(302, ``, false), providertest.SignedIn(404, ``, false),
		providertest.SignedIn(429, `{"name":"rate_limit_exceeded"}`, false), providertest.SignedIn(500, `$SECRET`, false))
}

func TestProvider(t *testing.T) {
	answer := func(status int, body string, o message.Outcome, code string) providertest.HTTPCase {
		return providertest.HTTPCase{HTTPAnswer: providertest.HTTPAnswer{Status: status, Body: body}, Outcome: o, Code: code}
	}
	refusal := func(status int, name string, o message.Outcome) providertest.HTTPCase {
		return providertest.HTTPCase{HTTPAnswer: failure(status, name), Outcome: o, Code: name}
	}
	waiting := func(status int, name string, wait time.Duration, header http.Header) providertest.HTTPCase {
		c := refusal(status, name, message.Deferred)
		c.RetryAfter, c.Header = wait, header
		return c
	}
	providertest.RunHTTP(t, providertest.HTTP{
		New:      start,
		Envelope: func(n int) *message.Envelope { return providertest.Email(n, nil) },
		Number: func(r *http.Request, body []byte) (int, error) {
			var req sendRequest
			if err := json.Unmarshal(body, &req); err != nil || len(req.To) != 1 {
				return 0, fmt.Errorf("body %s: %v", body, err)
			}
			if r.Method != http.MethodPost || r.URL.Path != "/emails" || r.Header.Get("Authorization") != "Bearer "+key ||
				r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Idempotency-Key") != req.Tags[0].Value {
				return 0, fmt.Errorf("%s %s with %v", r.Method, r.URL, r.Header)
			}
			return providertest.EmailNumber(req.To[0])
		},
		Taken:  providertest.HTTPAnswer{Status: 200, Body: `{"id":"49a3999c-0ce1-4ea6-ab68-afcd6dc2e794"}`},
		Defer:  failure(429, "rate_limit_exceeded"),
		Reject: failure(422, "missing_required_field"),
		Secret: key,
		Answers: []providertest.HTTPCase{
			answer(200, `{"id":"49a3"}`, message.Sent, "200"),
			answer(200, ``, message.Unknown, "200"),
			answer(200, `{"id":""}`, message.Unknown, "200"),
			answer(200, `<html>Sign in to the network</html>`, message.Unknown, "200"),
			answer(201, `{"id":"49a3"}`, message.Unknown, "201"),
			answer(302, ``, message.Unknown, "302"),
			refusal(400, "validation_error", message.Rejected),
			refusal(400, "invalid_idempotency_key", message.Rejected),
			answer(400, `bad request`, message.Unknown, "400"),
			answer(400, `{"name":"validation_error","message":"API key is invalid"}`, message.Returned, "validation_error"),
			answer(401, `{"name":"validation_error","message":"API key is invalid"}`, message.Returned, "validation_error"),
			refusal(401, "missing_api_key", message.Returned),
			refusal(401, "restricted_api_key", message.Returned),
			refusal(403, "invalid_api_key", message.Returned),
			refusal(403, "validation_error", message.Deferred),
			refusal(404, "not_found", message.Deferred),
			refusal(405, "method_not_allowed", message.Deferred),
			answer(408, ``, message.Unknown, "408"),
			refusal(409, "invalid_idempotent_request", message.Unknown),
			refusal(409, "concurrent_idempotent_requests", message.Unknown),
			answer(413, `<html>`, message.Rejected, "413"),
			refusal(422, "invalid_attachment", message.Rejected),
			refusal(422, "invalid_from_address", message.Rejected),
			refusal(422, "invalid_parameter", message.Rejected),
			refusal(422, "missing_required_field", message.Rejected),
			refusal(422, "validation_error", message.Rejected),
			refusal(422, "invalid_access", message.Deferred),
			refusal(422, "invalid_region", message.Deferred),
			waiting(429, "daily_quota_exceeded", time.Hour, nil),
			waiting(429, "monthly_quota_exceeded", time.Hour, nil),
			waiting(429, "rate_limit_exceeded", time.Second, nil),
			waiting(429, "rate_limit_exceeded", 17*time.Second, http.Header{"Retry-After": {"17"}}),
			refusal(451, "security_error", message.Deferred),
			refusal(500, "application_error", message.Unknown),
			refusal(500, "internal_server_error", message.Unknown),
			answer(502, `<html>`, message.Unknown, "502"),
			answer(503, ``, message.Unknown, "503"),
		},
	})
}

func TestEncode(t *testing.T) {
	env := providertest.Email(7, func(e *message.Email) {
		e.From, e.Cc, e.Bcc = "\"Bücher, Läden\" <shop@bücher.example>", []string{"c@reader.example"}, []string{"hidden@reader.example"}
		e.ReplyTo, e.HTML = []string{"Help <help@sender.example>", "h2@sender.example"}, `<img src="cid:logo">&`
		e.Headers = map[string]string{"List-Unsubscribe": "<https://s.example/u>"}
		e.Attachments = []message.Attachment{
			{Filename: "a.pdf", Content: []byte{0, 1}}, {Filename: "l.png", ContentType: "image/png", ContentID: "logo", Content: []byte("x")},
		}
	})
	got, err := encode(env)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"from":"\"Bücher, Läden\" <shop@xn--bcher-kva.example>","to":["r7@reader.example"],"subject":"Your code",` +
		`"reply_to":["Help <help@sender.example>","h2@sender.example"],"html":"<img src=\"cid:logo\">&","text":"Your code is 123456.",` +
		`"headers":{"List-Unsubscribe":"<https://s.example/u>"},"attachments":[{"content":"AAE=","filename":"a.pdf","content_type":"application/pdf"},` +
		`{"content":"eA==","filename":"l.png","content_type":"image/png","content_id":"logo"}],"tags":[{"name":"stormpost_id","value":"` + env.ID.String() + `"}]}`
	if string(got) != want+"\n" {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	env.Attempt = 9
	if again, _ := encode(env); string(again) != string(got) {
		t.Error("another attempt has other bytes, so that its key is refused")
	}
}

func TestConfigRefused(t *testing.T) {
	for field, change := range map[string]func(*Config){
		"name":        func(c *Config) { c.Name = "" },
		"key":         func(c *Config) { c.Key = nil },
		"base_url":    func(c *Config) { c.BaseURL = "http://api.example/CANARY" },
		"concurrency": func(c *Config) { c.Concurrency = -1 },
		"reply_limit": func(c *Config) { c.ReplyLimit = time.Microsecond },
	} {
		k := providertest.FixedKey(key)
		cfg := Config{Key: k, Options: overhttp.Options{Name: "main"}}
		change(&cfg)
		_, err := New(cfg)
		k.Close()
		var fields message.FieldErrors
		if !errors.As(err, &fields) || len(fields) != 1 || fields[0].Field != field || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", field, err)
		}
	}
}
