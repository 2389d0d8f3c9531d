package credential

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const maxVaultReply = 2 << 20

// vaultServer is HashiCorp Vault or OpenBao, as whoever Token is.
type vaultServer struct {
	url, namespace string
	token          *Credential
	client         *http.Client
	now            func() time.Time
}

// vaultError is an answer that is none.
type vaultError struct {
	status int
	what   string // for people
}

func (e *vaultError) Error() string {
	switch {
	case e.status == http.StatusNotFound && e.what == "":
		return "vault has no such secret, or its newest version was deleted"
	case e.what != "":
		return fmt.Sprintf("vault answered %d: %s", e.status, e.what)
	}
	return fmt.Sprintf("vault answered %d", e.status)
}

// final says whether asking the same again won't help: the request is refused,
// rather than the server broken or busy.
func (e *vaultError) final() bool {
	switch e.status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusPreconditionFailed: // the last: a replica that lags
		return false
	}
	return e.status >= 400 && e.status < 500
}

func clock(now func() time.Time) func() time.Time {
	if now == nil {
		return time.Now
	}
	return now
}

// vaultPath is the path of what is below those folders, escaped.
func vaultPath(folders ...string) (parts []string) {
	for _, p := range folders {
		for s := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
			parts = append(parts, url.PathEscape(s))
		}
	}
	return parts
}

// ask has a request answered, and says with which token it was: one that the
// server refuses gives way to the next that there is, once.
func (s vaultServer) ask(ctx context.Context, method string, path []string, in any) (body []byte, use Use, err error) {
	for try := 0; ; try++ {
		if use, err = s.token.Use(ctx); err != nil {
			return nil, use, err
		}
		body, err = s.as(ctx, use, method, path, in)
		var e *vaultError
		switch {
		case err == nil, errors.As(err, &e) && e.status == http.StatusNotFound:
			use.Accepted()
		case errors.As(err, &e) && (e.status == http.StatusForbidden || e.status == http.StatusUnauthorized):
			use.Rejected(err.Error())
			if try == 0 {
				continue
			}
		}
		return body, use, err
	}
}

// as is one request with one token. What it is refused says nothing of the token:
// it may lack the right.
func (s vaultServer) as(ctx context.Context, use Use, method string, path []string, in any) ([]byte, error) {
	base, err := url.Parse(s.url)
	if err != nil {
		return nil, errors.New("vault's URL can't be read")
	}
	if base.Path == "" {
		base.Path = "/"
	}
	var content io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, base.JoinPath(append([]string{"v1"}, path...)...).String(), content)
	if err != nil {
		return nil, errors.New("vault's URL can't be read")
	}
	token := use.Value()
	req.Header.Set("X-Vault-Token", token)
	req.Header.Set("X-Vault-Request", "true")
	if s.namespace != "" {
		req.Header.Set("X-Vault-Namespace", s.namespace)
	}
	resp, err := noRedirects(s.client).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxVaultReply))
	if err != nil {
		return nil, fmt.Errorf("read from vault: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return body, nil
	}
	var e struct {
		Errors []string `json:"errors"`
	}
	_ = json.Unmarshal(body, &e) // whatever it is, the status says enough
	return nil, &vaultError{resp.StatusCode, clean(strings.Join(e.Errors, ", "), token)}
}

// maxVaultLife bounds what a server says of a lease or a token, in seconds.
const maxVaultLife = 10 * 365 * 24 * 60 * 60

func vaultLife(seconds int64) time.Duration {
	return time.Duration(max(min(seconds, maxVaultLife), 0)) * time.Second
}

// tokenLife keeps a token alive that is renewable:
// https://developer.hashicorp.com/vault/api-docs/auth/token#renew-a-token-self,
// https://openbao.org/api-docs/auth/token/#renew-a-token-self. Tokens of the
// policy default may look themselves up and renew themselves.
type tokenLife struct {
	generation int           // of the token; 0: none was looked at
	life       time.Duration // the longest that it was seen to have
	expires    time.Time     // zero: never, or nobody knows
	due        time.Time     // when to renew; zero: it can't be
}

// ending says whether the token is in the last quarter of its life and won't be
// renewed by us, though perhaps by somebody else.
func (t *tokenLife) ending(now time.Time) bool {
	return t.due.IsZero() && !t.expires.IsZero() && t.expires.Sub(now) < t.life/4
}

// keep looks at a token that was not seen before, renews one whose time it is,
// and tells when it ends. What fails is not the secret's failure: the token is
// used to its end, ahead of which its own status warns.
func (t *tokenLife) keep(ctx context.Context, s vaultServer, use Use, asked time.Time) {
	defer func() { use.Ends(t.expires) }()
	if t.generation != use.Generation() {
		*t = tokenLife{} // what was known is of another one
	}
	if t.generation == 0 || t.ending(asked) {
		body, err := s.as(ctx, use, http.MethodGet, vaultPath("auth/token/lookup-self"), nil)
		var e *vaultError
		if err != nil && !(errors.As(err, &e) && e.final()) {
			return // the next time
		}
		t.generation = use.Generation()
		var answer struct {
			Data struct {
				TTL       int64 `json:"ttl"` // seconds; 0: it never ends
				Renewable bool  `json:"renewable"`
			} `json:"data"`
		}
		if err == nil && json.Unmarshal(body, &answer) == nil {
			t.note(asked, vaultLife(answer.Data.TTL), answer.Data.Renewable)
		}
	}
	if t.due.IsZero() || asked.Before(t.due) {
		return
	}
	body, err := s.as(ctx, use, http.MethodPost, vaultPath("auth/token/renew-self"), map[string]int64{"increment": int64(t.life / time.Second)})
	var e *vaultError
	var answer struct {
		Auth struct {
			LeaseDuration int64 `json:"lease_duration"` // seconds
			Renewable     bool  `json:"renewable"`
		} `json:"auth"`
	}
	switch {
	case errors.As(err, &e) && e.final():
		t.due = time.Time{}
	case err != nil || json.Unmarshal(body, &answer) != nil:
		t.due = asked.Add(jitter(max(min(t.expires.Sub(asked)/8, retryMax), retryMin)))
	default:
		t.note(asked, vaultLife(answer.Auth.LeaseDuration), answer.Auth.Renewable)
	}
}

// note takes what the server said of the token. One whose end comes nearer
// although it was renewed has reached its longest life.
func (t *tokenLife) note(asked time.Time, left time.Duration, renewable bool) {
	if left == 0 {
		t.expires, t.due = time.Time{}, time.Time{}
		return
	}
	t.life = max(t.life, left)
	t.expires, t.due = asked.Add(left), time.Time{}
	if renewable && left > t.life/2 {
		t.due = next(Material{Expires: t.expires}, asked)
	}
}
