package webpush

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

const (
	saltSize   = 16
	secretSize = 16 // the subscription's auth
	pointSize  = 65 // an uncompressed point of P-256
	keySize    = 16 // AEAD_AES_128_GCM's
	nonceSize  = 12
	tagSize    = 16
	// headerSize is salt, record size, and the sender's public key as key id
	// (RFC 8188 §2.1, RFC 8291 §4).
	headerSize = saltSize + 4 + 1 + pointSize
	// recordSize is what the header says. There is one record only, and shorter.
	recordSize = 4096
	// maxBody is what every push service must take (RFC 8030 §7.2), and many
	// take no more.
	maxBody = 4096
	// MaxPayload is what fits into maxBody, in bytes before encryption: beside
	// the header there is a delimiter and the tag.
	MaxPayload = maxBody - headerSize - 1 - tagSize
)

// receiver is whom a message is encrypted for: the keys of a subscription.
type receiver struct {
	public *ecdh.PublicKey
	secret []byte
}

// readKeys reads the subscription's p256dh and auth.
func readKeys(keys map[string]string) (receiver, error) {
	point, err1 := decode(keys["p256dh"])
	secret, err2 := decode(keys["auth"])
	if err := errors.Join(err1, err2); err != nil {
		return receiver{}, errors.New("its keys are not base64url")
	}
	if len(secret) != secretSize {
		return receiver{}, fmt.Errorf("its auth has %d bytes, want %d", len(secret), secretSize)
	}
	public, err := ecdh.P256().NewPublicKey(point)
	if err != nil {
		return receiver{}, errors.New("its p256dh is no point of P-256")
	}
	return receiver{public, secret}, nil
}

// decode reads base64url with or without padding, as browsers and libraries
// give both.
func decode(s string) ([]byte, error) {
	return base64.RawURLEncoding.DecodeString(strings.TrimRight(s, "="))
}

// encrypt makes the body of a push message (RFC 8291 §3.4 and §4): one record of
// aes128gcm (RFC 8188 §2). sender is a key for this message alone; salt is 16
// random bytes.
func (to receiver) encrypt(plain []byte, sender *ecdh.PrivateKey, salt []byte) ([]byte, error) {
	if len(plain) > MaxPayload {
		return nil, fmt.Errorf("payload has %d bytes, want at most %d", len(plain), MaxPayload)
	}
	shared, err := sender.ECDH(to.public)
	if err != nil {
		return nil, err
	}
	mine := sender.PublicKey().Bytes()
	key, nonce, err := deriveKeys(shared, to.secret, to.public.Bytes(), mine, salt)
	if err != nil {
		return nil, err
	}
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	body := make([]byte, 0, headerSize+len(plain)+1+tagSize)
	body = append(body, salt...)
	body = binary.BigEndian.AppendUint32(body, recordSize)
	body = append(body, pointSize)
	body = append(body, mine...)
	// Delimiter 2 marks the last record (RFC 8188 §2); nothing is padded.
	record := append(append(make([]byte, 0, len(plain)+1), plain...), 2)
	return aead.Seal(body, nonce, record, nil), nil
}

// deriveKeys follows RFC 8291 §3.4: the subscription's secret goes into the key,
// and so do both public keys.
func deriveKeys(shared, secret, theirs, mine, salt []byte) (key, nonce []byte, err error) {
	info := "WebPush: info\x00" + string(theirs) + string(mine)
	input, err := hkdf.Key(sha256.New, shared, secret, info, sha256.Size)
	if err != nil {
		return nil, nil, err
	}
	random, err := hkdf.Extract(sha256.New, input, salt)
	if err != nil {
		return nil, nil, err
	}
	if key, err = hkdf.Expand(sha256.New, random, "Content-Encoding: aes128gcm\x00", keySize); err != nil {
		return nil, nil, err
	}
	nonce, err = hkdf.Expand(sha256.New, random, "Content-Encoding: nonce\x00", nonceSize)
	return key, nonce, err
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
