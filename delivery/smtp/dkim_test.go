package smtp

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/stormpost/stormpost/internal/message"
)

// record is the DNS record of a key.
func record(t *testing.T, k crypto.Signer) string {
	t.Helper()
	switch pub := k.Public().(type) {
	case ed25519.PublicKey:
		return "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(pub)
	default:
		der, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		return "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der)
	}
}

func TestDKIM(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	records := map[string]string{
		"r._domainkey.sender.example":        record(t, rsaKey),
		"e._domainkey.sender.example":        record(t, edKey),
		"i._domainkey.xn--bcher-kva.example": record(t, edKey),
	}
	srv := startServer(t, script{offers: everything})
	p := newProvider(t, srv, func(c *Config) {
		c.DKIM = []DKIMKey{
			{"sender.example", "r", rsaKey}, {"sender.example", "e", edKey},
			{"xn--bcher-kva.example", "i", edKey},
		}
	})
	for _, c := range []struct {
		from string
		want int
	}{{"Shop <shop@Sender.example>", 2}, {"shop@bücher.example", 1}, {"shop@other.sender.example", 0}} {
		e := message.Email{From: c.from, To: []string{"ann@reader.example"}, Text: ".\nGrüße  \n\n\n", Subject: "größer"}
		e.Headers = map[string]string{"List-Unsubscribe": "<https://sender.example/u>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}
		before := len(srv.got())
		if r := send(t, p, envelopeOf(&e)); r.Outcome != message.Sent {
			t.Fatalf("%+v", r)
		}
		msg := srv.got()[before]
		if c.want > 0 && bytes.ContainsFunc(msg, func(r rune) bool { return r > 0x7f }) {
			t.Error("a signed message has 8-bit bytes")
		}
		verifications, err := dkim.VerifyWithOptions(bytes.NewReader(msg), &dkim.VerifyOptions{
			LookupTXT: func(domain string) ([]string, error) { return []string{records[domain]}, nil },
		})
		if err != nil || len(verifications) != c.want {
			t.Fatalf("%s: %d signatures, %v", c.from, len(verifications), err)
		}
		for _, v := range verifications {
			if v.Err != nil {
				t.Errorf("%s: %v", c.from, v.Err)
			}
			if h := strings.ToLower(strings.Join(v.HeaderKeys, ":")); !strings.Contains(h, "from:from") || !strings.Contains(h, "list-unsubscribe-post") {
				t.Errorf("signed are %s", h)
			}
		}
		// A second From would break it.
		forged := append([]byte("From: evil@evil.example\r\n"), msg...)
		verifications, err = dkim.VerifyWithOptions(bytes.NewReader(forged), &dkim.VerifyOptions{
			LookupTXT: func(domain string) ([]string, error) { return []string{records[domain]}, nil },
		})
		for _, v := range verifications {
			if err != nil || v.Err == nil {
				t.Errorf("a second From is not noticed (%v)", err)
			}
		}
	}
}

func TestParseDKIMKey(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(edKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range []*pem.Block{
		{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)},
		{Type: "PRIVATE KEY", Bytes: pkcs8},
	} {
		key, err := ParseDKIMKey(pem.EncodeToMemory(block))
		if err != nil {
			t.Fatal(err)
		}
		if field, problem := (DKIMKey{"a.example", "s", key}).check(); field != "" {
			t.Error(field, problem)
		}
	}
	for _, bad := range []string{"", "x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		if _, err := ParseDKIMKey([]byte(bad)); err == nil || strings.Contains(err.Error(), "dkim") {
			t.Errorf("%q: %v, want an error that goes behind the setting's name", bad, err)
		}
	}
	for _, bad := range []DKIMKey{{"", "s", edKey}, {"A.example", "s", edKey}, {"a.example", "s\r\n", edKey}, {"a.example", "s", nil}} {
		if field, problem := bad.check(); field == "" || strings.Contains(problem, field) {
			t.Errorf("%+v: %s: %s", bad, field, problem)
		}
	}
}
