package credential_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
)

// rabbit is as much of RabbitMQ's management API as OpenBao's secrets engine
// rabbitmq asks: it makes users, whose lease OpenBao keeps, and deletes them.
// https://openbao.org/docs/secrets/rabbitmq/
type rabbit struct {
	*httptest.Server
	mu    sync.Mutex
	users map[string]string // their passwords
	made  int
}

func startRabbit(t *testing.T) *rabbit {
	t.Helper()
	r := &rabbit{users: map[string]string{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		name := path.Base(req.URL.Path)
		switch {
		case !strings.HasPrefix(req.URL.Path, "/api/users/"):
		case req.Method == http.MethodPut:
			var user struct{ Password string }
			if err := json.NewDecoder(req.Body).Decode(&user); err != nil || user.Password == "" {
				t.Errorf("%s %s: %v", req.Method, req.URL, err)
			}
			r.users[name] = user.Password
			r.made++
		case req.Method == http.MethodDelete:
			delete(r.users, name)
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(r.Close)
	return r
}

// takes says whether a user has that password, and how many there were.
func (r *rabbit) takes(password string) (ok bool, made int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.users {
		ok = ok || p == password
	}
	return ok, r.made
}

// Real leases of a real OpenBao: renewed, replaced at their longest life and when
// they are revoked, with a token that lives shorter than all of that unless it is
// renewed. Whatever is shown is good.
func TestOpenBaoLeases(t *testing.T) {
	v, r := startVault(t), startRabbit(t)
	must := func(method, path string, in, out any) {
		t.Helper()
		if err := v.call(method, path, in, out); err != nil {
			t.Fatal(err)
		}
	}
	must(http.MethodPost, "/v1/sys/mounts/rabbit", map[string]any{"type": "rabbitmq"}, nil)
	must(http.MethodPost, "/v1/rabbit/config/connection", map[string]any{
		"connection_uri": r.URL, "username": "admin", "password": "CANARY-admin", "verify_connection": false,
	}, nil)
	must(http.MethodPost, "/v1/rabbit/config/lease", map[string]any{"ttl": 4, "max_ttl": 9}, nil)
	must(http.MethodPost, "/v1/rabbit/roles/mail", map[string]any{"tags": "management"}, nil)
	must(http.MethodPut, "/v1/sys/policies/acl/mail", map[string]string{"policy": `path "rabbit/creds/mail" { capabilities = ["read"] }`}, nil)
	var made struct {
		Auth struct {
			ClientToken string `json:"client_token"`
		} `json:"auth"`
	}
	must(http.MethodPost, "/v1/auth/token/create", map[string]any{"policies": []string{"mail"}, "ttl": "12s"}, &made)

	s := &stage{t: t, logged: &locked{}}
	s.log = newLog(s.logged)
	token := s.credential("token", credential.Fixed("test", made.Auth.ClientToken))
	c := s.credential("relay", &credential.Lease{URL: v.url, Token: token, Path: "rabbit/creds/mail", Field: "password"})
	var shown []string
	users := func() int { _, made := r.takes(""); return made }
	use := func() {
		t.Helper()
		u, err := c.Use(t.Context())
		if err != nil {
			t.Fatalf("after %d users: %v", users(), err)
		}
		if len(shown) == 0 || shown[len(shown)-1] != u.Value() {
			shown = append(shown, u.Value())
		}
		if ok, _ := r.takes(u.Value()); !ok {
			t.Fatalf("user %d is gone", users())
		}
		u.Accepted()
	}
	use()
	ends := c.Status().Expires
	until(t, "the lease is renewed", func() bool { use(); return c.Status().Expires.After(ends.Add(2 * time.Second)) })
	if n := users(); n != 1 {
		t.Errorf("%d users for one lease", n)
	}
	until(t, "three users", func() bool { use(); return users() == 3 })
	until(t, "the third is used", func() bool { use(); return len(shown) >= 3 && c.Status().Generations[0].State == "current" })

	// Somebody takes it back, and the service refuses it from then on.
	must(http.MethodPost, "/v1/sys/leases/revoke-prefix/rabbit/creds/mail", map[string]any{"sync": true}, nil)
	u, err := c.Use(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if ok, _ := r.takes(u.Value()); ok {
		t.Error("the user outlives its lease")
	}
	u.Rejected("401")
	until(t, "another one", func() bool {
		next, err := c.Use(t.Context())
		return err == nil && next.Value() != u.Value()
	})
	use()

	text := s.logged.String() + fmt.Sprintf("%+v %+v", c.Status(), token.Status())
	for _, secret := range append(shown, "CANARY", made.Auth.ClientToken) {
		if strings.Contains(text, secret) {
			t.Errorf("%s is shown: %s", secret, text)
		}
	}
}
