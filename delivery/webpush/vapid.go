package webpush

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"errors"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
)

const (
	// tokenLife is how long a token is valid; RFC 8292 §2 allows a day.
	tokenLife = 12 * time.Hour
	// tokenUse is for how long it is used: a clock may be wrong by hours. It isn't
	// shorter, and a refusal makes no new token, since Apple wants none more often
	// than hourly ("Sending web push notifications in web apps and browsers",
	// https://developer.apple.com/documentation/usernotifications/sending-web-push-notifications-in-web-apps-and-browsers).
	tokenUse = time.Hour
	// maxTokens bounds those kept, one for each push service.
	maxTokens = 256
)

// parseVAPIDKey reads the application server's key: PEM, or the 32 bytes in
// base64url that Web Push tools print.
func parseVAPIDKey(text string) (*ecdsa.PrivateKey, error) {
	text = strings.TrimSpace(text)
	if text == "" || strings.HasPrefix(text, "-----") {
		return credential.ParseES256Key([]byte(text))
	}
	raw, err := decode(text)
	if err != nil || len(raw) != 32 {
		return nil, errors.New("is neither a PEM key nor 32 bytes in base64url")
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw)
	if err != nil {
		return nil, errors.New("is no private key of P-256")
	}
	return key, nil
}

// checkSubject wants whom a push service may write to (RFC 8292 §2.1).
func checkSubject(s string) string {
	u, err := url.Parse(s)
	switch {
	case s == "":
		return "is required: mailto:ADDRESS or an https link, where push services can reach you"
	case err == nil && u.Scheme == "mailto" && strings.Contains(u.Opaque, "@"):
		return ""
	case err == nil && u.Scheme == "https" && u.Host != "":
		return ""
	}
	return "want mailto:ADDRESS or an https link"
}

// vapid makes the Authorization header by which a push service knows us (RFC
// 8292). It is safe for concurrent use.
type vapid struct {
	key     *ecdsa.PrivateKey
	public  string // in base64url
	subject string
	now     func() time.Time

	mu     sync.Mutex
	tokens map[string]madeToken // by audience
}

type madeToken struct {
	header string
	until  time.Time
}

func newVAPID(key *ecdsa.PrivateKey, subject string, now func() time.Time) (*vapid, error) {
	public, err := publicKey(key)
	if err != nil {
		return nil, err
	}
	return &vapid{
		key: key, public: base64.RawURLEncoding.EncodeToString(public.Bytes()), subject: subject, now: now,
		tokens: make(map[string]madeToken),
	}, nil
}

func publicKey(key *ecdsa.PrivateKey) (*ecdh.PublicKey, error) { return key.PublicKey.ECDH() }

// authorization is the header for an audience, which is a push service's origin.
func (v *vapid) authorization(audience string) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.now()
	if t, ok := v.tokens[audience]; ok && now.Before(t.until) && t.until.Sub(now) <= tokenUse {
		return t.header, nil
	}
	token, err := credential.SignES256(v.key, map[string]string{"typ": "JWT"}, struct {
		Audience string `json:"aud"`
		Expires  int64  `json:"exp"`
		Subject  string `json:"sub"`
	}{audience, now.Add(tokenLife).Unix(), v.subject})
	if err != nil {
		return "", err
	}
	if len(v.tokens) >= maxTokens {
		clear(v.tokens) // they are quickly made again
	}
	t := madeToken{header: "vapid t=" + token + ", k=" + v.public, until: now.Add(tokenUse)}
	v.tokens[audience] = t
	return t.header, nil
}
