package apns

import (
	"crypto/ecdsa"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
)

// Apple wants provider tokens to be renewed no more than once in 20 minutes, and
// no less than once in 60:
// https://developer.apple.com/documentation/usernotifications/establishing-a-token-based-connection-to-apns
const (
	minTokenAge = 20 * time.Minute
	renewAfter  = 40 * time.Minute
	renewJitter = 10 * time.Minute // many processes that started together should not renew together
)

var errTooYoung = errors.New("the provider token is refused and too young to be renewed: check key, key_id and team_id")

// tokens makes provider tokens of a key. It is safe for concurrent use.
type tokens struct {
	key       *ecdsa.PrivateKey
	keyID     string
	teamID    string
	now       func() time.Time
	spread    time.Duration // of the current token's end
	mu        sync.Mutex
	current   string
	made      time.Time
	withdrawn bool // refused when it was too young
}

// get is a token that is young enough.
func (t *tokens) get() (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	old := age(t.made, now)
	switch {
	case t.current != "" && t.withdrawn && old < minTokenAge:
		return "", errTooYoung
	case t.current != "" && !t.withdrawn && old < renewAfter+t.spread:
		return t.current, nil
	}
	token, err := credential.SignES256(t.key, map[string]string{"kid": t.keyID}, struct {
		Issuer string `json:"iss"`
		At     int64  `json:"iat"`
	}{t.teamID, now.Unix()})
	if err != nil {
		return "", err
	}
	t.current, t.made, t.withdrawn = token, now, false
	t.spread = rand.N(renewJitter)
	return token, nil
}

// reject tells that APNs refused value. It is not handed out again, and there is
// a new one as soon as Apple allows it.
func (t *tokens) reject(value string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if value == t.current {
		t.withdrawn = true
	}
}

// age is by whichever of the monotonic and the wall clock says more: the one
// stands still while the machine sleeps, the other can be set back.
func age(from, to time.Time) time.Duration {
	return max(to.Sub(from), to.Round(0).Sub(from.Round(0)))
}
