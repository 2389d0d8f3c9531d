package credential

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stormpost/stormpost/internal/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const tokenURI = "https://tokens.example/token"

// testKey is made once: it takes a while.
var testKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func pkcs8(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func keyFile(t *testing.T, change map[string]string) []byte {
	t.Helper()
	f := map[string]string{
		"type": "service_account", "project_id": "p1", "private_key_id": "k1", "private_key": pkcs8(t, testKey()),
		"client_email": "sender@p1.example", "token_uri": tokenURI, "universe_domain": "googleapis.com",
	}
	for k, v := range change {
		f[k] = v
	}
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func testAccount(t *testing.T) *ServiceAccount {
	t.Helper()
	a, err := ParseServiceAccount(keyFile(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestParseServiceAccount(t *testing.T) {
	a := testAccount(t)
	if a.ProjectID != "p1" || a.ClientEmail != "sender@p1.example" || a.TokenURI != tokenURI || a.keyID != "k1" {
		t.Errorf("read %+v", a)
	}
	pkcs1 := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(testKey())}))
	if _, err := ParseServiceAccount(keyFile(t, map[string]string{"private_key": pkcs1})); err != nil {
		t.Errorf("a PKCS #1 key: %v", err)
	}
}

func TestParseServiceAccountRefuses(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const canary = "CANARY"
	broken := strings.Replace(pkcs8(t, testKey()), "\nMII", "\n"+canary+"MII", 1)
	tests := map[string]struct {
		file  []byte
		field string
	}{
		"no JSON":         {[]byte(canary + " is not JSON"), "service_account"},
		"another type":    {keyFile(t, map[string]string{"type": "authorized_user"}), "service_account.type"},
		"no project":      {keyFile(t, map[string]string{"project_id": ""}), "service_account.project_id"},
		"no address":      {keyFile(t, map[string]string{"client_email": ""}), "service_account.client_email"},
		"no endpoint":     {keyFile(t, map[string]string{"token_uri": ""}), "service_account.token_uri"},
		"no key":          {keyFile(t, map[string]string{"private_key": ""}), "service_account.private_key"},
		"key without PEM": {keyFile(t, map[string]string{"private_key": canary}), "service_account.private_key"},
		"broken key":      {keyFile(t, map[string]string{"private_key": broken}), "service_account.private_key"},
		"EC key":          {keyFile(t, map[string]string{"private_key": pkcs8(t, ec)}), "service_account.private_key"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ParseServiceAccount(tc.file)
			var fields message.FieldErrors
			if !errors.As(err, &fields) || len(fields) != 1 || fields[0].Field != tc.field {
				t.Fatalf("got %v, want an error of %s", err, tc.field)
			}
			if strings.Contains(err.Error(), canary) {
				t.Errorf("the error shows what it is about: %v", err)
			}
		})
	}
	t.Run("everything at once", func(t *testing.T) {
		_, err := ParseServiceAccount([]byte(`{}`))
		if fields, _ := err.(message.FieldErrors); len(fields) != 5 {
			t.Errorf("got %v, want five fields", err)
		}
	})
}

func TestServiceAccountPrintsNoKey(t *testing.T) {
	a := testAccount(t)
	secret := a.key.D.String()
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(format, a); s != a.ClientEmail || strings.Contains(s, secret) {
			t.Errorf("%s prints %q", format, s)
		}
	}
}

// issuer is a token endpoint without a network, so that it works in a
// synctest bubble. It checks each assertion.
type issuer struct {
	mu     sync.Mutex
	asked  int
	answer func(n int, assertion string) (status int, body string, err error)
}

// tokens answers with token-1, token-2 and so on.
func tokens(seconds int) func(int, string) (int, string, error) {
	return func(n int, _ string) (int, string, error) {
		return 200, fmt.Sprintf(`{"access_token":"token-%d","token_type":"Bearer","expires_in":%d}`, n, seconds), nil
	}
}

func (i *issuer) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	form := string(body)
	req.Body = io.NopCloser(strings.NewReader(form))
	if err := req.ParseForm(); err != nil {
		return nil, err
	}
	assertion := req.PostForm.Get("assertion")
	if err := checkAssertion(req, assertion); err != nil {
		return nil, err
	}
	i.mu.Lock()
	i.asked++
	n, answer := i.asked, i.answer
	i.mu.Unlock()
	status, text, err := answer(n, assertion)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(text)), Request: req}, nil
}

func checkAssertion(req *http.Request, assertion string) error {
	if got := req.PostForm.Get("grant_type"); got != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
		return fmt.Errorf("grant_type %q", got)
	}
	parts := strings.Split(assertion, ".")
	if len(parts) != 3 {
		return errors.New("assertion is not a JWS")
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return err
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPKCS1v15(&testKey().PublicKey, crypto.SHA256, digest[:], sig); err != nil {
		return err
	}
	var header struct{ Alg, Kid string }
	var claims struct {
		Iss, Scope, Aud string
		Iat, Exp        int64
	}
	for i, v := range []any{&header, &claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, v); err != nil {
			return err
		}
	}
	if header.Alg != "RS256" || header.Kid != "k1" && header.Kid != "k2" || claims.Iss != "sender@p1.example" || claims.Scope != "push" ||
		claims.Aud != tokenURI || claims.Exp-claims.Iat != 3600 {
		return fmt.Errorf("assertion says %+v %+v", header, claims)
	}
	return nil
}

// refusing is an endpoint that takes no assertion of a key.
type refusing struct {
	kid  string
	next *issuer
}

func (r refusing) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, err
	}
	part, _, _ := strings.Cut(form.Get("assertion"), ".")
	header, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return nil, err
	}
	if strings.Contains(string(header), r.kid) {
		answer := `{"error":"invalid_grant"}`
		return &http.Response{StatusCode: 400, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(answer)), Request: req}, nil
	}
	req.Body = io.NopCloser(strings.NewReader(string(body)))
	return r.next.RoundTrip(req)
}

// sleepASecond is for synctest's bubbles.
func sleepASecond() { time.Sleep(time.Second) }
