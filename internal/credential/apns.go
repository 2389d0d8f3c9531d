package credential

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
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
// ES256 by a p8 key. Key and TeamID are required.
//
// APNs judges tokens only. So what it says first of a token it says of the key,
// too: a new key proves itself by a token of its own, and one that is refused
// gives way to the last that worked.
type APNs struct {
	Key    *Credential // its value is the p8 file, or JSON; see CheckP8
	KeyID  string      // of a key that comes without one; ten characters
	TeamID string      // ten characters
	Now    func() time.Time

	mu   sync.Mutex
	last map[Secret]Material // the newest of each key
}

var _ Source = (*APNs)(nil)

func (a *APNs) follows() []*Credential { return []*Credential{a.Key} }

func (a *APNs) String() string { return "APNs key of team " + a.TeamID }

// Check says which field can't be right.
func (a *APNs) Check() error {
	if a.KeyID != "" && !isAppleID(a.KeyID) {
		return fmt.Errorf("key_id: %w", errAppleID)
	}
	if !isAppleID(a.TeamID) {
		return fmt.Errorf("team_id: %w", errAppleID)
	}
	return nil
}

var errAppleID = errors.New("want ten letters and digits")

func isAppleID(s string) bool {
	return len(s) == 10 && !strings.ContainsFunc(s, func(r rune) bool { return (r < 'A' || r > 'Z') && (r < '0' || r > '9') })
}

// Fetch signs a new token, unless the key's last is too young to be replaced.
func (a *APNs) Fetch(ctx context.Context) (Material, error) {
	use, err := a.Key.Use(ctx)
	if err != nil {
		return Material{}, err
	}
	key, id, err := parseP8(use.Value(), a.KeyID)
	if err != nil {
		return Material{}, err
	}
	now := clock(a.Now)()
	a.mu.Lock()
	defer a.mu.Unlock()
	if m, ok := a.last[Secret(use.Value())]; ok && now.Sub(m.Issued) < apnsLeast {
		m.Next, m.of = m.Issued.Add(apnsLeast), use
		return m, nil
	}
	value, err := SignES256(key, map[string]string{"kid": id}, struct {
		Iss string `json:"iss"`
		Iat int64  `json:"iat"`
	}{a.TeamID, now.Unix()})
	if err != nil {
		return Material{}, err
	}
	m := Material{
		Value: Secret(value), Label: "key " + id, Issued: now, Expires: now.Add(apnsLife),
		Next: now.Add(apnsNext - jitter(10*time.Minute)), of: use,
	}
	if a.last == nil {
		a.last = make(map[Secret]Material)
	}
	maps.DeleteFunc(a.last, func(_ Secret, m Material) bool { return now.Sub(m.Issued) >= apnsLeast })
	a.last[Secret(use.Value())] = m
	return m, nil
}

// CheckP8 is a Config.Check for the private keys that Apple gives as
// AuthKey_KEYID.p8: the file as it is, of id keyID, or, so that both change
// together, {"key_id": "KEYID", "key": "-----BEGIN PRIVATE KEY-----\n…"}.
func CheckP8(keyID string) func(value string) error {
	return func(value string) error {
		_, _, err := parseP8(value, keyID)
		return err
	}
}

func parseP8(value, keyID string) (key *ecdsa.PrivateKey, id string, err error) {
	if strings.HasPrefix(strings.TrimSpace(value), "{") {
		var f struct {
			KeyID string `json:"key_id"`
			Key   string `json:"key"`
		}
		// A decoder's error may quote its input, so it is not passed on.
		if json.Unmarshal([]byte(value), &f) != nil {
			return nil, "", errors.New("is not a JSON object with key_id and key")
		}
		value, keyID = f.Key, f.KeyID
	}
	if key, err = ParseES256Key([]byte(value)); err != nil {
		return nil, "", err
	}
	if !isAppleID(keyID) {
		return nil, "", fmt.Errorf("comes with no good key_id: %w", errAppleID)
	}
	return key, keyID, nil
}
