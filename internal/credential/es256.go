package credential

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
)

// ParseES256Key reads a private key on P-256 in PEM: PKCS #8, as Apple's .p8
// files are, or SEC 1. Its errors show nothing of the key.
func ParseES256Key(text []byte) (*ecdsa.PrivateKey, error) {
	if len(text) == 0 {
		return nil, errors.New("is required")
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("is not PEM")
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, errors.New("is not a PKCS #8 or SEC 1 private key")
		}
		var ok bool
		if key, ok = any.(*ecdsa.PrivateKey); !ok {
			return nil, fmt.Errorf("is a %T, want an ECDSA key", any)
		}
	}
	if key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("is on %s, want P-256", key.Curve.Params().Name)
	}
	return key, nil
}

// SignES256 makes a JWT (RFC 7519) in the compact form, signed ES256 (RFC 7518
// §3.4). The header gets alg.
func SignES256(key *ecdsa.PrivateKey, header map[string]string, claims any) (string, error) {
	h := map[string]string{"alg": "ES256"}
	for name, value := range header {
		h[name] = value
	}
	head, err := json.Marshal(h)
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	text := base64.RawURLEncoding.EncodeToString(head) + "." + base64.RawURLEncoding.EncodeToString(body)
	digest := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return "", err
	}
	// Both numbers at their full length, not DER.
	var signature [64]byte
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(signature[:]), nil
}
