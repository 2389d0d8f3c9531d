package ses

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	netmail "net/mail"
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

const secret = "CANARY/secret+key"

// config wants its Key to be closed.
func config() Config {
	return Config{
		Options: overhttp.Options{Name: "main"}, Region: "eu-west-1", ConfigurationSet: "events",
		Key: providertest.FixedKey(JoinKey("AKIDEXAMPLE", secret, "")),
	}
}

func failure(status int, kind, text string) providertest.HTTPAnswer {
	return providertest.HTTPAnswer{Status: status, Header: http.Header{"X-Amzn-Errortype": {kind}}, Body: fmt.Sprintf(`{"message":%q}`, text)}
}

// start makes a provider of the service that o describes.
func start(t *testing.T, o providertest.HTTPService) delivery.Provider {
	cfg := config()
	cfg.BaseURL, cfg.RootCAs, cfg.Concurrency, cfg.ReplyLimit = o.Base, o.Roots, o.Concurrency, o.ReplyLimit
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return providertest.Keyed{Provider: p, Key: cfg.Key}
}

func TestAuthenticate(t *testing.T) {
	providertest.RunSignIn(t, providertest.HTTP{New: start, Secret: secret}, "/v2/email/account", "Authorization",
		providertest.SignedIn(200, `{"SendingEnabled":true}`, true), providertest.SignIn{HTTPAnswer: failure(403, "AccessDeniedException", "not allowed"), In: true},
		providertest.SignIn{HTTPAnswer: failure(400, "AccessDeniedException", "not allowed"), In: true},
		providertest.SignIn{HTTPAnswer: failure(403, "UnrecognizedClientException", "$SECRET")},
		providertest.SignIn{HTTPAnswer: failure(403, "InvalidSignatureException", "no")}, providertest.SignIn{HTTPAnswer: failure(403, "ExpiredTokenException", "no")},
		providertest.SignIn{HTTPAnswer: failure(429, "TooManyRequestsException", "slower")}, providertest.SignedIn(403, `<html>`, false),
		providertest.SignedIn(302, ``, false), providertest.SignedIn(500, `$SECRET`, false))
}

func TestProvider(t *testing.T) {
	refusal := func(status int, kind string, o message.Outcome) providertest.HTTPCase {
		return providertest.HTTPCase{HTTPAnswer: failure(status, kind, "no $SECRET"), Outcome: o, Code: kind}
	}
	unverified := providertest.HTTPCase{
		HTTPAnswer: failure(400, "MessageRejected", "Email address is not verified. The following identities failed the check in region EU-WEST-1: a@b.example"),
		Outcome:    message.Deferred, Code: "MessageRejected",
	}
	slow := refusal(429, "TooManyRequestsException", message.Deferred)
	slow.RetryAfter = time.Second
	namespaced := refusal(400, "com.amazonaws.sesv2#BadRequestException:http://internal.amazon.com/", message.Rejected)
	namespaced.Code = "BadRequestException"
	answers := []providertest.HTTPCase{
		providertest.Answered(200, `{"MessageId":"0102"}`, message.Sent, "200"),
		providertest.Answered(200, ``, message.Unknown, "200"),
		providertest.Answered(200, `{}`, message.Unknown, "200"),
		providertest.Answered(202, `{"MessageId":"0102"}`, message.Unknown, "202"),
		providertest.Answered(301, ``, message.Unknown, "301"),
		providertest.Answered(400, ``, message.Unknown, "400"),
		unverified, slow, namespaced,
		refusal(400, "MessageRejected", message.Rejected),
		refusal(400, "BadRequestException", message.Rejected),
		refusal(400, "ValidationError", message.Rejected),
		refusal(400, "ValidationException", message.Rejected),
		refusal(400, "MalformedHttpRequestException", message.Unknown),
		refusal(400, "RequestAbortedException", message.Unknown),
		refusal(400, "RequestTimeoutException", message.Unknown),
		refusal(404, "UnknownOperationException", message.Deferred),
		refusal(413, "RequestEntityTooLargeException", message.Rejected),
		refusal(400, "SomethingNew", message.Unknown),
		refusal(404, "NotFoundException", message.Deferred),
		providertest.Answered(413, `<html>`, message.Rejected, "413"),
		refusal(500, "InternalFailure", message.Unknown),
		refusal(503, "ServiceUnavailable", message.Unknown),
		providertest.Answered(504, ``, message.Unknown, "504"),
	}
	for _, kind := range []string{
		"AccountSuspendedException", "LimitExceededException", "MailFromDomainNotVerifiedException", "SendingPausedException",
		"NotAuthorized", "RequestExpired", "OptInRequired", "IncompleteSignature", "Throttling", "ThrottlingException",
		"AccessDeniedException", "InvalidAction",
	} {
		answers = append(answers, refusal(400, kind, message.Deferred))
	}
	for _, kind := range []string{
		"ExpiredTokenException", "InvalidClientTokenId", "InvalidSignatureException", "SignatureDoesNotMatch",
		"UnrecognizedClientException", "MissingAuthenticationToken", "MissingAuthenticationTokenException", "ExpiredToken",
	} {
		answers = append(answers, refusal(403, kind, message.Returned))
	}
	for _, kind := range []string{"AccessDeniedException", "OptInRequired"} {
		answers = append(answers, refusal(403, kind, message.Deferred))
	}
	providertest.RunHTTP(t, providertest.HTTP{
		New:      start,
		Envelope: func(n int) *message.Envelope { return providertest.Email(n, nil) },
		Number: func(r *http.Request, body []byte) (int, error) {
			var req sendRequest
			if err := json.Unmarshal(body, &req); err != nil || len(req.Destination.ToAddresses) != 1 {
				return 0, fmt.Errorf("body %s: %v", body, err)
			}
			if r.Method != http.MethodPost || r.URL.Path != "/v2/email/outbound-emails" || r.Header.Get("Content-Type") != "application/json" ||
				!strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/") {
				return 0, fmt.Errorf("%s %s with %v", r.Method, r.URL, r.Header)
			}
			return providertest.EmailNumber(req.Destination.ToAddresses[0])
		},
		Taken:   providertest.HTTPAnswer{Status: 200, Body: `{"MessageId":"010201-0000"}`},
		Defer:   failure(429, "TooManyRequestsException", "slower"),
		Reject:  failure(400, "MessageRejected", "no"),
		Secret:  secret,
		Answers: answers,
	})
}

// Each recipient gets the whole message's header, and nobody else's envelope.
func TestEncode(t *testing.T) {
	cfg := config()
	defer cfg.Key.Close()
	cfg.Now = time.Now
	env := providertest.Email(7, func(e *message.Email) {
		e.To, e.Cc, e.Bcc, e.Text = []string{"Ann <r7@reader.example>", "b@reader.example"}, []string{"c@reader.example"}, []string{"hidden@reader.example"}, "Grüße"
	})
	b, err := cfg.encode(env)
	if err != nil {
		t.Fatal(err)
	}
	var req sendRequest
	if err := json.Unmarshal(b, &req); err != nil {
		t.Fatal(err)
	}
	if to := req.Destination.ToAddresses; len(to) != 1 || to[0] != "r7@reader.example" || req.FromEmailAddress != "shop@sender.example" ||
		req.ConfigurationSetName != "events" || len(req.EmailTags) != 1 || req.EmailTags[0] != (emailTag{"stormpost_id", env.ID.String()}) {
		t.Errorf("%+v", req)
	}
	m, err := netmail.ReadMessage(bytes.NewReader(req.Content.Raw.Data))
	if err != nil {
		t.Fatal(err)
	}
	if h := m.Header; h.Get("To") != `"Ann" <r7@reader.example>, b@reader.example` || h.Get("Cc") != "c@reader.example" ||
		h.Get("Message-Id") != "<"+env.ID.String()+"@sender.example>" || bytes.Contains(req.Content.Raw.Data, []byte("hidden")) {
		t.Errorf("message %s", req.Content.Raw.Data)
	}
	if bytes.ContainsFunc(req.Content.Raw.Data, func(r rune) bool { return r > 0x7f }) {
		t.Error("8-bit bytes, which SES may refuse")
	}
	if _, err := cfg.encode(providertest.Email(1, func(e *message.Email) { e.To = []string{"zoë@reader.example"} })); err == nil {
		t.Error("an address that needs SMTPUTF8 was let through")
	}
}

func TestCheck(t *testing.T) {
	for field, change := range map[string]func(*message.Email){
		"":       func(e *message.Email) { e.To = []string{"Zoë <zoe@bücher.example>"} },
		"from":   func(e *message.Email) { e.From = "zoë@sender.example" },
		"to[1]":  func(e *message.Email) { e.To = append(e.To, "zoë@reader.example") },
		"bcc[0]": func(e *message.Email) { e.Bcc = []string{"zoë@reader.example"} },
	} {
		err := Check(providertest.Email(1, change).Content.Email)
		var fields message.FieldErrors
		if (err == nil) != (field == "") || err != nil && (!errors.As(err, &fields) || fields[0].Field != field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestKey(t *testing.T) {
	for value, ok := range map[string]bool{
		JoinKey("AKID", "a/b+c=", ""): true, JoinKey("ASIA", "s", "IQoJ//=="): true,
		"": false, "AKID": false, "AKID:": false, ":s": false, "a:b:c:d": false, "a:CANARY b": false,
	} {
		if err := CheckKey(value); (err == nil) != ok || err != nil && strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%q: %v", value, err)
		}
	}
	if c := splitKey(JoinKey("ASIA", "s", "t")); c.AccessKeyID != "ASIA" || c.SecretAccessKey != "s" || c.SessionToken != "t" {
		t.Errorf("%+v", c)
	}
}

func TestConfigRefused(t *testing.T) {
	for field, change := range map[string]func(*Config){
		"name":              func(c *Config) { c.Name = "" },
		"region":            func(c *Config) { c.Region, c.BaseURL = "Ireland", "https://ses.example" },
		"key":               func(c *Config) { c.Key = nil },
		"configuration_set": func(c *Config) { c.ConfigurationSet = "a b" },
		"base_url":          func(c *Config) { c.BaseURL = "http://ses.example/CANARY" },
	} {
		cfg := config()
		cfg.Key.Close()
		change(&cfg)
		_, err := New(cfg)
		var fields message.FieldErrors
		if !errors.As(err, &fields) || len(fields) != 1 || fields[0].Field != field || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", field, err)
		}
	}
}
