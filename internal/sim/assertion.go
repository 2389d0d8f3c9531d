package sim

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

var errScope = errors.New("scope: want " + FCMScope)

const (
	assertionMaxLife = time.Hour        // as Google has it
	assertionSkew    = 10 * time.Second // that the clocks may differ by
)

// verify checks an assertion: a JWT (RFC 7519) in the compact form, signed
// RS256 (RFC 7518 §3.3) by the service account for this endpoint (RFC 7523 §3).
func (s *TokenServer) verify(assertion string) error {
	parts := strings.Split(assertion, ".")
	if len(parts) != 3 {
		return errors.New("not a JWT of three parts")
	}
	var header struct{ Alg, Typ, Kid string }
	var claims struct {
		Iss, Scope, Aud string
		Iat, Exp        int64
	}
	if err := decodePart(parts[0], &header); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	if header.Alg != "RS256" || header.Kid != "" && header.Kid != s.keyID {
		return errors.New("header: want RS256 and the account's key id")
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return fmt.Errorf("signature: %w", err)
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPKCS1v15(&s.key.PublicKey, crypto.SHA256, digest[:], signature); err != nil {
		return errors.New("invalid JWT signature")
	}
	if err := decodePart(parts[1], &claims); err != nil {
		return fmt.Errorf("claims: %w", err)
	}
	now, iat, exp := s.o.Clock(), time.Unix(claims.Iat, 0), time.Unix(claims.Exp, 0)
	switch {
	case claims.Iss != s.email:
		return errors.New("iss: no such account")
	case claims.Aud != s.TokenURL():
		return errors.New("aud: want " + s.TokenURL())
	case iat.After(now.Add(assertionSkew)), !exp.After(now.Add(-assertionSkew)), exp.Sub(iat) > assertionMaxLife+assertionSkew:
		return errors.New("iat, exp: want at most an hour, and now within it")
	case !slices.Contains(strings.Fields(claims.Scope), FCMScope):
		return errScope
	}
	return nil
}

func decodePart(part string, v any) error {
	b, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
