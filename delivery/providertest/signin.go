package providertest

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/stormpost/stormpost/delivery"
)

// SignIn is an answer to what Authenticate asks.
type SignIn struct {
	HTTPAnswer
	In bool // it lets us in
}

// SignedIn is the case of a status and body that let us in, or don't; $SECRET
// in body stands for HTTP.Secret.
func SignedIn(status int, body string, in bool) SignIn {
	return SignIn{HTTPAnswer{Status: status, Body: body}, in}
}

// RunSignIn checks Authenticate of h's provider: one GET of path, which carries
// the secret in the header named and nothing else, and what each answer means.
func RunSignIn(t *testing.T, h HTTP, path, header string, cases ...SignIn) {
	t.Helper()
	var answer HTTPAnswer
	asked := 0
	o := ServeHTTP2(t, func(w http.ResponseWriter, r *http.Request, body []byte) {
		asked++
		if r.Method != http.MethodGet || r.URL.Path != path || len(body) > 0 || r.Header.Get(header) == "" {
			t.Errorf("%s %s with %v", r.Method, r.URL, r.Header)
		}
		answer.write(w)
	})
	authenticate := func(o HTTPService) error {
		p := h.New(t, o)
		defer p.Close()
		a, ok := p.(Keyed).Provider.(delivery.Authenticator)
		if !ok {
			t.Fatal("it is no Authenticator")
		}
		err := a.Authenticate(t.Context())
		if err != nil && strings.Contains(err.Error(), h.Secret) {
			t.Errorf("the error shows a secret: %v", err)
		}
		return err
	}
	for _, c := range cases {
		answer, asked = c.HTTPAnswer, 0
		answer.Body = strings.ReplaceAll(c.Body, "$SECRET", h.Secret)
		err := authenticate(o)
		if (err == nil) != c.In || errors.Is(err, delivery.ErrUnreachable) || asked != 1 {
			t.Errorf("%d %.90s: %v, after %d requests", c.Status, c.Body, err, asked)
		}
	}
	o.Base = "https://127.0.0.1:1"
	if err := authenticate(o); !errors.Is(err, delivery.ErrUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
}
