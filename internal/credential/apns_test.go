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
		key := New(Config{Name: "key", Source: keys, Check: CheckP8("ABCDE12345")})
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

// apple takes the tokens of some keys, by their ids.
type apple map[string]*ecdsa.PublicKey

// takes says whether it takes token, and who signed it.
func (a apple) takes(t *testing.T, token string) (kid string, ok bool) {
	t.Helper()
	parts := strings.Split(token, ".")
	var header struct{ Kid string }
	b, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil || json.Unmarshal(b, &header) != nil {
		t.Fatalf("token %s", token)
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(sig) != 64 {
		t.Fatalf("token %s", token)
	}
	key, digest := a[header.Kid], sha256.Sum256([]byte(parts[0]+"."+parts[1]))
	return header.Kid, key != nil && ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
}

func p8JSON(t *testing.T, id string, key *ecdsa.PrivateKey) Secret {
	t.Helper()
	b, err := json.Marshal(map[string]string{"key_id": id, "key": pkcs8(t, key)})
	if err != nil {
		t.Fatal(err)
	}
	return Secret(b)
}

// A p8 that APNs refuses takes no working one's place, however long it lies there;
// one that it takes does at once, together with its id, and that one's successor, too.
func TestP8IsReplaced(t *testing.T) {
	first, bad, next := p256(t), p256(t), p256(t)
	takes := apple{"ABCDE12345": &first.PublicKey, "NEXT567890": &next.PublicKey}
	keys := &file{}
	keys.put(Material{Value: Secret(pkcs8(t, first))})
	synctest.Test(t, func(t *testing.T) {
		key := New(Config{Name: "key", Source: keys, Check: CheckP8("ABCDE12345")})
		token := New(Config{Name: "apns", Source: &APNs{Key: key, KeyID: "ABCDE12345", TeamID: "TEAM567890"}})
		defer key.Close()
		defer token.Close()
		refused := 0
		issued := map[string]time.Time{} // by token
		// send is a hand-over, with its one retry.
		send := func() string {
			t.Helper()
			for range 2 {
				u, err := token.Use(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				kid, ok := takes.takes(t, u.Value())
				if ok {
					u.Accepted()
					if _, known := issued[kid+u.Value()]; !known {
						for other, at := range issued {
							if strings.HasPrefix(other, kid) && time.Since(at) < apnsLeast {
								t.Errorf("two tokens of %s within %v", kid, time.Since(at))
							}
						}
						issued[kid+u.Value()] = time.Now()
					}
					return kid
				}
				u.Rejected("403 InvalidProviderToken")
				refused++
			}
			return ""
		}
		during := func(d time.Duration, kid string) {
			t.Helper()
			for begun := time.Now(); time.Since(begun) < d; time.Sleep(10 * time.Second) {
				if got := send(); got != kid {
					t.Fatalf("sent by key %q, want %s: %+v", got, kid, token.Status())
				}
			}
		}
		for _, after := range []time.Duration{10 * time.Minute, 30 * time.Minute} {
			during(after, "ABCDE12345")
			keys.put(Material{Value: Secret(pkcs8(t, bad))}) // with the first one's id
			time.Sleep(2 * time.Second)
			during(5*time.Hour, "ABCDE12345")
			mustBe(t, key, FellBack, "InvalidProviderToken")
			keys.put(Material{Value: p8JSON(t, "BAD4567890", bad)})
			time.Sleep(2 * time.Second)
			during(5*time.Hour, "ABCDE12345")
			mustBe(t, key, FellBack, "InvalidProviderToken")
			keys.put(Material{Value: Secret(pkcs8(t, first))})
			time.Sleep(2 * time.Second)
		}
		if refused == 0 || refused > 200 {
			t.Errorf("%d refused tokens in 20 hours", refused)
		}
		keys.put(Material{Value: p8JSON(t, "NEXT567890", next)})
		time.Sleep(2 * time.Second)
		during(time.Hour, "NEXT567890")
		mustBe(t, key, Working, "")
		mustBe(t, token, Working, "")
		// Taken back in the middle of a token's life, it gives way as well: to the one
		// before, as soon as a token of its own was refused.
		delete(takes, "NEXT567890")
		send()
		during(time.Hour, "ABCDE12345")
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
		if err := CheckP8("ABCDE12345")(text); err == nil || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := CheckP8("ABCDE12345")(pkcs8(t, p256(t))); err != nil {
		t.Error(err)
	}
	for name, text := range map[string]string{
		"no JSON": `{"key_id":"CANARY`, "no key": `{"key_id":"ABCDE12345"}`, "no id": string(p8JSON(t, "", p256(t))), "a short id": string(p8JSON(t, "CANARY", p256(t))),
	} {
		if err := CheckP8("ABCDE12345")(text); err == nil || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := CheckP8("")(pkcs8(t, p256(t))); err == nil || !strings.Contains(err.Error(), "key_id") {
		t.Errorf("without an id: %v", err)
	}
	if err := CheckP8("")(string(p8JSON(t, "ABCDE12345", p256(t)))); err != nil {
		t.Error(err)
	}
	if err := (&APNs{TeamID: "TEAM567890"}).Check(); err != nil {
		t.Error(err)
	}
	for _, a := range []*APNs{{KeyID: "short", TeamID: "TEAM567890"}, {KeyID: "ABCDE12345", TeamID: "team567890"}} {
		if err := a.Check(); err == nil {
			t.Errorf("%+v is taken", a)
		}
	}
}
