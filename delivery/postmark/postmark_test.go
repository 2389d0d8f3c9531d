package postmark

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

const key = "CANARY-0000"

func failure(status, code int) providertest.HTTPAnswer {
	return providertest.HTTPAnswer{Status: status, Body: fmt.Sprintf(`{"ErrorCode":%d,"Message":"no $SECRET"}`, code)}
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
	providertest.RunSignIn(t, providertest.HTTP{New: start, Secret: key}, "/server", "X-Postmark-Server-Token",
		providertest.SignedIn(200, `{"ID":1}`, true), providertest.SignedIn(401, `{"ErrorCode":10,"Message":"$SECRET"}`, false),
		providertest.SignedIn(302, ``, false), providertest.SignedIn(422, `{"ErrorCode":601}`, false), providertest.SignedIn(500, `$SECRET`, false))
}

func TestProvider(t *testing.T) {
	const taken = `{"To":"r@reader.example","SubmittedAt":"2026-11-24T12:00:00Z","MessageID":"0a129aee-e1cd","ErrorCode":0,"Message":"OK"}`
	refusal := func(status, code int, o message.Outcome, wait time.Duration) providertest.HTTPCase {
		return providertest.HTTPCase{HTTPAnswer: failure(status, code), Outcome: o, Code: fmt.Sprint(code), RetryAfter: wait}
	}
	answers := []providertest.HTTPCase{
		providertest.Answered(200, taken, message.Sent, "200"),
		providertest.Answered(200, ``, message.Unknown, "200"),
		providertest.Answered(200, `{"MessageID":"0a129aee"}`, message.Unknown, "200"),
		providertest.Answered(200, `{"ErrorCode":0,"MessageID":""}`, message.Unknown, "200"),
		providertest.Answered(200, `{"ErrorCode":406,"MessageID":"0a129aee","Message":"inactive"}`, message.Unknown, "406"),
		providertest.Answered(302, ``, message.Unknown, "302"),
		providertest.Answered(400, ``, message.Unknown, "400"),
		refusal(401, 10, message.Returned, 0),
		providertest.Answered(403, ``, message.Unknown, "403"),
		providertest.Answered(404, ``, message.Deferred, "404"),
		providertest.Answered(413, ``, message.Rejected, "413"),
		providertest.Answered(415, ``, message.Deferred, "415"),
		providertest.Answered(422, ``, message.Deferred, "422"),
		refusal(429, 0, message.Deferred, time.Second),
		providertest.Answered(500, ``, message.Unknown, "500"),
		providertest.Answered(503, ``, message.Unknown, "503"),
		refusal(503, 100, message.Deferred, time.Minute),
		providertest.Answered(504, ``, message.Unknown, "504"),
	}
	answers[13].Code = "429"
	answers = append(answers, providertest.Answered(422,
		`{"ErrorCode":300,"Message":"From: $SECRET is no verified Sender Signature"}`, message.Deferred, "300"))
	for _, code := range []int{300, 402, 403, 411} {
		answers = append(answers, refusal(422, code, message.Rejected, 0))
	}
	gone := refusal(422, 406, message.Rejected, 0)
	gone.Code = message.RecipientGone
	answers = append(answers, gone)
	for _, code := range []int{400, 401, 405, 409, 412, 413, 1235, 99999} {
		answers = append(answers, refusal(422, code, message.Deferred, 0))
	}
	providertest.RunHTTP(t, providertest.HTTP{
		New:      start,
		Envelope: func(n int) *message.Envelope { return providertest.Email(n, nil) },
		Number: func(r *http.Request, body []byte) (int, error) {
			var req sendRequest
			if err := json.Unmarshal(body, &req); err != nil {
				return 0, fmt.Errorf("body %s: %v", body, err)
			}
			if r.Method != http.MethodPost || r.URL.Path != "/email" || r.Header.Get("X-Postmark-Server-Token") != key ||
				r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Accept") != "application/json" {
				return 0, fmt.Errorf("%s %s with %v", r.Method, r.URL, r.Header)
			}
			return providertest.EmailNumber(req.To)
		},
		Taken:   providertest.HTTPAnswer{Status: 200, Body: taken},
		Defer:   failure(429, 0),
		Reject:  failure(422, 300),
		Secret:  key,
		Answers: answers,
	})
}

func TestEncode(t *testing.T) {
	env := providertest.Email(7, func(e *message.Email) {
		e.Cc, e.ReplyTo, e.HTML = []string{"c@reader.example"}, []string{"\"Help, me\" <help@sender.example>", "h2@sender.example"}, "<p>"
		e.Headers = map[string]string{"List-Unsubscribe": "<https://s.example/u>"}
		e.Attachments = []message.Attachment{{Filename: "l.png", ContentType: "image/png", ContentID: "logo", Content: []byte("x")}}
	})
	b, err := encode(env, "outbound")
	if err != nil {
		t.Fatal(err)
	}
	id := env.ID.String()
	want := `{"From":"Shop <shop@sender.example>","To":"r7@reader.example","ReplyTo":"\"Help, me\" <help@sender.example>, h2@sender.example",` +
		`"Subject":"Your code","TextBody":"Your code is 123456.","HtmlBody":"<p>","Headers":[{"Name":"List-Unsubscribe","Value":"<https://s.example/u>"},` +
		`{"Name":"Message-ID","Value":"<` + id + `@sender.example>"},{"Name":"X-PM-KeepID","Value":"true"}],` +
		`"Attachments":[{"Name":"l.png","Content":"eA==","ContentType":"image/png","ContentID":"cid:logo"}],` +
		`"Metadata":{"stormpost_id":"` + id + `"},"MessageStream":"outbound"}`
	got := strings.NewReplacer(`\u003c`, "<", `\u003e`, ">").Replace(string(b))
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// What Postmark can't take is told at the door, and never sent.
func TestCheck(t *testing.T) {
	big := func(n int) []byte { return make([]byte, n) }
	for name, tc := range map[string]struct {
		change func(*message.Email)
		field  string // empty: fits
	}{
		"small": {func(*message.Email) {}, ""},
		"at the limit": {func(e *message.Email) {
			e.Text = ""
			e.Attachments = []message.Attachment{{Filename: "a", Content: big(MaxBytes / 4 * 3)}}
		}, ""},
		"in base64 above it": {func(e *message.Email) {
			e.Text = ""
			e.Attachments = []message.Attachment{{Filename: "a", Content: big(MaxBytes/4*3 + 1)}}
		}, "attachments"},
		"attachment": {func(e *message.Email) {
			e.Attachments = []message.Attachment{{Filename: "a", Content: big(MaxBytes / 4 * 3)}}
		}, "attachments"},
		"text":             {func(e *message.Email) { e.Text = string(big(maxText + 1)) }, "text"},
		"html":             {func(e *message.Email) { e.HTML = string(big(maxText + 1)) }, "html"},
		"both are allowed": {func(e *message.Email) { e.Text, e.HTML = string(big(maxText)), string(big(maxText)) }, ""},
	} {
		env := providertest.Email(1, tc.change)
		err := Check(env.Content.Email)
		var fields message.FieldErrors
		if (err == nil) != (tc.field == "") || err != nil && (!errors.As(err, &fields) || fields[0].Field != tc.field) {
			t.Errorf("%s: %v", name, err)
		}
		if _, encodeErr := encode(env, "outbound"); (encodeErr == nil) != (err == nil) {
			t.Errorf("%s: the door says %v, the hand-over %v", name, err, encodeErr)
		}
	}
}

// What Postmark documents that it refuses is told at the door, too.
func TestCheckAddresses(t *testing.T) {
	for field, change := range map[string]func(*message.Email){
		"":            func(e *message.Email) { e.From = strings.Repeat("ü", maxName) + " <Shop@bücher.example>" },
		"from":        func(e *message.Email) { e.From = strings.Repeat("ü", maxName+1) + " <shop@sender.example>" },
		"to[1]":       func(e *message.Email) { e.To = append(e.To, "zoë@reader.example") },
		"bcc[0]":      func(e *message.Email) { e.Bcc = []string{"who?@reader.example"} },
		"reply_to[0]": func(e *message.Email) { e.ReplyTo = []string{"zoë@reader.example"} },
		"attachments[0].content": func(e *message.Email) {
			e.Attachments = []message.Attachment{{Filename: "a", Content: []byte{}}}
		},
	} {
		err := Check(providertest.Email(1, change).Content.Email)
		var fields message.FieldErrors
		if (err == nil) != (field == "") || err != nil && (!errors.As(err, &fields) || len(fields) != 1 || fields[0].Field != field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestConfigRefused(t *testing.T) {
	for field, change := range map[string]func(*Config){
		"name":     func(c *Config) { c.Name = "" },
		"key":      func(c *Config) { c.Key = nil },
		"stream":   func(c *Config) { c.Stream = "Not a stream" },
		"base_url": func(c *Config) { c.BaseURL = "ftp://api.example" },
	} {
		k := providertest.FixedKey(key)
		cfg := Config{Key: k, Options: overhttp.Options{Name: "main"}}
		change(&cfg)
		_, err := New(cfg)
		k.Close()
		var fields message.FieldErrors
		if !errors.As(err, &fields) || len(fields) != 1 || fields[0].Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}
