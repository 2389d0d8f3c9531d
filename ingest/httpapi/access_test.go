package httpapi_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stormpost/stormpost/ingest/httpapi"
	"github.com/stormpost/stormpost/internal/message"
)

// ask is one operation: how to call it, with the message's id where it has one.
type ask struct{ method, path, body string }

func asks(id, submission string) []ask {
	return []ask{
		{"POST", "/v1/emails", goodEmail},
		{"POST", "/v1/pushes", goodPush},
		{"POST", "/v1/batches", `{"channel":"email","from":"a@example.com","to":["b@example.net"],"text":"t"}`},
		{"GET", "/v1/messages", ""},
		{"GET", "/v1/messages?submission=" + submission, ""},
		{"GET", "/v1/messages?idempotency_key=k", ""},
		{"GET", "/v1/messages/" + id, ""},
		{"DELETE", "/v1/messages/" + id, ""},
		{"GET", "/v1/streams/codes/audit", ""},
		{"GET", "/v1/lanes", ""},
		{"GET", "/v1/doubts", ""},
		{"POST", "/v1/doubts/" + id, `{"decision":"drop","reason":"r"}`},
		{"GET", "/v1/audit", ""},
		{"POST", "/v1/doubts", `{"filter":{"provider":"p"},"decision":"drop","reason":"r","dry_run":true}`},
		{"POST", "/v1/holds", `{"provider":"p","reason":"r"}`},
		{"GET", "/v1/holds", ""},
		{"DELETE", "/v1/holds/1", ""},
		{"GET", "/v1/suppressions", ""},
		{"DELETE", "/v1/suppressions/1", ""},
		{"POST", "/v1/messages/" + id + "/release", `{"reason":"r"}`},
		{"POST", "/v1/replays", `{"filter":{"tag":"t"},"dry_run":true}`},
		{"GET", "/v1/replays", ""},
		{"GET", "/v1/replays/1", ""},
		{"POST", "/v1/replays/1/pause", ""},
		{"POST", "/v1/replays/1/resume", ""},
		{"POST", "/v1/replays/1/cancel", ""},
		{"GET", "/v1/credentials", ""},
		{"POST", "/v1/credentials/{name}/test", ""},
	}
}

// submitted makes a message of tenant one in stream codes.
func (f *fixture) submitted() accepted {
	return decodeInto[accepted](f.t, f.do("POST", "/v1/emails", "one", with(goodEmail, object{"stream": "codes"}), "Idempotency-Key", "k"), 202)
}

type mustNotRead struct{ t *testing.T }

func (m mustNotRead) Read([]byte) (int, error) {
	m.t.Error("the body was read before the sign-in")
	return 0, io.EOF
}

func TestUnauthorized(t *testing.T) {
	f := newFixture(t)
	m := f.submitted()
	var first []byte
	for _, a := range asks(m.Messages[0].ID, m.ID) {
		for _, authorization := range []string{"", "Bearer", "Bearer unknown", "Basic b25lOm9uZQ==", "one", "Bearer one two"} {
			r := httptest.NewRequest(a.method, a.path, mustNotRead{t})
			r.Header.Set("Content-Type", "application/json")
			if authorization != "" {
				r.Header.Set("Authorization", authorization)
			}
			w := httptest.NewRecorder()
			f.handler.ServeHTTP(w, r)
			got := answer{w.Result(), w.Body.Bytes()}
			wantProblem(t, got, 401)
			if got.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s %s: no WWW-Authenticate", a.method, a.path)
			}
			if first == nil {
				first = got.body
			}
			if !bytes.Equal(got.body, first) {
				t.Errorf("%s %s with %q: %s, want one answer for all: %s", a.method, a.path, authorization, got.body, first)
			}
		}
	}
}

func TestScopes(t *testing.T) {
	f := newFixture(t)
	m := f.submitted()
	// Who may do what, in the order of asks.
	want := map[string]string{
		"sender":   "yyynnnnynnnnnnnnnnynnnnnnnnn",
		"reader":   "nnnyyyynynnnnnnnnynnnnnnnnnn",
		"operator": "nnnyyyyyyyyyyyyyyyyyyyyyyyyy",
		"rootless": "nnnyyyyyyyyyyyyyyyyyyyyyyyyy",
	}
	for key, may := range want {
		for i, a := range asks(m.Messages[0].ID, m.ID) {
			got := f.do(a.method, a.path, key, a.body)
			if allowed := got.StatusCode != http.StatusForbidden; allowed != (may[i] == 'y') {
				t.Errorf("%s: %s %s: %d %s", key, a.method, a.path, got.StatusCode, got.body)
			}
			if may[i] == 'n' {
				wantProblem(t, got, 403)
				if !strings.Contains(string(got.body), "it needs the scope ") {
					t.Errorf("%s %s says %s", a.method, a.path, got.body)
				}
			}
		}
	}
}

// Another tenant learns nothing: of what is one's own it gets the very answer
// that something unknown gets.
func TestTenantsAreApart(t *testing.T) {
	f := newFixture(t)
	m := f.submitted()
	unknown := "msg_" + strings.Repeat("b", 38) + "ae"
	for _, a := range []ask{
		{"GET", "/v1/messages/", ""},
		{"DELETE", "/v1/messages/", ""},
	} {
		theirs := f.do(a.method, a.path+m.Messages[0].ID, "two", a.body)
		none := f.do(a.method, a.path+unknown, "two", a.body)
		nonsense := f.do(a.method, a.path+"x", "two", a.body)
		wantProblem(t, theirs, 404)
		if !bytes.Equal(theirs.body, none.body) || !bytes.Equal(none.body, nonsense.body) {
			t.Errorf("%s: another's %s, unknown %s, nonsense %s", a.method, theirs.body, none.body, nonsense.body)
		}
	}
	wantProblem(t, f.do("GET", "/v1/streams/codes/audit", "two", ""), 404)
	wantProblem(t, f.do("GET", "/v1/streams/codes/audit?tenant=1", "two", ""), 422, "tenant")
	wantProblem(t, f.do("GET", "/v1/messages?tenant=1", "two", ""), 422, "tenant")
	for _, query := range []string{"", "?submission=" + m.ID, "?idempotency_key=k", "?tenant=2"} {
		list := decodeInto[list](t, f.do("GET", "/v1/messages"+query, "two", ""), 200)
		if len(list.Items) != 0 {
			t.Errorf("%s shows another's messages: %+v", query, list)
		}
		if f.filter.Tenant != 2 {
			t.Errorf("%s asked the ledger for tenant %d", query, f.filter.Tenant)
		}
	}
	f.suppressions = []message.Suppression{{ID: 7, Tenant: 1, Channel: message.ChannelPush, Recipient: "token", Reason: message.RecipientGone}}
	wantProblem(t, f.do("DELETE", "/v1/suppressions/7", "two", ""), 404)
	wantProblem(t, f.do("GET", "/v1/suppressions?tenant=1", "two", ""), 422, "tenant")
	if list := decodeInto[list](t, f.do("GET", "/v1/suppressions", "two", ""), 200); len(list.Items) != 0 {
		t.Errorf("another's suppressions: %+v", list)
	}
	if list := decodeInto[list](t, f.do("GET", "/v1/suppressions", "one", ""), 200); len(list.Items) != 1 || list.Items[0]["to"] != "token" || list.Items[0]["tenant"] != nil {
		t.Errorf("one's own suppressions: %+v", list)
	}
	if one := decodeInto[map[string]any](t, f.do("DELETE", "/v1/suppressions/7", "one", ""), 200); one["cleared_by"] == nil || len(f.suppressions) != 0 {
		t.Errorf("cleared: %+v", one)
	}
	for _, k := range f.byKey {
		if k.state != "queued" {
			t.Errorf("state is %s", k.state)
		}
	}
}

type list struct {
	Items []map[string]any
	Next  string
}

func TestRouter(t *testing.T) {
	f := newFixture(t)
	wantProblem(t, f.do("GET", "/v2/nothing", "", ""), 404)
	a := f.do("PUT", "/v1/messages/x", "one", "")
	wantProblem(t, a, 405)
	if got := strings.Join(a.Header.Values("Allow"), ","); got != "DELETE,GET,HEAD" {
		t.Errorf("Allow: %s", got)
	}
	wantProblem(t, f.do("BREW", "/v1/messages/x", "one", ""), 405)
	wantProblem(t, f.do("BREW", "/v2/nothing", "one", ""), 404)
	for _, path := range []string{"/livez", "/readyz"} {
		if got := f.do("HEAD", path, "", ""); got.StatusCode != 200 {
			t.Errorf("HEAD %s: %d", path, got.StatusCode)
		}
	}
	if got := f.do("GET", "/livez", "", "", "X-Request-Id", "abc-1").Header.Get("X-Request-Id"); got != "abc-1" {
		t.Errorf("request id %q", got)
	}
	if got := f.do("GET", "/livez", "", "", "X-Request-Id", "a b\x01").Header.Get("X-Request-Id"); strings.ContainsAny(got, " \x01") {
		t.Errorf("request id %q", got)
	}
}

func TestHealth(t *testing.T) {
	checks := []httpapi.Check{{Name: "numbering"}, {Name: "topics", Err: errors.New("not created")}}
	f := newFixture(t, func(c *httpapi.Config) {
		c.Ready = func(context.Context) []httpapi.Check { return checks }
	})
	if got := f.do("GET", "/livez", "", ""); got.StatusCode != 200 {
		t.Errorf("livez: %d", got.StatusCode)
	}
	if p := wantProblem(t, f.do("GET", "/readyz", "", ""), 503, "topics"); len(p.Errors) != 1 {
		t.Errorf("readyz: %+v", p)
	}
	checks = checks[:1]
	if got := f.do("GET", "/readyz", "", ""); got.StatusCode != 200 {
		t.Errorf("readyz: %d", got.StatusCode)
	}
}
