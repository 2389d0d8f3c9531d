package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/ingest/httpapi"
	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

// result is how a command line ended.
type result struct {
	code     int
	out, err string
}

// run runs a command line with nothing on standard input.
func run(t *testing.T, environ []string, args ...string) result {
	t.Helper()
	return runWith(t, "", environ, args...)
}

func runWith(t *testing.T, input string, environ []string, args ...string) result {
	t.Helper()
	var out, err bytes.Buffer
	code := Run(t.Context(), args, Env{In: strings.NewReader(input), Out: &out, Err: &err, Environ: environ})
	return result{code, out.String(), err.String()}
}

// fakeAPI answers one status and body, and keeps the last request.
type fakeAPI struct {
	*httptest.Server
	status int
	body   string
	last   *http.Request
	sent   string
}

func newAPI(t *testing.T, status int, body string) *fakeAPI {
	t.Helper()
	a := &fakeAPI{status: status, body: body}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		a.last, a.sent = r, string(b)
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.body)
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *fakeAPI) environ() []string {
	return []string{"STORMPOST_API=" + a.URL + "/", "STORMPOST_API_KEY=sp_live_k"}
}

const (
	receipt = `{"id":"sub_1","messages":[{"id":"msg_1","to":"you@example.com","state":"queued","stream":"default","sequence":7}]}`
	items   = `{"items":[{"id":"msg_1","state":"sent","stream":"codes","sequence":3,"class":"transactional","channel":"email","to":"you@example.com","accepted_at":"2026-01-02T15:04:05Z"}],"next":"c2"}`
	one     = `{"id":"msg_1","state":"failed","reason":"dropped","stream":"codes","sequence":3,"class":"trigger","channel":"push","to":"tok","timeline":[{"at":"2026-01-02T15:04:05Z","event":"accepted"}]}`
	refusal = `{"title":"Unprocessable Entity","status":422,"code":"invalid_request","detail":"The request is not valid.","errors":[{"field":"to[0]","message":"is not one mailbox"}]}`
)

var email = []string{"send", "--from", "app@example.com", "--to", "you@example.com", "--subject", "Hi", "--text", "Hello"}

func TestExitCodes(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for name, test := range map[string]struct {
		status int
		body   string
		args   []string
		code   int
		says   string
	}{
		"accepted":         {202, receipt, email, exitOK, ""},
		"repeated":         {200, receipt, email, exitOK, ""},
		"unreadable":       {202, `{`, email, exitFailed, "can't be read"},
		"invalid":          {422, refusal, email, exitRefused, "to[0]: is not one mailbox"},
		"unauthorized":     {401, `{"detail":"A valid API key is needed."}`, email, exitRefused, "A valid API key"},
		"too late":         {409, `{"detail":"It was handed over."}`, []string{"messages", "cancel", "msg_1"}, exitRefused, "409"},
		"not found":        {404, ``, []string{"messages", "msg_1"}, exitRefused, "404 Not Found"},
		"too many":         {429, ``, email, exitUnavailable, "429"},
		"unavailable":      {503, `{"detail":"Nothing was promised."}`, email, exitUnavailable, "Nothing was promised"},
		"not ours":         {500, `<html>`, []string{"messages"}, exitUnavailable, "500"},
		"unknown flag":     {202, receipt, []string{"send", "--frob"}, exitUsage, "--frob"},
		"unknown command":  {202, receipt, []string{"frob"}, exitUsage, "frob"},
		"unknown verb":     {202, receipt, []string{"keys", "frob"}, exitUsage, "frob"},
		"another one":      {202, receipt, []string{"doubts", "frob"}, exitUsage, "frob"},
		"no argument":      {202, receipt, []string{"messages", "cancel"}, exitUsage, "1 arg"},
		"an argument more": {202, receipt, []string{"version", "now"}, exitUsage, "now"},
		"required flag":    {202, receipt, []string{"keys", "create"}, exitUsage, "tenant"},
		"nothing to send":  {202, receipt, []string{"send"}, exitUsage, "--from"},
		"bad time":         {202, receipt, append(email[:len(email):len(email)], "--send-at", "soon"), exitUsage, "--send-at"},
		"bad scope":        {202, receipt, []string{"keys", "create", "--tenant", "a", "--scope", "root"}, exitUsage, "--scope"},
		"bad address":      {202, receipt, []string{"dev", "--listen", "8080"}, exitUsage, "--listen"},
		"no file":          {202, receipt, []string{"send", "--file", "/nowhere/x.json"}, exitUsage, "/nowhere/x.json"},
		"nobody there":     {202, receipt, append(email[:len(email):len(email)], "--api", gone.URL), exitUnavailable, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			r := run(t, newAPI(t, test.status, test.body).environ(), test.args...)
			if r.code != test.code || !strings.Contains(r.err, test.says) {
				t.Errorf("exit %d, want %d; it says %q, want %q", r.code, test.code, r.err, test.says)
			}
			if r.code != exitOK && (!strings.HasPrefix(r.err, "stormpost: ") || r.out != "") {
				t.Errorf("a failure prints %q and says %q", r.out, r.err)
			}
		})
	}
}

// A connection string that is none is a mistake of the configuration everywhere.
func TestBadDSNIsUsage(t *testing.T) {
	for _, args := range [][]string{{"keys", "list"}, {"migrate"}, {"migrate", "--check"}, {"preflight"}, {"reconcile"}, {"bench"}, {"evacuate", "--to", "main"}} {
		if r := run(t, []string{"STORMPOST_DSN=foo hunter2"}, args...); r.code != exitUsage || !strings.Contains(r.err, "dsn: not a PostgreSQL") || strings.Contains(r.err, "hunter2") {
			t.Errorf("%v: exit %d, says %q", args, r.code, r.err)
		}
	}
}

// What is wrong with flags is told by their names, before anything is asked or
// started.
func TestFlagsAreUsage(t *testing.T) {
	a := newAPI(t, 200, `{}`)
	environ := append(a.environ(), "STORMPOST_DSN=postgres://127.0.0.1:1/none", "STORMPOST_BROKERS=127.0.0.1:1")
	key := []string{"keys", "create", "--tenant", "a"}
	with := func(args []string, more ...string) []string { return append(args[:len(args):len(args)], more...) }
	for _, test := range []struct {
		args []string
		says string
	}{
		{[]string{"bench", "--rate", "-1"}, "--rate"},
		{[]string{"bench", "--count", "0"}, "--count"},
		{[]string{"bench", "--payload", "-1"}, "--payload"},
		{[]string{"bench", "--streams", "0"}, "--streams"},
		{[]string{"bench", "--timeout", "0"}, "--timeout"},
		{[]string{"bench", "--dsn", "foo"}, "dsn"},
		{[]string{"drill", "front-door", "--rate", "0"}, "--rate"},
		{[]string{"drill", "corrupt-cluster", "--dsn", "foo"}, "--dsn: want"},
		{[]string{"replay", "--lane", "x", "--reason", "r", "--rate", "0"}, "--rate"},
		{with(key, "--domain", "bad domain"), "--domain"},
		{with(key, "--domain", "*.acme.com"), `.example.com`},
		{with(key, "--domain", "localhost"), "--domain"},
		{with(key, "--domain", "example.com."), "--domain"},
		{with(key, "--domain", ""), "--domain"},
		{with(key, "--scope", ""), "--scope"},
		{with(key, "--scope", "send,"), "--scope"},
		{[]string{"send", "--file", "x.json", "--subject", "y"}, "subject"},
		{[]string{"send", "--file", "x.json", "--expires-at", "2030-01-01T00:00:00Z"}, "expires-at"},
		{[]string{"send", "--fcm", "T", "--subject", "y"}, "subject"},
		{with(email, "--body", "y"), "body"},
		{with(email, "--text", "\xff"), "--text"},
		{with(email, "--wait", "-5s"), "--wait"},
		{with(email, "--api", "foo"), "--api"},
		{with(email, "--key", ""), "--key"},
		{with(email, "--send-at", "2030-01-02T15:04:05+24:00"), "--send-at: want a time"},
		{[]string{"audit", "--stream", ""}, "--stream"},
		{[]string{"audit", "--lane", ""}, "--lane"},
		{[]string{"audit", "--all", "--tenant", "7"}, "--tenant goes with --stream"},
		{[]string{"audit", "--lane", "trigger.push", "--tenant", "7"}, "--tenant goes with --stream"},
		{[]string{"reconcile", "--since", "2030-01-02T15:04:05+24:00"}, "--since: want a time"},
		{[]string{"hold", "--tenant", "0", "--reason", "r"}, "--tenant"},
		{[]string{"messages", "--to", ""}, "--to"},
		{[]string{"release", "99999999999999999999"}, "hold's number"},
		{[]string{"dev", "--listen", "127.0.0.1:"}, "--listen"},
		{[]string{"dev", "--fcm", "foo"}, "--fcm"},
		{[]string{"dev", "--dsn", "foo"}, "--dsn"},
		{[]string{"dev", "--brokers", "foo"}, "--brokers"},
		{[]string{"dev", "--data", ""}, "--data"},
	} {
		if r := run(t, environ, test.args...); r.code != exitUsage || !strings.Contains(r.err, test.says) || r.out != "" {
			t.Errorf("%q: %+v", test.args, r)
		}
	}
	if a.last != nil {
		t.Errorf("asked %s", a.last.URL)
	}
	// What the ledger refuses is usage, too, as a tenant's name.
	c := &command{Env: Env{Environ: environ}}
	err := c.withLedger(func(*dedupe.Ledger) error { return message.FieldErrors{{Field: "tenant", Problem: "bad"}} })
	if e := (*exitError)(nil); !errors.As(err, &e) || e.code != exitUsage {
		t.Errorf("%v", err)
	}
}

// What is refused for now is submitted again when Retry-After says, and not when
// that could send it twice or takes too long.
func TestSendComesAgain(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		args   []string
		code   int
		calls  int
	}{
		"429":             {429, nil, exitOK, 2},
		"503 with a key":  {503, []string{"--key", "k"}, exitOK, 2},
		"503 without one": {503, nil, exitUnavailable, 1},
		"too long":        {429, []string{"--wait", "10ms"}, exitUnavailable, 1},
		"422":             {422, []string{"--key", "k"}, exitRefused, 1},
	} {
		t.Run(name, func(t *testing.T) {
			calls := 0
			api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if calls++; calls == 1 {
					if test.status != 422 {
						w.Header().Set("Retry-After", "0")
					}
					w.WriteHeader(test.status)
					return
				}
				w.WriteHeader(202)
				_, _ = io.WriteString(w, receipt)
			}))
			defer api.Close()
			r := run(t, []string{"STORMPOST_API=" + api.URL, "STORMPOST_API_KEY=k"}, append(email[:len(email):len(email)], test.args...)...)
			if r.code != test.code || calls != test.calls {
				t.Errorf("exit %d after %d calls, want %d after %d: %s", r.code, calls, test.code, test.calls, r.err)
			}
		})
	}
}

func TestLanes(t *testing.T) {
	a := newAPI(t, 200, `{"items":[{"lane":"campaign.email","depth":1200,"waiting":3,"journaled":40,"oldest_age_seconds":90,"in_rate":1,"out_rate":41,"eta_seconds":30},{"lane":"trigger.push","depth":5,"journaled":0,"eta_seconds":null},{"lane":"trigger.email","depth":0,"journaled":null,"eta_seconds":null}]}`)
	r := run(t, a.environ(), "lanes")
	if r.code != exitOK || a.last.URL.Path != "/v1/lanes" || !strings.Contains(r.out, "campaign.email  1200   3        40         1m30s   1.0   41.0   30s") || !strings.Contains(r.out, "never") ||
		!strings.Contains(r.out, "trigger.email   0      0        ?          0s      0.0   0.0    ?") {
		t.Errorf("%+v", r)
	}
	if r = run(t, a.environ(), "lanes", "--json"); r.code != exitOK || !strings.Contains(r.out, `"eta_seconds"`) {
		t.Errorf("%+v", r)
	}
}

func TestSend(t *testing.T) {
	a := newAPI(t, 202, receipt)
	r := run(t, a.environ(), append(email, "--key", "order-17", "--class", "trigger", "--expires-at", "2030-01-01T00:00:00Z", "--supersede-key", "code 1")...)
	if r.code != exitOK || r.out != "msg_1  queued  default/7  you@example.com\n" {
		t.Errorf("%+v", r)
	}
	if a.last.Method != http.MethodPost || a.last.URL.Path != "/v1/emails" || a.last.Header.Get("Idempotency-Key") != "order-17" ||
		a.last.Header.Get("Authorization") != "Bearer sp_live_k" {
		t.Errorf("%s %s %v", a.last.Method, a.last.URL, a.last.Header)
	}
	sameJSON(t, a.sent, `{"from":"app@example.com","to":["you@example.com"],"subject":"Hi","text":"Hello","class":"trigger","expires_at":"2030-01-01T00:00:00Z","supersede_key":"code 1"}`)

	r = run(t, a.environ(), "send", "--fcm", "tok", "--title", "Hi", "--body", "Hello", "--json")
	if r.code != exitOK || a.last.URL.Path != "/v1/pushes" || a.last.Header.Get("Idempotency-Key") != "" {
		t.Errorf("%+v %s", r, a.last.URL)
	}
	sameJSON(t, r.out, receipt)
	sameJSON(t, a.sent, `{"platform":"fcm","to":"tok","notification":{"title":"Hi","body":"Hello"}}`)

	if r := run(t, a.environ(), "send", "--from", "app@example.com", "--to", `"A, B" <a@example.com>`, "--to", "b@example.com", "--subject", ""); r.code != exitOK {
		t.Errorf("%+v", r)
	}
	sameJSON(t, a.sent, `{"from":"app@example.com","to":["\"A, B\" <a@example.com>","b@example.com"]}`)

	// A file is sent as it is, to where it belongs.
	for path, body := range map[string]string{"/v1/emails": `{"from":"a@b.c","x":[1]}`, "/v1/pushes": `{"platform":"fcm","to":{"topic":"t"}}`} {
		if r := runWith(t, body, a.environ(), "send", "--file", "-"); r.code != exitOK || a.last.URL.Path != path {
			t.Errorf("%+v %s", r, a.last.URL)
		}
		sameJSON(t, a.sent, body)
	}
}

func TestMessages(t *testing.T) {
	a := newAPI(t, 200, items)
	r := run(t, a.environ(), "messages", "--state", "sent", "--to", "you+a@example.com", "--idempotency-key", "k&1", "--limit", "2")
	if r.code != exitOK || !strings.Contains(r.out, "msg_1") || !strings.Contains(r.out, "codes/3") || !strings.Contains(r.out, "--cursor c2") {
		t.Errorf("%+v", r)
	}
	q := a.last.URL.Query()
	if q.Get("state") != "sent" || q.Get("to") != "you+a@example.com" || q.Get("idempotency_key") != "k&1" || q.Get("limit") != "2" || len(q) != 4 {
		t.Errorf("%s", a.last.URL)
	}
	r = run(t, a.environ(), "messages", "--json")
	sameJSON(t, r.out, items)

	a.body = one
	r = run(t, a.environ(), "messages", "msg_1/../x")
	if r.code != exitOK || a.last.URL.EscapedPath() != "/v1/messages/msg_1%2F..%2Fx" || !strings.Contains(r.out, "dropped") || !strings.Contains(r.out, "trigger.push") {
		t.Errorf("%+v %s", r, a.last.URL.EscapedPath())
	}
	r = run(t, a.environ(), "--json", "messages", "cancel", "msg_1")
	if a.last.Method != http.MethodDelete || a.last.URL.Path != "/v1/messages/msg_1" {
		t.Errorf("%s %s", a.last.Method, a.last.URL)
	}
	sameJSON(t, r.out, one)
}

// TestRunningDev finds the API and the key of a running `stormpost dev`.
func TestRunningDev(t *testing.T) {
	a := newAPI(t, 200, items)
	dir := t.TempDir()
	b, _ := json.Marshal(map[string]string{"api": a.URL, "api_key": "sp_live_dev"})
	if err := os.WriteFile(filepath.Join(dir, "dev.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := run(t, nil, "messages", "--data", dir); r.code != exitOK || a.last.Header.Get("Authorization") != "Bearer sp_live_dev" {
		t.Errorf("%+v", r)
	}
	// What is given explicitly wins.
	if r := run(t, []string{"STORMPOST_API_KEY=sp_live_mine"}, "messages", "--data", dir); r.code != exitOK || a.last.Header.Get("Authorization") != "Bearer sp_live_mine" {
		t.Errorf("%+v", r)
	}
}

// TestKeysOfDev runs the examples of every command beside a running dev: each
// one comes with a key that may do what it asks.
func TestKeysOfDev(t *testing.T) {
	api := httpapi.New(httpapi.Config{Keyring: devKeys{}})
	asked := map[string]bool{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got := httptest.NewRecorder()
		api.ServeHTTP(got, r) // what it has no store for fails behind the sign-in
		if got.Code == http.StatusUnauthorized || got.Code == http.StatusForbidden {
			t.Errorf("%s %s: %d %s", r.Method, r.URL, got.Code, got.Body)
		}
		asked[r.Method+" "+strings.SplitAfter(r.URL.Path, "/")[2]] = true
		w.WriteHeader(http.StatusNotFound)
	}))
	defer srv.Close()
	dir := t.TempDir()
	b, _ := json.Marshal(map[string]string{"api": srv.URL, "api_key": "app", "operator_key": "operator"})
	if err := os.WriteFile(filepath.Join(dir, "dev.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	each((&command{}).root(), func(cmd *cobra.Command) {
		if cmd.InheritedFlags().Lookup("api") == nil && cmd.PersistentFlags().Lookup("api") == nil {
			return
		}
		for line := range strings.Lines(cmd.Example) {
			run(t, nil, append(exampleArgs(line)[1:], "--data", dir)...)
		}
	})
	if len(asked) < 14 {
		t.Errorf("only %d kinds of requests: %v", len(asked), asked)
	}
}

// devKeys are dev's two keys.
type devKeys struct{}

func (devKeys) Verify(text string) (*keyring.Principal, error) {
	p := &keyring.Principal{Tenant: 1, Scopes: []keyring.Scope{keyring.Send, keyring.Read}}
	switch text {
	case "app":
		return p, nil
	case "operator":
		p.Scopes = append(p.Scopes, keyring.Operator)
		return p, nil
	}
	return nil, keyring.ErrUnauthorized
}

func TestVersion(t *testing.T) {
	if r := run(t, nil, "version"); r.code != exitOK || !strings.HasPrefix(r.out, "stormpost "+Version+" (go") {
		t.Errorf("%+v", r)
	}
	r := run(t, nil, "version", "--json")
	var v struct{ Version, Go string }
	if err := json.Unmarshal([]byte(r.out), &v); err != nil || v.Version != Version || v.Go == "" {
		t.Errorf("%+v: %v", r, err)
	}
}

func sameJSON(t *testing.T, have, want string) {
	t.Helper()
	var h, w any
	if err := json.Unmarshal([]byte(have), &h); err != nil {
		t.Errorf("%q: %v", have, err)
		return
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	hb, _ := json.Marshal(h)
	wb, _ := json.Marshal(w)
	if !bytes.Equal(hb, wb) {
		t.Errorf("have %s\nwant %s", hb, wb)
	}
}
