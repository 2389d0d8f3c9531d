package webpush

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/delivery/providertest"
	"github.com/stormpost/stormpost/internal/devstack"
	"github.com/stormpost/stormpost/internal/message"
)

// ece runs the independent implementation.
func ece(t *testing.T, in []byte) []byte {
	t.Helper()
	cache, err := devstack.DefaultCache()
	if err != nil {
		t.Fatal(err)
	}
	python := filepath.Join(cache, "http-ece", "bin", "python3")
	if _, err := os.Stat(python); err != nil {
		if testing.Short() {
			t.Skip("without Python's http-ece (make deps)")
		}
		t.Fatalf("Python's http-ece, which decrypts what is sent here, is missing: `make deps` puts it into %s; by hand: python3 -m venv %s && %s -m pip install http-ece==1.2.1",
			filepath.Join(cache, "http-ece"), filepath.Join(cache, "http-ece"), python)
	}
	cmd := exec.CommandContext(t.Context(), python, filepath.Join("testdata", "decrypt.py"))
	var problems bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("decrypt.py: %v\n%s", err, &problems)
	}
	return out
}

// What is sent decrypts in another implementation (http_ece), and its VAPID token
// is good by another (Python's cryptography).
func TestIndependent(t *testing.T) {
	type question struct {
		Body    string `json:"body"`
		Private string `json:"private"`
		Auth    string `json:"auth"`
		T       string `json:"t"`
		K       string `json:"k"`
	}
	coded := base64.RawURLEncoding.EncodeToString
	var mu sync.Mutex
	var body []byte
	var authorization string
	s := providertest.ServeHTTP2(t, func(w http.ResponseWriter, r *http.Request, b []byte) {
		mu.Lock()
		defer mu.Unlock()
		body, authorization = b, r.Header.Get("Authorization")
		w.WriteHeader(201)
	})
	p := newProvider(t, config(s))
	defer p.Close()
	var in bytes.Buffer
	var want []string
	for n, text := range []string{"", "x", "größe 🚀 <&>", strings.Repeat("y", 3500)} {
		b := newBrowser()
		env := envelope(n, s.Base+path, b)
		env.Content.Push.Notification.Body = text
		if res, _ := send(t, p, env); res.Outcome != message.Sent {
			t.Fatalf("result %+v", res)
		}
		plain, err := encode(env.Content.Push, env.ID)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, string(plain))
		token, key, _ := strings.Cut(strings.TrimPrefix(authorization, "vapid t="), ", k=")
		if err := json.NewEncoder(&in).Encode(question{coded(body), coded(b.private.Bytes()), coded(b.secret), token, key}); err != nil {
			t.Fatal(err)
		}
	}
	dec := json.NewDecoder(bytes.NewReader(ece(t, in.Bytes())))
	for n, plain := range want {
		var a struct {
			Plain  string
			Head   map[string]string
			Claims struct {
				Aud, Sub string
				Exp      int64
			}
		}
		if err := dec.Decode(&a); err != nil {
			t.Fatal(err)
		}
		if got := string(b64(t, a.Plain)); got != plain {
			t.Errorf("message %d: %.200s, want %.200s", n, got, plain)
		}
		life := time.Until(time.Unix(a.Claims.Exp, 0))
		if a.Head["alg"] != "ES256" || a.Claims.Aud != s.Base || a.Claims.Sub != "mailto:ops@sender.example" || life <= 0 || life > 24*time.Hour {
			t.Errorf("token says %+v", a)
		}
	}
}
