package cli

import (
	"net/http"
	"strings"
	"testing"
)

func TestHoldAndRelease(t *testing.T) {
	const hold = `{"id":7,"tenant":3,"reason":"r","by":"k","at":"2026-01-02T15:04:05Z","aside":12}`
	a := newAPI(t, 200, hold)
	r := run(t, a.environ(), "hold", "--tenant", "3", "--reason", "r")
	if r.code != exitOK || r.out != "hold 7: tenant 3 is held\n" || a.last.Method != http.MethodPost || a.last.URL.Path != "/v1/holds" {
		t.Errorf("%+v %s", r, a.last.URL)
	}
	sameJSON(t, a.sent, `{"tenant":3,"reason":"r"}`)
	r = run(t, a.environ(), "release", "7", "--json")
	if r.code != exitOK || a.last.Method != http.MethodDelete || a.last.URL.Path != "/v1/holds/7" {
		t.Errorf("%+v %s", r, a.last.URL)
	}
	sameJSON(t, r.out, hold)
	a.body = `{"id":8,"tenant":3,"tag":"sale"}`
	if r := run(t, a.environ(), "hold", "--tag", "sale", "--tenant", "3", "--reason", "r"); r.out != "hold 8: tag sale of tenant 3 is held\n" {
		t.Errorf("%+v", r)
	}
	sameJSON(t, a.sent, `{"tag":"sale","tenant":3,"reason":"r"}`)
	a.body = `{"items":[` + hold + `]}`
	if r := run(t, a.environ(), "hold", "list"); r.code != exitOK || !strings.Contains(r.out, "tenant 3") || !strings.Contains(r.out, "12") {
		t.Errorf("%+v", r)
	}
	a.body = one
	r = run(t, a.environ(), "release", "msg_1", "--reason", "r")
	if r.code != exitOK || a.last.Method != http.MethodPost || a.last.URL.Path != "/v1/messages/msg_1/release" {
		t.Errorf("%+v %s", r, a.last.URL)
	}
	sameJSON(t, a.sent, `{"reason":"r"}`)
	for _, args := range [][]string{
		{"hold", "--reason", "r"}, {"hold", "--lane", "x", "--tenant", "3", "--reason", "r"}, {"hold", "--lane", "x"},
		{"hold", "--lane", "x", "--tag", "sale", "--reason", "r"},
		{"release"}, {"release", "msg_1"}, {"release", "7", "--reason", "r"},
	} {
		if r := run(t, a.environ(), args...); r.code != exitUsage {
			t.Errorf("%v: %+v", args, r)
		}
	}
}
