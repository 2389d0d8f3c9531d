package cli

import (
	"net/http"
	"strings"
	"testing"
)

func TestSuppressions(t *testing.T) {
	const s = `{"id":7,"channel":"email","to":"ann@reader.example","reason":"complained","provider":"ses","at":"2026-01-02T15:04:05Z"}`
	a := newAPI(t, 200, `{"items":[`+s+`],"next":"k2"}`)
	r := run(t, a.environ(), "suppressions", "list", "--channel", "email", "--to", "Ann <ann@reader.example>", "--tenant", "3")
	q := a.last.URL.Query()
	if r.code != exitOK || a.last.Method != http.MethodGet || a.last.URL.Path != "/v1/suppressions" || q.Get("channel") != "email" ||
		q.Get("to") != "Ann <ann@reader.example>" || q.Get("tenant") != "3" || q.Get("limit") != "50" {
		t.Errorf("%+v %s", r, a.last.URL)
	}
	for _, want := range []string{"7", "ann@reader.example", "complained", "ses", "--cursor k2"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("without %s: %s", want, r.out)
		}
	}
	r = run(t, a.environ(), "suppressions", "list", "--json")
	sameJSON(t, r.out, a.body)
	a.body = `{"items":[]}`
	if r := run(t, a.environ(), "suppressions", "list"); r.code != exitOK || r.out != "nobody is suppressed\n" {
		t.Errorf("%+v", r)
	}
	a.body = s
	r = run(t, a.environ(), "suppressions", "clear", "7")
	if r.code != exitOK || r.out != "suppression 7: ann@reader.example is off the list\n" || a.last.Method != http.MethodDelete || a.last.URL.Path != "/v1/suppressions/7" {
		t.Errorf("%+v %s", r, a.last.URL)
	}
	r = run(t, a.environ(), "suppressions", "clear", "7", "8", "--json")
	sameJSON(t, r.out, `{"items":[`+s+`,`+s+`]}`)
	a.status, a.body = 404, `{"title":"Not Found","status":404,"code":"not_found","detail":"There is none."}`
	if r := run(t, a.environ(), "suppressions", "clear", "9"); r.code == exitOK || !strings.Contains(r.err, "suppression 9") {
		t.Errorf("%+v", r)
	}
	for _, args := range [][]string{
		{"suppressions"}, {"suppressions", "clear"}, {"suppressions", "clear", "x"}, {"suppressions", "clear", "0"},
		{"suppressions", "list", "--channel", "sms"}, {"suppressions", "list", "--limit", "0"}, {"suppressions", "list", "x"},
	} {
		if r := run(t, a.environ(), args...); r.code != exitUsage {
			t.Errorf("%v: %+v", args, r)
		}
	}
}
