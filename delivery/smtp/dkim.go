package smtp

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/stormpost/stormpost/internal/mail"
)

// signed lists the fields to sign (RFC 6376 §5.4.1, RFC 8058 §4). A field that
// a message may have once stands twice: adding another breaks the signature.
var signed = []string{
	"From", "From", "To", "To", "Cc", "Cc", "Reply-To", "Reply-To", "Subject", "Subject", "Date", "Date",
	"Message-ID", "Message-ID", "MIME-Version", "Content-Type", "Content-Type", "Content-Transfer-Encoding",
	"List-Unsubscribe", "List-Unsubscribe-Post",
}

// check says what is wrong with which field; without one, nothing is.
func (k DKIMKey) check() (field, problem string) {
	switch {
	case k.Domain == "" || k.Domain != strings.ToLower(k.Domain) || !mail.IsASCII(k.Domain):
		return "domain", "want a name in lower-case ASCII"
	case k.Selector == "" || !isLocalName(k.Selector):
		return "selector", "want a name"
	case k.Key == nil:
		return "key", "is required"
	}
	switch pub := k.Key.Public().(type) {
	case *rsa.PublicKey:
		if pub.Size() < 1024/8 { // RFC 8301 §3.2
			return "key", "want 1,024 bits or more of RSA"
		}
	case ed25519.PublicKey:
	default:
		return "key", fmt.Sprintf("want RSA or Ed25519, not %T", pub)
	}
	return "", ""
}

// ParseDKIMKey reads a private key from PEM: PKCS #8 (RSA, Ed25519) or PKCS #1.
// The error never shows the key.
func ParseDKIMKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("not PEM")
	}
	if block.Type == "RSA PRIVATE KEY" {
		key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%T can't sign", key)
	}
	return signer, nil
}

// sign is the DKIM-Signature fields for msg by all of keys.
func sign(msg []byte, keys []DKIMKey) (string, error) {
	var all strings.Builder
	for _, k := range keys {
		s, err := dkim.NewSigner(&dkim.SignOptions{
			Domain: k.Domain, Selector: k.Selector, Signer: k.Key, Hash: crypto.SHA256,
			HeaderCanonicalization: dkim.CanonicalizationRelaxed,
			BodyCanonicalization:   dkim.CanonicalizationRelaxed,
			HeaderKeys:             signed,
		})
		if err != nil {
			return "", fmt.Errorf("sign as %s/%s: %w", k.Domain, k.Selector, err)
		}
		_, writeErr := s.Write(msg)
		if err := errors.Join(writeErr, s.Close()); err != nil {
			return "", fmt.Errorf("sign as %s/%s: %w", k.Domain, k.Selector, err)
		}
		all.WriteString(s.Signature())
	}
	return all.String(), nil
}
