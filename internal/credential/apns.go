package credential

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"sync"
	"time"
)

// Apple refuses provider tokens older than an hour, and ones that change more
// often than every 20 minutes:
// https://developer.apple.com/documentation/usernotifications/establishing-a-token-based-connection-to-apns
const (
	apnsLife  = time.Hour
	apnsLeast = 20 * time.Minute
	apnsNext  = 45 * time.Minute // of which 5 to 10 are taken off at random
)

// APNs is a Source of provider tokens for Apple's push service: JWTs signed
// ES256 by a p8 key. All fields but Now are required.
type APNs struct {
	Key           *Credential // its value is the p8 file
	KeyID, TeamID string      // ten characters each
	Now           func() time.Time

	mu   sync.Mutex
	last Material
	of   int // generation of Key that made last
}

var _ Source = (*APNs)(nil)

func (a *APNs) follows() []*Credential { return []*Credential{a.Key} }

func (a *APNs) String() string { return "APNs key " + a.KeyID }

// Check says which field can't be right.
func (a *APNs) Check() error {
	for _, f := range []struct{ name, value string }{{"key_id", a.KeyID}, {"team_id", a.TeamID}} {
		if len(f.value) != 10 {
			return fmt.Errorf("%s: want ten letters and digits", f.name)
		}
		for _, r := range f.value {
			if (r < 'A' || r > 'Z') && (r < '0' || r > '9') {
				return fmt.Errorf("%s: want ten letters and digits", f.name)
			}
		}
	}
	return nil
}

// Fetch signs a new token, unless the last is too young to be replaced.
func (a *APNs) Fetch(ctx context.Context) (Material, error) {
	use, err := a.Key.Use(ctx)
	if err != nil {
		return Material{}, err
	}
	key, err := ParseES256Key([]byte(use.Value()))
	if err != nil {
		return Material{}, err
	}
	use.Accepted() // it signs, and APNs judges tokens only
	now := time.Now()
	if a.Now != nil {
		now = a.Now()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last.Value != "" && a.of == use.Generation() && now.Sub(a.last.Issued) < apnsLeast {
		m := a.last
		m.Next = m.Issued.Add(apnsLeast)
		return m, nil
	}
	value, err := a.sign(key, now)
	if err != nil {
		return Material{}, err
	}
	a.of = use.Generation()
	a.last = Material{
		Value: Secret(value), Label: "key " + a.KeyID, Issued: now, Expires: now.Add(apnsLife),
		Next: now.Add(apnsNext - jitter(10*time.Minute)),
	}
	return a.last, nil
}

func (a *APNs) sign(key *ecdsa.PrivateKey, now time.Time) (string, error) {
	return SignES256(key, map[string]string{"kid": a.KeyID}, struct {
		Iss string `json:"iss"`
		Iat int64  `json:"iat"`
	}{a.TeamID, now.Unix()})
}

// CheckP8 is a Config.Check for the private keys that Apple gives as
// AuthKey_KEYID.p8.
func CheckP8(value string) error {
	_, err := ParseES256Key([]byte(value))
	return err
}
