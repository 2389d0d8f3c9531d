package credential

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// assertionLife is the longest that Google allows:
	// https://developers.google.com/identity/protocols/oauth2/service-account
	assertionLife = time.Hour
	// clockAhead is by how much our clock may be ahead of Google's.
	clockAhead = 30 * time.Second

	maxTokenReply = 64 << 10
	maxToken      = 8 << 10
	maxTokenLife  = 24 * time.Hour
)

// ExchangeError is a token endpoint's refusal (RFC 6749 §5.2).
type ExchangeError struct {
	Status      int       // HTTP
	Code        string    // such as "invalid_grant"; empty if the answer had none
	Description string    // for people, at most 200 bytes
	date        time.Time // by the endpoint's clock; zero: not told
}

// aboutUs says whether the endpoint refuses who asks, rather than asks for
// patience or is broken.
func (e *ExchangeError) aboutUs() bool {
	switch e.Code {
	case "invalid_grant", "invalid_client", "unauthorized_client":
		return true
	}
	return e.Status == http.StatusUnauthorized
}

func (e *ExchangeError) Error() string {
	s := fmt.Sprintf("token endpoint answered %d", e.Status)
	for _, more := range []string{e.Code, e.Description} {
		if more != "" {
			s += ": " + more
		}
	}
	return s
}

// exchange asks endpoint, whose clock is ahead by skew, for an access token of
// the account (RFC 7523 §2.1).
func (a *ServiceAccount) exchange(ctx context.Context, client *http.Client, endpoint, scope string, now time.Time, skew time.Duration) (Material, error) {
	assertion, err := a.assertion(scope, now.Add(skew))
	if err != nil {
		return Material{}, fmt.Errorf("sign assertion: %w", err)
	}
	form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {assertion}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return Material{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := client.Do(req)
	if err != nil {
		return Material{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenReply))
	if err != nil {
		return Material{}, fmt.Errorf("read token: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		e := refusal(resp.StatusCode, body, assertion)
		e.date, _ = http.ParseTime(resp.Header.Get("Date")) // zero if it can't be read
		return Material{}, e
	}
	return readToken(body, now)
}

// assertion is the signed JWT (RFC 7515, RS256) that stands for the account.
func (a *ServiceAccount) assertion(scope string, now time.Time) (string, error) {
	header, err := json.Marshal(struct {
		Alg string `json:"alg"`
		Typ string `json:"typ"`
		Kid string `json:"kid,omitempty"`
	}{"RS256", "JWT", a.keyID})
	if err != nil {
		return "", err
	}
	issued := now.Add(-clockAhead)
	claims, err := json.Marshal(struct {
		Iss   string `json:"iss"`
		Scope string `json:"scope"`
		Aud   string `json:"aud"`
		Iat   int64  `json:"iat"`
		Exp   int64  `json:"exp"`
	}{a.ClientEmail, scope, a.TokenURI, issued.Unix(), issued.Add(assertionLife).Unix()})
	if err != nil {
		return "", err
	}
	b64 := base64.RawURLEncoding
	signed := b64.EncodeToString(header) + "." + b64.EncodeToString(claims)
	digest := sha256.Sum256([]byte(signed))
	sig, err := rsa.SignPKCS1v15(nil, a.key, crypto.SHA256, digest[:])
	if err != nil {
		return "", err
	}
	return signed + "." + b64.EncodeToString(sig), nil
}

// readToken reads RFC 6749 §5.1. The token's life counts from before it was
// asked for.
func readToken(body []byte, asked time.Time) (Material, error) {
	var t struct {
		AccessToken string  `json:"access_token"`
		TokenType   string  `json:"token_type"`
		ExpiresIn   float64 `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &t); err != nil {
		return Material{}, errors.New("token endpoint's answer is not JSON")
	}
	if t.ExpiresIn < 1 {
		return Material{}, errors.New("token endpoint's expires_in is missing or under a second")
	}
	return newToken(t.AccessToken, t.TokenType, t.ExpiresIn, asked)
}

// newToken checks what a token endpoint gave. Without seconds, nobody knows when
// it ends.
func newToken(value, kind string, seconds float64, asked time.Time) (Material, error) {
	switch {
	case checkBearer(value) != nil:
		return Material{}, errors.New("token endpoint's access_token can't be used as one")
	case !strings.EqualFold(kind, "Bearer"):
		return Material{}, errors.New("token endpoint's token_type is not Bearer")
	}
	m := Material{Value: Secret(value), Issued: asked}
	if seconds > 0 {
		life := maxTokenLife
		if seconds < maxTokenLife.Seconds() {
			life = time.Duration(seconds * float64(time.Second))
		}
		m.Expires = asked.Add(life)
	}
	return m, nil
}

// checkBearer says whether value can stand in an Authorization header.
func checkBearer(value string) error {
	if value == "" || len(value) > maxToken || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("is no bearer token")
	}
	return nil
}

// refusal makes an error of an answer that is not 200. Some servers repeat the
// assertion in it.
func refusal(status int, body []byte, assertion string) *ExchangeError {
	var e struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	_ = json.Unmarshal(body, &e) // whatever it is, the status says enough
	return &ExchangeError{Status: status, Code: clean(e.Error, assertion), Description: clean(e.Description, assertion)}
}
