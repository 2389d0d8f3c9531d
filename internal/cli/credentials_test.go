package cli

import (
	"strings"
	"testing"
)

const credentialsBody = `{"items":[{"name":"smtp","source":"file /run/secrets/smtp","health":"fell_back","trouble":"the newest one expired",
	"expires_at":"2026-01-02T03:04:05Z","last_used_at":"2026-01-02T03:04:05Z","last_worked_at":null,"refreshed_at":null,"next_refresh_at":null,
	"refreshes":3,"rejections":0,"generations":[{"number":2,"state":"expired","label":"version 2","kept":true,"received_at":"2026-01-02T03:04:05Z","expires_at":null,
	"last_worked_at":null,"reply":"535 no"}]}]}`

func TestCredentials(t *testing.T) {
	api := newAPI(t, 200, credentialsBody)
	r := run(t, api.environ(), "credentials")
	if r.code != exitOK || api.last.URL.Path != "/v1/credentials" || api.last.Method != "GET" {
		t.Fatalf("%+v, %s", r, api.last.URL)
	}
	for _, part := range []string{"smtp", "fell_back", "the newest one expired", "file /run/secrets/smtp", "#2", "expired (from disk)", "version 2", "535 no", "when needed"} {
		if !strings.Contains(r.out, part) {
			t.Errorf("no %q in\n%s", part, r.out)
		}
	}
	if r = run(t, api.environ(), "credentials", "--json"); r.code != exitOK || !strings.Contains(r.out, `"health": "fell_back"`) {
		t.Errorf("%+v", r)
	}
	api.body = `{"items":[]}`
	if r = run(t, api.environ(), "credentials"); r.code != exitOK || !strings.HasPrefix(r.out, "no credentials") {
		t.Errorf("%+v", r)
	}
	if r = run(t, api.environ(), "credentials", "smtp"); r.code != exitUsage {
		t.Errorf("%+v", r)
	}
}

func TestTestCredential(t *testing.T) {
	api := newAPI(t, 200, `{"name":"a b","ok":true,"tests":[{"route":"smtp","ok":true}]}`)
	r := run(t, api.environ(), "credentials", "test", "a b")
	if r.code != exitOK || r.out != "signed in to smtp\n" || api.last.Method != "POST" || api.last.URL.EscapedPath() != "/v1/credentials/a%20b/test" {
		t.Errorf("%+v, %s", r, api.last.URL)
	}
	api.body = `{"name":"smtp","ok":false,"tests":[{"route":"smtp","ok":false,"error":"535 no"}]}`
	for _, flags := range [][]string{nil, {"--json"}} {
		if r = run(t, api.environ(), append([]string{"credentials", "test", "smtp"}, flags...)...); r.code != exitFailed || !strings.Contains(r.out, "535 no") ||
			!strings.Contains(r.err, "credential smtp does not work") {
			t.Errorf("%+v", r)
		}
	}
	api.body = `{"name":"smtp.token","ok":true,"tests":[{"route":"","ok":true}]}`
	if r = run(t, api.environ(), "credentials", "test", "smtp.token"); r.code != exitOK || r.out != "fetched; no route uses it\n" {
		t.Errorf("%+v", r)
	}
	api.status, api.body = 404, `{"title":"Not Found","detail":"There is no such thing."}`
	if r = run(t, api.environ(), "credentials", "test", "x"); r.code != exitRefused || !strings.Contains(r.err, "credential x: 404") {
		t.Errorf("%+v", r)
	}
	if r = run(t, api.environ(), "credentials", "test"); r.code != exitUsage {
		t.Errorf("%+v", r)
	}
}
