package credential

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// JWTBearer is a Source of access tokens for a Google service account, by JWT
// bearer (RFC 7523). Key and Scope are required.
type JWTBearer struct {
	Key    *Credential // its value is the account's JSON key file
	Scope  string
	URL    string       // of the token endpoint; default: the key file's token_uri
	Client *http.Client // it follows no redirects, whatever its own policy
	Now    func() time.Time

	mu   sync.Mutex
	skew time.Duration // by which the endpoint's clock is ahead of ours
}

var _ Source = (*JWTBearer)(nil)

func (j *JWTBearer) follows() []*Credential { return []*Credential{j.Key} }

func (j *JWTBearer) String() string { return "service account " + j.Key.Name() }

func (j *JWTBearer) identity() string { return fmt.Sprintf("%q %q %q", j.Key.Name(), j.Scope, j.URL) }

// Fetch exchanges an assertion for a token. A key that the endpoint refuses
// gives way to the next that Key has, once.
func (j *JWTBearer) Fetch(ctx context.Context) (Material, error) {
	m, refused, err := j.once(ctx)
	if refused {
		m, _, err = j.once(ctx)
	}
	return m, err
}

func (j *JWTBearer) once(ctx context.Context) (m Material, refused bool, err error) {
	use, err := j.Key.Use(ctx)
	if err != nil {
		return Material{}, false, err
	}
	account, err := ParseServiceAccount([]byte(use.Value()))
	if err != nil {
		return Material{}, false, err
	}
	m, err = j.exchange(ctx, account)
	var e *ExchangeError
	switch {
	case err == nil:
		use.Accepted()
		m.Label = account.keyID
	case errors.As(err, &e) && e.aboutUs():
		use.Rejected(e.Error())
		return m, true, err
	}
	return m, false, err
}

// exchange tries again with the endpoint's own clock, if that may be why it
// refused: an assertion from the future, or long ago, is no good.
func (j *JWTBearer) exchange(ctx context.Context, a *ServiceAccount) (Material, error) {
	now := time.Now
	if j.Now != nil {
		now = j.Now
	}
	url, client := cmp.Or(j.URL, a.TokenURI), noRedirects(j.Client)
	j.mu.Lock()
	defer j.mu.Unlock()
	m, err := a.exchange(ctx, client, url, j.Scope, now(), j.skew)
	var e *ExchangeError
	if !errors.As(err, &e) || !e.aboutUs() || e.date.IsZero() {
		return m, err
	}
	skew := e.date.Sub(now())
	if (skew - j.skew).Abs() < minSkew {
		return m, err
	}
	j.skew = skew
	return a.exchange(ctx, client, url, j.Scope, now(), j.skew)
}

// minSkew is the difference of two clocks below which it is no reason for
// anything: an HTTP date has whole seconds, and assertions a margin.
const minSkew = 10 * time.Second
