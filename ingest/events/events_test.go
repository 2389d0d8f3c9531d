package events

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/message"
)

var (
	now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	id  = message.SubmissionID(message.HashKey(1, "k"), message.FingerprintOf([]byte("x"))).Message(0)
)

func clock() time.Time { return now }

// read gives what is told as "kind detail" lines, or the error.
func read(t *testing.T, s ingest.EventSource, h http.Header, body string) (string, error) {
	t.Helper()
	all, err := s.Read(t.Context(), h, []byte(body))
	var lines []string
	for _, e := range all {
		if e.ID != id || e.At.IsZero() {
			t.Errorf("event %+v", e)
		}
		lines = append(lines, strings.TrimSpace(string(e.Kind)+" "+e.Detail))
	}
	return strings.Join(lines, "; "), err
}

func TestPostmark(t *testing.T) {
	p := Postmark{"postmark", "a long password"}
	r := &http.Request{Header: http.Header{}}
	r.SetBasicAuth("postmark", "a long password")
	meta := `"Metadata":{"stormpost_id":"` + id.String() + `"},"BouncedAt":"2026-05-01T12:00:00Z","DeliveredAt":"2026-05-01T12:00:00Z"`
	for body, want := range map[string]string{
		`{"RecordType":"Delivery","Details":"250 ok",` + meta + `}`:                                          "delivered 250 ok",
		`{"RecordType":"Bounce","Type":"HardBounce","Description":"unknown user",` + meta + `}`:              "bounced HardBounce unknown user",
		`{"RecordType":"Bounce","Type":"SoftBounce","Details":"full\r\nmailbox",` + meta + `}`:               "soft_bounce SoftBounce full mailbox",
		`{"RecordType":"SpamComplaint","Type":"SpamComplaint",` + meta + `}`:                                 "complained SpamComplaint",
		`{"RecordType":"Open",` + meta + `}`:                                                                 "",
		`{"RecordType":"Delivery","Metadata":{"stormpost_id":"sub_x"},"DeliveredAt":"2026-05-01T12:00:00Z"}`: "",
	} {
		if got, err := read(t, p, r.Header, body); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", body, got, err, want)
		}
	}
	if _, err := read(t, p, r.Header, "{"); !errors.Is(err, ingest.ErrMalformed) {
		t.Errorf("no JSON: %v", err)
	}
	for name, set := range map[string]func(*http.Request){
		"nobody": func(*http.Request) {}, "another password": func(r *http.Request) { r.SetBasicAuth("postmark", "a long passwore") },
		"another user": func(r *http.Request) { r.SetBasicAuth("other", "a long password") },
	} {
		r := &http.Request{Header: http.Header{}}
		set(r)
		if _, err := read(t, p, r.Header, `{"RecordType":"Delivery",`+meta+`}`); !errors.Is(err, ingest.ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestResend(t *testing.T) {
	r := Resend{[]byte("0123456789abcdef0123456789abcdef"), clock}
	signed := func(prefix, body string, at time.Time) http.Header {
		stamp := strconv.FormatInt(at.Unix(), 10)
		mac := hmac.New(sha256.New, r.Secret)
		fmt.Fprintf(mac, "evt_1.%s.%s", stamp, body)
		h := http.Header{}
		h.Set(prefix+"id", "evt_1")
		h.Set(prefix+"timestamp", stamp)
		h.Set(prefix+"signature", "v1,bm9uZQ== v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
		return h
	}
	body := func(kind, tags, bounce string) string {
		return `{"type":"email.` + kind + `","created_at":"2026-05-01T12:00:00Z","data":{"tags":` + tags + `,"bounce":{` + bounce + `}}}`
	}
	object, list := `{"stormpost_id":"`+id.String()+`"}`, `[{"name":"stormpost_id","value":"`+id.String()+`"}]`
	for b, want := range map[string]string{
		body("delivered", object, ""):                                          "delivered",
		body("complained", list, ""):                                           "complained",
		body("bounced", object, `"type":"Permanent","message":"no such user"`): "bounced Permanent no such user",
		body("bounced", object, `"type":"Transient","subType":"General"`):      "soft_bounce Transient General",
		body("opened", object, ""):                                             "",
		body("delivered", `{"another":"app"}`, ""):                             "",
	} {
		for _, prefix := range []string{"svix-", "webhook-"} {
			if got, err := read(t, r, signed(prefix, b, now), b); got != want || err != nil {
				t.Errorf("%s: %q, %v, want %q", b, got, err, want)
			}
		}
	}
	b := body("delivered", object, "")
	if _, err := read(t, r, signed("svix-", b, now), b+" "); !errors.Is(err, ingest.ErrForged) {
		t.Errorf("changed: %v", err)
	}
	for _, at := range []time.Duration{-6 * time.Minute, 6 * time.Minute} {
		if _, err := read(t, r, signed("svix-", b, now.Add(at)), b); !errors.Is(err, ingest.ErrForged) {
			t.Errorf("signed %s from now: %v", at, err)
		}
	}
	if _, err := read(t, r, http.Header{}, b); !errors.Is(err, ingest.ErrForged) {
		t.Errorf("unsigned: %v", err)
	}
}

func TestSendGrid(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	public, err := ParseSendGridKey(base64.StdEncoding.EncodeToString(der))
	if err != nil {
		t.Fatal(err)
	}
	s := SendGrid{public, clock}
	signed := func(body string, at time.Time) http.Header {
		stamp := strconv.FormatInt(at.Unix(), 10)
		sum := sha256.Sum256([]byte(stamp + body))
		sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		h := http.Header{}
		h.Set("X-Twilio-Email-Event-Webhook-Timestamp", stamp)
		h.Set("X-Twilio-Email-Event-Webhook-Signature", base64.StdEncoding.EncodeToString(sig))
		return h
	}
	one := func(kind, more string) string {
		return `{"event":"` + kind + `","timestamp":1777636800,"stormpost_id":"` + id.String() + `"` + more + `}`
	}
	body := "[" + strings.Join([]string{
		one("delivered", `,"response":"250 OK"`), one("bounce", `,"type":"bounce","status":"5.1.1","reason":"no such user"`),
		one("bounce", `,"type":"blocked","reason":"listed"`), one("spamreport", ""), one("dropped", `,"reason":"Bounced Address"`), one("open", ""),
		`{"event":"delivered","timestamp":1777636800}`,
	}, ",") + "]"
	want := "delivered 250 OK; bounced 5.1.1 no such user; soft_bounce listed; complained; soft_bounce Bounced Address"
	if got, err := read(t, s, signed(body, now), body); got != want || err != nil {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if _, err := read(t, s, signed(body, now), strings.Replace(body, "delivered", "bounce", 1)); !errors.Is(err, ingest.ErrForged) {
		t.Errorf("changed: %v", err)
	}
	if _, err := read(t, s, signed(body, now.Add(-time.Hour)), body); !errors.Is(err, ingest.ErrForged) {
		t.Errorf("old: %v", err)
	}
	if _, err := read(t, s, http.Header{}, body); !errors.Is(err, ingest.ErrForged) {
		t.Errorf("unsigned: %v", err)
	}
	many := "[" + strings.Repeat(`{"event":"open"},`, maxEvents) + `{"event":"open"}]`
	if _, err := read(t, s, signed(many, now), many); !errors.Is(err, ingest.ErrMalformed) {
		t.Errorf("too many: %v", err)
	}
	for _, text := range []string{"", "x", base64.StdEncoding.EncodeToString([]byte("no key"))} {
		if _, err := ParseSendGridKey(text); err == nil {
			t.Errorf("key %q was taken", text)
		}
	}
}

// amazon is Amazon SNS, as far as it is asked, without a network.
type amazon struct {
	key   *rsa.PrivateKey
	cert  []byte
	asked []string
}

func newAmazon(t *testing.T) *amazon {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "sns.amazonaws.com"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &amazon{key: key, cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *amazon) RoundTrip(r *http.Request) (*http.Response, error) {
	a.asked = append(a.asked, r.URL.String())
	body, status := "", http.StatusNotFound
	switch {
	case strings.HasSuffix(r.URL.Path, "/gone.pem"):
	case strings.HasSuffix(r.URL.Path, ".pem"):
		body, status = string(a.cert), http.StatusOK
	case r.URL.Query().Get("Action") == "ConfirmSubscription":
		status = http.StatusOK
	}
	return &http.Response{StatusCode: status, Status: strconv.Itoa(status), Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

const (
	topic   = "arn:aws:sns:eu-west-1:123456789012:mail"
	certURL = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem"
)

// sign makes a message of SNS of some fields.
func (a *amazon) sign(t *testing.T, fields map[string]string) string {
	t.Helper()
	all := map[string]string{
		"Type": "Notification", "MessageId": "m1", "TopicArn": topic, "Timestamp": "2026-05-01T12:00:00.000Z",
		"SignatureVersion": "2", "SigningCertURL": certURL,
	}
	for k, v := range fields {
		all[k] = v
	}
	m := snsMessage{
		Type: all["Type"], MessageID: all["MessageId"], TopicArn: all["TopicArn"], Message: all["Message"], Timestamp: all["Timestamp"],
		Token: all["Token"], SubscribeURL: all["SubscribeURL"], Subject: all["Subject"],
	}
	_, m.hasSubject = all["Subject"]
	sum := sha256.Sum256([]byte(m.signed()))
	sig, err := rsa.SignPKCS1v15(rand.Reader, a.key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	all["Signature"] = base64.StdEncoding.EncodeToString(sig)
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What Amazon signs, by the example in its documentation of the order of names.
func TestSNSSignedText(t *testing.T) {
	m := snsMessage{Type: "Notification", MessageID: "M", TopicArn: "T", Subject: "S", Message: "B", Timestamp: "D", hasSubject: true}
	if got, want := m.signed(), "Message\nB\nMessageId\nM\nSubject\nS\nTimestamp\nD\nTopicArn\nT\nType\nNotification\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	m = snsMessage{Type: "SubscriptionConfirmation", MessageID: "M", TopicArn: "T", Message: "B", Timestamp: "D", Token: "K", SubscribeURL: "U"}
	if got, want := m.signed(), "Message\nB\nMessageId\nM\nSubscribeURL\nU\nTimestamp\nD\nToken\nK\nTopicArn\nT\nType\nSubscriptionConfirmation\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestSES(t *testing.T) {
	a := newAmazon(t)
	sns, err := NewSNS(topic, a, clock)
	if err != nil {
		t.Fatal(err)
	}
	s := SES{sns}
	mail := `"mail":{"tags":{"stormpost_id":["` + id.String() + `"]}}`
	for text, want := range map[string]string{
		`{"eventType":"Delivery",` + mail + `,"delivery":{"timestamp":"2026-05-01T12:00:00Z","smtpResponse":"250 ok"}}`:                                                                 "delivered 250 ok",
		`{"eventType":"Bounce",` + mail + `,"bounce":{"timestamp":"2026-05-01T12:00:00Z","bounceType":"Permanent","bounceSubType":"General","bouncedRecipients":[{"status":"5.1.1"}]}}`: "bounced Permanent General 5.1.1",
		`{"notificationType":"Bounce",` + mail + `,"bounce":{"timestamp":"2026-05-01T12:00:00Z","bounceType":"Transient"}}`:                                                             "soft_bounce Transient",
		`{"eventType":"Complaint",` + mail + `,"complaint":{"timestamp":"2026-05-01T12:00:00Z","complaintFeedbackType":"abuse"}}`:                                                       "complained abuse",
		`{"eventType":"Open",` + mail + `}`:                                                  "",
		`{"eventType":"Delivery","mail":{},"delivery":{"timestamp":"2026-05-01T12:00:00Z"}}`: "",
	} {
		if got, err := read(t, s, nil, a.sign(t, map[string]string{"Message": text})); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
	if len(a.asked) != 1 {
		t.Errorf("the certificate was asked for %d times", len(a.asked))
	}
}

func TestSNSForgeries(t *testing.T) {
	a, other := newAmazon(t), newAmazon(t)
	sns, err := NewSNS(topic, a, clock)
	if err != nil {
		t.Fatal(err)
	}
	open := func(body string) error { _, err := sns.open(t.Context(), []byte(body)); return err }
	for name, body := range map[string]string{
		"another's key":       other.sign(t, nil),
		"changed":             strings.Replace(a.sign(t, map[string]string{"Message": "good"}), "good", "evil", 1),
		"another topic":       a.sign(t, map[string]string{"TopicArn": topic + "2"}),
		"another host":        a.sign(t, map[string]string{"SigningCertURL": "https://sns.eu-west-1.amazonaws.com.evil.example/x.pem"}),
		"a host like it":      a.sign(t, map[string]string{"SigningCertURL": "https://sns.evil.example/x.pem"}),
		"a bucket":            a.sign(t, map[string]string{"SigningCertURL": "https://sns.s3-us-west-2.amazonaws.com/SimpleNotificationService-1.pem"}),
		"a port":              a.sign(t, map[string]string{"SigningCertURL": "https://sns.eu-west-1.amazonaws.com:8443/x.pem"}),
		"a user":              a.sign(t, map[string]string{"SigningCertURL": "https://x@sns.eu-west-1.amazonaws.com/x.pem"}),
		"plain http":          a.sign(t, map[string]string{"SigningCertURL": "http://sns.eu-west-1.amazonaws.com/x.pem"}),
		"no certificate":      a.sign(t, map[string]string{"SigningCertURL": "https://sns.eu-west-1.amazonaws.com/x?y=.pem"}),
		"signature version 9": a.sign(t, map[string]string{"SignatureVersion": "9"}),
	} {
		if err := open(body); !errors.Is(err, ingest.ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, u := range a.asked {
		if u != certURL {
			t.Errorf("asked %s", u)
		}
	}
	if err := open(a.sign(t, map[string]string{"SigningCertURL": "https://sns.eu-west-1.amazonaws.com/gone.pem"})); err == nil || errors.Is(err, ingest.ErrForged) {
		t.Errorf("Amazon away: %v, want a temporary error", err)
	}
	confirm := "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&Token=K"
	if err := open(a.sign(t, map[string]string{"Type": "SubscriptionConfirmation", "Token": "K", "SubscribeURL": confirm})); err != nil || a.asked[len(a.asked)-1] != confirm {
		t.Errorf("confirming: %v, asked %v", err, a.asked)
	}
	sns.asks.TryAcquire(maxAsks)
	before := len(a.asked)
	if err := open(a.sign(t, map[string]string{"SigningCertURL": "https://sns.eu-west-1.amazonaws.com/new.pem"})); err == nil || errors.Is(err, ingest.ErrForged) || len(a.asked) != before {
		t.Errorf("too many at once: %v, want a temporary error", err)
	}
	sns.asks.Release(maxAsks)
	if err := open(a.sign(t, map[string]string{"Type": "SubscriptionConfirmation", "SubscribeURL": "https://169.254.169.254/?Action=ConfirmSubscription"})); !errors.Is(err, ingest.ErrForged) || len(a.asked) != before {
		t.Errorf("confirming elsewhere: %v", err)
	}
	for _, topic := range []string{"", "mail", "arn:aws:sqs:eu-west-1:123456789012:mail"} {
		if _, err := NewSNS(topic, a, clock); err == nil {
			t.Errorf("topic %q was taken", topic)
		}
	}
}

// The transport that is used for real asks no private address.
func TestSNSAsksOnlyPublicAddresses(t *testing.T) {
	sns, err := NewSNS(topic, nil, clock)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := sns.get(ctx, "https://127.0.0.1:1/x.pem"); err == nil || !strings.Contains(err.Error(), "not a public address") {
		t.Errorf("%v", err)
	}
}
