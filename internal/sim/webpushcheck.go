package sim

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	webPushMaxBody   = 4096 // RFC 8030 §7.2: what a service must take
	webPushTokenLife = 24 * time.Hour
)

// webPushErrors name the documented answers.
var webPushErrors = map[string]int{
	"bad_request": 400, "unauthorized": 401, "forbidden": 403, "not_found": 404, "gone": 410, "too_large": 413, "too_many": 429, "unavailable": 503,
}

var webPushTopic = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

// checkWebPush wants the headers of RFC 8030 §5 and RFC 8291 §4.
func checkWebPush(r *http.Request) error {
	if ttl, err := strconv.ParseInt(r.Header.Get("TTL"), 10, 32); err != nil || ttl < 0 {
		return errors.New("TTL: want seconds")
	}
	if u := r.Header.Get("Urgency"); !slices.Contains([]string{"", "very-low", "low", "normal", "high"}, u) {
		return errors.New("want Urgency very-low, low, normal or high")
	}
	if topics := r.Header.Values("Topic"); len(topics) > 1 || len(topics) == 1 && !webPushTopic.MatchString(topics[0]) {
		return errors.New("Topic: want up to 32 characters of base64url")
	}
	if r.Header.Get("Content-Encoding") != "aes128gcm" {
		return errors.New("Content-Encoding: want aes128gcm")
	}
	return nil
}

// authorize checks a VAPID header (RFC 8292 §3), and answers with whom it names.
func (s *WebPushServer) authorize(r *http.Request) (subject string, err error) {
	params, ok := strings.CutPrefix(r.Header.Get("Authorization"), "vapid ")
	if !ok {
		return "", errors.New("want Authorization vapid")
	}
	var token, key string
	for _, p := range strings.Split(params, ",") {
		switch name, value, _ := strings.Cut(strings.TrimSpace(p), "="); name {
		case "t":
			token = value
		case "k":
			key = value
		}
	}
	point, err := base64.RawURLEncoding.DecodeString(key)
	if err != nil {
		return "", errors.New("k: want base64url")
	}
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return "", errors.New("k: want an uncompressed point of P-256")
	}
	var header struct{ Typ string }
	var claims struct {
		Aud, Sub string
		Exp      int64
	}
	if err := verifyES256(token, public, &header, &claims); err != nil {
		return "", fmt.Errorf("t: %w", err)
	}
	left := time.Unix(claims.Exp, 0).Sub(s.o.Clock())
	switch {
	case claims.Aud != s.URL():
		return "", errors.New("aud: want " + s.URL())
	case left <= 0 || left > webPushTokenLife:
		return "", errors.New("exp: want at most a day, and not past")
	case !strings.HasPrefix(claims.Sub, "mailto:") && !strings.HasPrefix(claims.Sub, "https://"):
		return "", errors.New("sub: want a mailto or https URI")
	}
	return claims.Sub, nil
}

// simBrowser is one browser's keys.
type simBrowser struct {
	private *ecdh.PrivateKey
	auth    []byte
}

// browser makes the keys of the browser of that name.
func (s *WebPushServer) browser(name string) simBrowser {
	for try := 0; ; try++ {
		b, err := hkdf.Key(sha256.New, s.seed, nil, fmt.Sprintf("%d %s", try, name), 48)
		if err != nil {
			panic(err) // 48 bytes can be had
		}
		if private, err := ecdh.P256().NewPrivateKey(b[:32]); err == nil {
			return simBrowser{private, b[32:]}
		}
	}
}

func (b simBrowser) subscription(endpoint string) Subscription {
	return Subscription{Endpoint: endpoint, Keys: map[string]string{
		"p256dh": base64.RawURLEncoding.EncodeToString(b.private.PublicKey().Bytes()),
		"auth":   base64.RawURLEncoding.EncodeToString(b.auth),
	}}
}

// decrypt is RFC 8291 §3.4 and RFC 8188 §2, from the receiver's side, for one
// record.
func (b simBrowser) decrypt(body []byte) ([]byte, error) {
	if len(body) < 21 || len(body) < 21+int(body[20]) {
		return nil, errors.New("the header is cut off")
	}
	salt, size, id := body[:16], binary.BigEndian.Uint32(body[16:]), body[21:21+int(body[20])]
	record := body[21+len(id):]
	if size < 18 || len(record) > int(size) {
		return nil, fmt.Errorf("a record of %d bytes: want one, of at most %d", len(record), size)
	}
	sender, err := ecdh.P256().NewPublicKey(id)
	if err != nil {
		return nil, errors.New("the key id is no point of P-256")
	}
	secret, err := b.private.ECDH(sender)
	if err != nil {
		return nil, err
	}
	info := append(append([]byte("WebPush: info\x00"), b.private.PublicKey().Bytes()...), id...)
	ikm, err1 := hkdf.Key(sha256.New, secret, b.auth, string(info), 32)
	key, err2 := hkdf.Key(sha256.New, ikm, salt, "Content-Encoding: aes128gcm\x00", 16)
	nonce, err3 := hkdf.Key(sha256.New, ikm, salt, "Content-Encoding: nonce\x00", 12)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nonce, record, nil)
	if err != nil {
		return nil, err
	}
	// Behind the last record's text come a 2 and any number of zeroes.
	end := len(plain) - 1
	for end >= 0 && plain[end] == 0 {
		end--
	}
	if end < 0 || plain[end] != 2 {
		return nil, errors.New("no delimiter of a last record")
	}
	return plain[:end], nil
}

// show fills in what the browser reads: t.Raw is the decrypted text. What can't
// be decrypted, a push service takes all the same.
func (s *WebPushServer) show(t *Taken, name string, body []byte) {
	t.Size = len(body)
	plain, err := s.browser(name).decrypt(body)
	if err != nil {
		t.Subject, t.Raw = "(can't be decrypted: "+err.Error()+")", body
		return
	}
	t.Raw = plain
	var p struct {
		Notification struct{ Title string }
		Data         map[string]string
	}
	if json.Unmarshal(plain, &p) != nil {
		return
	}
	t.Subject = shorten(p.Notification.Title)
	if id := p.Data["stormpost_id"]; id != "" {
		t.MessageID = id
	}
}
