package sendgrid

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

const key = "SG.CANARY"

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
	providertest.RunSignIn(t, providertest.HTTP{New: start, Secret: key}, "/v3/scopes", "Authorization",
		providertest.SignedIn(200, `{"scopes":["alerts.read","mail.send"]}`, true), providertest.SignedIn(200, `{"scopes":["alerts.read"]}`, false),
		providertest.SignedIn(200, `<html>`, false), providertest.SignedIn(401, `{"errors":[{"message":"authorization required $SECRET"}]}`, false),
		providertest.SignedIn(403, `{"errors":[{"message":"access forbidden"}]}`, false), providertest.SignedIn(302, ``, false),
		providertest.SignedIn(429, ``, false), providertest.SignedIn(500, `$SECRET`, false))
}

func TestProvider(t *testing.T) {
	const failure = `{"errors":[{"message":"no $SECRET","field":"from","help":null}]}`
	limited := func(header http.Header, wait time.Duration) providertest.HTTPCase {
		c := providertest.Answered(429, failure, message.Deferred, "429")
		c.Header, c.RetryAfter = header, wait
		return c
	}
	providertest.RunHTTP(t, providertest.HTTP{
		New:      start,
		Envelope: func(n int) *message.Envelope { return providertest.Email(n, nil) },
		Number: func(r *http.Request, body []byte) (int, error) {
			var req sendRequest
			if err := json.Unmarshal(body, &req); err != nil || len(req.Personalizations) != 1 || len(req.Personalizations[0].To) != 1 {
				return 0, fmt.Errorf("body %s: %v", body, err)
			}
			if r.Method != http.MethodPost || r.URL.Path != "/v3/mail/send" || r.Header.Get("Authorization") != "Bearer "+key ||
				r.Header.Get("Content-Type") != "application/json" {
				return 0, fmt.Errorf("%s %s with %v", r.Method, r.URL, r.Header)
			}
			return providertest.EmailNumber(req.Personalizations[0].To[0].Email)
		},
		Taken:  providertest.HTTPAnswer{Status: 202, Header: http.Header{"X-Message-Id": {"14c5d75ce93"}}},
		Defer:  providertest.HTTPAnswer{Status: 429, Body: failure},
		Reject: providertest.HTTPAnswer{Status: 400, Body: failure},
		Secret: key,
		Answers: []providertest.HTTPCase{
			providertest.Answered(202, ``, message.Sent, "202"),
			providertest.Answered(200, ``, message.Unknown, "200"),
			providertest.Answered(201, ``, message.Unknown, "201"),
			providertest.Answered(204, ``, message.Unknown, "204"),
			providertest.Answered(307, ``, message.Unknown, "307"),
			providertest.Answered(400, failure, message.Rejected, "400"),
			providertest.Answered(400, `bad request`, message.Unknown, "400"),
			providertest.Answered(401, failure, message.Returned, "401"),
			providertest.Answered(401, `{"errors":[{"message":"Maximum credits exceeded"}]}`, message.Deferred, "401"),
			providertest.Answered(403, failure, message.Deferred, "403"),
			providertest.Answered(404, failure, message.Deferred, "404"),
			providertest.Answered(405, failure, message.Deferred, "405"),
			providertest.Answered(406, failure, message.Deferred, "406"),
			providertest.Answered(408, ``, message.Unknown, "408"),
			providertest.Answered(413, failure, message.Rejected, "413"),
			providertest.Answered(415, failure, message.Deferred, "415"),
			limited(nil, time.Minute),
			limited(http.Header{"X-Ratelimit-Reset": {"9999999999999"}}, time.Hour),
			limited(http.Header{"X-Ratelimit-Reset": {"1"}}, time.Minute),
			providertest.Answered(500, failure, message.Unknown, "500"),
			providertest.Answered(502, `<html>`, message.Unknown, "502"),
			providertest.Answered(503, failure, message.Unknown, "503"),
		},
	})
}

func TestResetIn(t *testing.T) {
	now := time.Unix(1_795_521_600, 999)
	for value, want := range map[string]time.Duration{
		"": time.Minute, "soon": time.Minute, "1795521600": time.Minute, "1795521623": 23 * time.Second, "1795529999": time.Hour,
	} {
		if got := resetIn(value, now); got != want {
			t.Errorf("x-ratelimit-reset %q is %v, want %v", value, got, want)
		}
	}
}

func TestEncode(t *testing.T) {
	env := providertest.Email(7, func(e *message.Email) {
		e.Cc, e.ReplyTo, e.HTML = []string{"c@reader.example"}, []string{"Help <help@sender.example>"}, "p"
		e.Headers = map[string]string{"X-Note": "größer"}
		e.Attachments = []message.Attachment{
			{Filename: "a.pdf", Content: []byte("x")}, {Filename: "l.png", ContentType: "image/png", ContentID: "logo", Content: []byte("x")},
		}
	})
	got, err := encode(env)
	if err != nil {
		t.Fatal(err)
	}
	id := env.ID.String()
	want := `{"personalizations":[{"to":[{"email":"r7@reader.example"}],"custom_args":{"stormpost_id":"` + id + `"}}],` +
		`"from":{"email":"shop@sender.example","name":"Shop"},"reply_to_list":[{"email":"help@sender.example","name":"Help"}],"subject":"Your code",` +
		`"content":[{"type":"text/plain","value":"Your code is 123456."},{"type":"text/html","value":"p"}],` +
		`"attachments":[{"content":"eA==","type":"application/pdf","filename":"a.pdf","disposition":"attachment"},` +
		`{"content":"eA==","type":"image/png","filename":"l.png","disposition":"inline","content_id":"logo"}],` +
		`"headers":{"Message-ID":"<` + id + `@sender.example>","X-Note":"größer"}}`
	if s := strings.NewReplacer(`\u003c`, "<", `\u003e`, ">").Replace(string(got)); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
}

func TestCheck(t *testing.T) {
	for field, change := range map[string]func(*message.Email){
		"":                func(*message.Email) {},
		"subject":         func(e *message.Email) { e.Subject = "" },
		"headers.X-SG-ID": func(e *message.Email) { e.Headers = map[string]string{"X-SG-ID": "1"} },
		"from":            func(e *message.Email) { e.From = "zoë@sender.example" },
		"attachments[1].content": func(e *message.Email) {
			e.Attachments = []message.Attachment{{Filename: "a", Content: []byte("x")}, {Filename: "b", Content: []byte{}}}
		},
	} {
		err := Check(providertest.Email(1, change).Content.Email)
		var fields message.FieldErrors
		if (err == nil) != (field == "") || err != nil && (!errors.As(err, &fields) || fields[0].Field != field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestConfigRefused(t *testing.T) {
	for field, change := range map[string]func(*Config){
		"name":     func(c *Config) { c.Name = "" },
		"key":      func(c *Config) { c.Key = nil },
		"base_url": func(c *Config) { c.BaseURL = "https://user:CANARY@api.example" },
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
