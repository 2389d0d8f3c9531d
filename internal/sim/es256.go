package sim

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// verifyES256 checks a JWT (RFC 7519) in the compact form by key, and reads its
// header and claims.
func verifyES256(token string, key *ecdsa.PublicKey, header, claims any) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return errors.New("not a JWT of three parts")
	}
	var alg struct{ Alg string }
	if err := errors.Join(decodePart(parts[0], &alg), decodePart(parts[0], header)); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	if alg.Alg != "ES256" {
		return errors.New("header: want ES256")
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(sig) != 64 { // RFC 7518 §3.4
		return errors.New("signature: want 64 bytes")
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		return errors.New("invalid JWT signature")
	}
	if err := decodePart(parts[1], claims); err != nil {
		return fmt.Errorf("claims: %w", err)
	}
	return nil
}

// newES256Key makes a key, and its file in PKCS #8.
func newES256Key() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// NewES256Key makes a private key of P-256 in PEM, as a provider's is configured.
func NewES256Key() ([]byte, error) {
	_, file, err := newES256Key()
	return file, err
}
