package webpush

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/stormpost/stormpost/internal/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func b64(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The example of RFC 8291, §5 and Appendix A.
func TestAppendixA(t *testing.T) {
	sender, err := ecdh.P256().NewPrivateKey(b64(t, "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"))
	if err != nil {
		t.Fatal(err)
	}
	to, err := readKeys(map[string]string{
		"p256dh": "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
		"auth":   "BTBZMqHH6r4Tts7J_aSIgg",
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := to.encrypt([]byte("When I grow up, I want to be a watermelon"), sender, b64(t, "DGv6ra1nlYgDCS1FRnbzlw"))
	want := "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
	if err != nil || base64.RawURLEncoding.EncodeToString(got) != want {
		t.Errorf("%s, %v", base64.RawURLEncoding.EncodeToString(got), err)
	}
}

// browser is a subscription whose keys the test has.
type browser struct {
	private *ecdh.PrivateKey
	secret  []byte
}

func newBrowser() *browser {
	private, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	b := &browser{private, make([]byte, secretSize)}
	_, _ = rand.Read(b.secret) // never fails
	return b
}

func (b *browser) keys() map[string]string {
	return map[string]string{
		"p256dh": base64.RawURLEncoding.EncodeToString(b.private.PublicKey().Bytes()),
		"auth":   base64.RawURLEncoding.EncodeToString(b.secret),
	}
}

// open is what a browser does with a body.
func (b *browser) open(body []byte) ([]byte, error) {
	if len(body) < headerSize+1+tagSize || len(body) > maxBody || binary.BigEndian.Uint32(body[saltSize:]) < uint32(len(body)-headerSize) || body[saltSize+4] != pointSize {
		return nil, errors.New("its header is wrong")
	}
	theirs, err := ecdh.P256().NewPublicKey(body[saltSize+5 : headerSize])
	if err != nil {
		return nil, err
	}
	shared, err := b.private.ECDH(theirs)
	if err != nil {
		return nil, err
	}
	key, nonce, err := deriveKeys(shared, b.secret, b.private.PublicKey().Bytes(), theirs.Bytes(), body[:saltSize])
	if err != nil {
		return nil, err
	}
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nonce, body[headerSize:], nil)
	if err != nil {
		return nil, err
	}
	plain, ok := bytes.CutSuffix(plain, []byte{2})
	if !ok {
		return nil, errors.New("its delimiter is wrong")
	}
	return plain, nil
}

func TestEncryptBounds(t *testing.T) {
	b := newBrowser()
	to, err := readKeys(b.keys())
	if err != nil {
		t.Fatal(err)
	}
	sender, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	salt := make([]byte, saltSize)
	for _, n := range []int{0, 1, MaxPayload} {
		body, err := to.encrypt(bytes.Repeat([]byte("x"), n), sender, salt)
		if err != nil || len(body) > maxBody {
			t.Fatalf("%d bytes become %d, %v", n, len(body), err)
		}
		if plain, err := b.open(body); err != nil || len(plain) != n {
			t.Errorf("%d bytes: %d, %v", n, len(plain), err)
		}
	}
	if _, err := to.encrypt(make([]byte, MaxPayload+1), sender, salt); err == nil {
		t.Error("a body of more than 4096 bytes")
	}
}

func TestCheck(t *testing.T) {
	good := func() *message.Push {
		return &message.Push{
			Platform: "webpush", To: message.Target{Endpoint: "https://push.example.net/x", Keys: newBrowser().keys()},
			Notification: &message.Notification{Title: "Hi"}, Data: map[string]string{"pad": ""},
		}
	}
	empty, err := encode(good(), message.ID{})
	if err != nil {
		t.Fatal(err)
	}
	pad := func(n int) func(*message.Push) {
		return func(p *message.Push) { p.Data["pad"] = strings.Repeat("x", MaxPayload-len(empty)+n) }
	}
	endpoint := func(s string) func(*message.Push) { return func(p *message.Push) { p.To.Endpoint = s } }
	for name, c := range map[string]struct {
		change func(*message.Push)
		field  string
	}{
		"good":             {func(*message.Push) {}, ""},
		"padded keys":      {func(p *message.Push) { p.To.Keys["auth"] += "==" }, ""},
		"the largest":      {pad(0), ""},
		"a byte more":      {pad(1), "data"},
		"all notification": {func(p *message.Push) { p.Data = nil; p.Notification.Body = strings.Repeat("x", 4000) }, "notification"},
		"http":             {endpoint("http://push.example.net/x"), "to.endpoint"},
		"user":             {endpoint("https://u:p@push.example.net/x"), "to.endpoint"},
		"localhost":        {endpoint("https://LocalHost./x"), "to.endpoint"},
		"loopback":         {endpoint("https://127.0.0.1/x"), "to.endpoint"},
		"mapped":           {endpoint("https://[::ffff:10.0.0.1]/x"), "to.endpoint"},
		"metadata":         {endpoint("https://169.254.169.254/latest"), "to.endpoint"},
		"public address":   {endpoint("https://8.8.8.8/x"), ""},
		"no point":         {func(p *message.Push) { p.To.Keys["p256dh"] = "BP" + strings.Repeat("A", 85) }, "to.keys"},
		"short auth":       {func(p *message.Push) { p.To.Keys["auth"] = "AAAA" }, "to.keys"},
		"no base64":        {func(p *message.Push) { p.To.Keys["auth"] = "+/+/" }, "to.keys"},
	} {
		p := good()
		c.change(p)
		err := Check(p, false)
		var fields message.FieldErrors
		if (c.field == "") != (err == nil) || err != nil && (!errors.As(err, &fields) || len(fields) != 1 || fields[0].Field != c.field) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := good()
	p.To.Endpoint = "https://127.0.0.1/x"
	if err := Check(p, true); err != nil {
		t.Errorf("a private address that is allowed: %v", err)
	}
}
