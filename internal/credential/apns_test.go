package credential

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func p256(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// verifyAPNs checks a provider token as Apple does, and says when it was issued.
func verifyAPNs(t *testing.T, token string, key *ecdsa.PublicKey) time.Time {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	var header struct{ Alg, Kid string }
	var claims struct {
		Iss string
		Iat int64
	}
	for i, v := range []any{&header, &claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil || json.Unmarshal(b, v) != nil {
			t.Fatalf("part %d: %v", i, err)
		}
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(sig) != 64 {
		t.Fatalf("signature of %d bytes: %v", len(sig), err)
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		t.Error("the signature is wrong")
	}
	if header.Alg != "ES256" || header.Kid != "ABCDE12345" || claims.Iss != "TEAM567890" {
		t.Errorf("%+v %+v", header, claims)
	}
	return time.Unix(claims.Iat, 0)
}

func TestAPNsTokens(t *testing.T) {
	one, two := p256(t), p256(t)
	keys := &file{}
	keys.m = Material{Value: Secret(pkcs8(t, one))}
	other := pkcs8(t, two)
	synctest.Test(t, func(t *testing.T) {
		key := New(Config{Name: "key", Source: keys, Check: CheckP8})
		token := New(Config{Name: "apns", Source: &APNs{Key: key, KeyID: "ABCDE12345", TeamID: "TEAM567890"}})
		defer key.Close()
		defer token.Close()
		seen := map[string]time.Time{}
		last, begun := "", time.Now()
		for time.Since(begun) < 24*time.Hour {
			u, err := token.Use(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			u.Accepted()
			if u.Value() != last {
				issued := verifyAPNs(t, u.Value(), &one.PublicKey)
				if before, ok := seen[last]; ok {
					if age := issued.Sub(before); age < apnsLeast || age > 45*time.Minute {
						t.Errorf("replaced after %v, want 20 to 45 minutes", age)
					}
				}
				last, seen[u.Value()] = u.Value(), issued
			}
			time.Sleep(time.Minute)
		}
		// Refused, it is replaced as soon as Apple allows.
		u, err := token.Use(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		age := time.Since(verifyAPNs(t, u.Value(), &one.PublicKey))
		u.Rejected("403 ExpiredProviderToken")
		if again, err := token.Use(t.Context()); err == nil && again.Value() == u.Value() && age < apnsLeast {
			t.Error("the refused one again, at once")
		}
		// A new key signs at once.
		keys.put(Material{Value: Secret(other)})
		time.Sleep(3 * time.Second)
		u, err = token.Use(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		verifyAPNs(t, u.Value(), &two.PublicKey)
	})
}

func TestP8Refused(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"nothing": "", "no PEM": "CANARY", "another curve": pkcs8(t, p384), "RSA": pkcs8(t, testKey()),
		"broken": "-----BEGIN PRIVATE KEY-----\nQ0FOQVJZ\n-----END PRIVATE KEY-----\n",
	} {
		if err := CheckP8(text); err == nil || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := CheckP8(pkcs8(t, p256(t))); err != nil {
		t.Error(err)
	}
	for _, a := range []*APNs{{KeyID: "short", TeamID: "TEAM567890"}, {KeyID: "ABCDE12345", TeamID: "team567890"}} {
		if err := a.Check(); err == nil {
			t.Errorf("%+v is taken", a)
		}
	}
}
