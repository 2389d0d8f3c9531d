package events

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/overhttp"
)

const (
	maxCert  = 64 << 10
	maxCerts = 16
	maxAsks  = 4
	// certFor is how long a certificate is kept before it is asked for again.
	certFor = 24 * time.Hour
	snsTime = 5 * time.Second
)

// snsHost is the only place that certificates come from, and subscriptions are
// confirmed at. It takes regions alone: sns.s3-us-west-2.amazonaws.com is anybody's
// who has the bucket sns (https://spaceraccoon.dev/exploiting-improper-validation-amazon-simple-notification-service/).
var snsHost = regexp.MustCompile(`^sns\.[a-z]{2,8}(-[a-z]{2,12}){1,3}-[0-9]{1,2}\.amazonaws\.com(\.cn)?$`)

// SNS checks and opens messages of one topic of Amazon SNS.
type SNS struct {
	topic string
	http  *http.Client
	now   func() time.Time
	asks  *semaphore.Weighted // whoever writes to us can have Amazon asked

	mu    sync.Mutex
	certs map[string]cert
}

type cert struct {
	key *rsa.PublicKey
	at  time.Time
}

// NewSNS makes one for a topic, by its ARN. rt replaces the transport, which
// connects to public addresses only, in tests.
func NewSNS(topic string, rt http.RoundTripper, now func() time.Time) (*SNS, error) {
	if parts := strings.Split(topic, ":"); len(parts) != 6 || parts[0] != "arn" || parts[2] != "sns" {
		return nil, errors.New("want a topic's ARN, as arn:aws:sns:eu-west-1:123456789012:mail-events")
	}
	if rt == nil {
		rt = &http.Transport{
			DialContext:         (&net.Dialer{Timeout: snsTime, Control: overhttp.OnlyPublic}).DialContext,
			TLSHandshakeTimeout: snsTime, MaxIdleConns: 1, IdleConnTimeout: time.Minute,
		}
	}
	return &SNS{topic: topic, now: now, asks: semaphore.NewWeighted(maxAsks), certs: make(map[string]cert), http: &http.Client{
		Transport: rt, Timeout: snsTime, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

type snsMessage struct {
	Type, TopicArn, Subject, Message, Timestamp, Token, SubscribeURL string
	MessageID                                                        string `json:"MessageId"`
	SignatureVersion, Signature, SigningCertURL                      string
	hasSubject                                                       bool
}

// signed is the text that Amazon signs.
func (m *snsMessage) signed() string {
	var b strings.Builder
	add := func(name, value string) { b.WriteString(name + "\n" + value + "\n") }
	add("Message", m.Message)
	add("MessageId", m.MessageID)
	if m.Type == "Notification" {
		if m.hasSubject {
			add("Subject", m.Subject)
		}
	} else {
		add("SubscribeURL", m.SubscribeURL)
	}
	add("Timestamp", m.Timestamp)
	if m.Type != "Notification" {
		add("Token", m.Token)
	}
	add("TopicArn", m.TopicArn)
	add("Type", m.Type)
	return b.String()
}

// open gives what a notification holds, once it is known to be Amazon's. A
// subscription of our topic is confirmed, and gives nothing.
func (s *SNS) open(ctx context.Context, body []byte) (string, error) {
	var m snsMessage
	var fields map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(body, &m), json.Unmarshal(body, &fields)); err != nil {
		return "", fmt.Errorf("%w: %v", ingest.ErrMalformed, err)
	}
	_, m.hasSubject = fields["Subject"]
	if m.TopicArn != s.topic {
		return "", fmt.Errorf("%w: it is of another topic", ingest.ErrForged)
	}
	if err := s.verify(ctx, &m); err != nil {
		return "", err
	}
	switch m.Type {
	case "Notification":
		return m.Message, nil
	case "SubscriptionConfirmation":
		return "", s.confirm(ctx, m.SubscribeURL)
	case "UnsubscribeConfirmation":
		return "", nil // confirming it would subscribe again
	}
	return "", fmt.Errorf("%w: its type is %.40q", ingest.ErrMalformed, m.Type)
}

func (s *SNS) verify(ctx context.Context, m *snsMessage) error {
	sig, err := base64.StdEncoding.DecodeString(m.Signature)
	if err != nil {
		return ingest.ErrForged
	}
	key, err := s.key(ctx, m.SigningCertURL)
	if err != nil {
		return err
	}
	var hash crypto.Hash
	var digest []byte
	switch m.SignatureVersion {
	case "1":
		d := sha1.Sum([]byte(m.signed()))
		hash, digest = crypto.SHA1, d[:]
	case "2":
		d := sha256.Sum256([]byte(m.signed()))
		hash, digest = crypto.SHA256, d[:]
	default:
		return fmt.Errorf("%w: signature version %.10q", ingest.ErrForged, m.SignatureVersion)
	}
	if rsa.VerifyPKCS1v15(key, hash, digest, sig) != nil {
		return ingest.ErrForged
	}
	return nil
}

// amazons reads a URL that has to be of Amazon SNS.
func amazons(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.User != nil || u.Port() != "" || !snsHost.MatchString(u.Host) {
		return nil, fmt.Errorf("%w: a URL of it isn't Amazon SNS's", ingest.ErrForged)
	}
	return u, nil
}

// key is the public key of the certificate at a URL of Amazon's.
func (s *SNS) key(ctx context.Context, text string) (*rsa.PublicKey, error) {
	u, err := amazons(text)
	if err != nil {
		return nil, err
	}
	if !strings.HasSuffix(u.Path, ".pem") || u.RawQuery != "" {
		return nil, fmt.Errorf("%w: its certificate's URL is none", ingest.ErrForged)
	}
	name := u.String()
	s.mu.Lock()
	c, ok := s.certs[name]
	s.mu.Unlock()
	if ok && s.now().Sub(c.at) < certFor {
		return c.key, nil
	}
	raw, err := s.get(ctx, name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%w: its certificate can't be read", ingest.ErrForged)
	}
	x, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: its certificate can't be read", ingest.ErrForged)
	}
	key, isRSA := x.PublicKey.(*rsa.PublicKey)
	if now := s.now(); !isRSA || now.Before(x.NotBefore) || now.After(x.NotAfter) {
		return nil, fmt.Errorf("%w: its certificate is not valid now", ingest.ErrForged)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.certs) >= maxCerts {
		clear(s.certs)
	}
	s.certs[name] = cert{key, s.now()}
	return key, nil
}

func (s *SNS) confirm(ctx context.Context, text string) error {
	u, err := amazons(text)
	if err != nil {
		return err
	}
	_, err = s.get(ctx, u.String())
	return err
}

func (s *SNS) get(ctx context.Context, u string) ([]byte, error) {
	if !s.asks.TryAcquire(1) {
		return nil, errors.New("asking Amazon SNS: too many at once")
	}
	defer s.asks.Release(1)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking Amazon SNS: %w", err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxCert+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("asking Amazon SNS: %w", err)
	case resp.StatusCode != http.StatusOK || len(raw) > maxCert:
		return nil, fmt.Errorf("from Amazon SNS comes %s", resp.Status)
	}
	return raw, nil
}
