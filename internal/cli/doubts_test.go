package cli

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestDoubts(t *testing.T) {
	const doubt = `{"id":"msg_1","attempt":1,"cause":"unknown","since":"2026-01-02T15:04:05Z","provider":"smtp","message":{"stream":"codes","sequence":3,"class":"trigger","channel":"push","to":"tok"}}`
	a := newAPI(t, 200, `{"items":[`+doubt+`],"next":"c2"}`)
	r := run(t, a.environ(), "doubts", "list", "--limit", "7", "--cursor", "c1")
	if r.code != exitOK || !strings.Contains(r.out, "codes/3") || !strings.Contains(r.out, "--cursor c2") || a.last.URL.String() != "/v1/doubts?cursor=c1&limit=7" {
		t.Errorf("%+v %s", r, a.last.URL)
	}
	if r := run(t, a.environ(), "doubts"); r.code != exitOK || !strings.Contains(r.out, "codes/3") {
		t.Errorf("%+v", r)
	}
	a.body = `{"id":"msg_1","decision":"sent","reason":"r","by":"k"}`
	r = run(t, a.environ(), "doubts", "decide", "msg_1", "--decision", "sent", "--reason", "r", "--attempt", "2", "--json")
	if r.code != exitOK || a.last.Method != http.MethodPost || a.last.URL.Path != "/v1/doubts/msg_1" {
		t.Errorf("%+v %s", r, a.last.URL)
	}
	sameJSON(t, a.sent, `{"decision":"sent","reason":"r","attempt":2}`)
	sameJSON(t, r.out, a.body)

	a.body = `{"dry_run":true,"matched":3,"lanes":{"trigger.push":3},"causes":{"unknown":3},"sample":[` + doubt + `],"by":"k"}`
	r = run(t, a.environ(), "doubts", "decide", "--lane", "trigger.push", "--tenant", "7", "--provider", "fcm", "--since", "2026-01-02T15:00:00Z",
		"--decision", "drop", "--reason", "r", "--dry-run")
	if r.code != exitOK || !strings.Contains(r.out, "3 doubts would be decided as drop") || !strings.Contains(r.out, "msg_1") || a.last.URL.Path != "/v1/doubts" {
		t.Errorf("%+v", r)
	}
	sameJSON(t, a.sent, `{"filter":{"lane":"trigger.push","provider":"fcm","tenant":7,"since":"2026-01-02T15:00:00Z"},"decision":"drop","reason":"r","dry_run":true}`)

	for _, args := range [][]string{{}, {"msg_1", "--all"}, {"msg_1", "--dry-run"}, {"--all", "--lane", "x"}, {"--since", "noon"}, {"--all", "--attempt", "1"}} {
		args = append([]string{"doubts", "decide", "--decision", "drop", "--reason", "r"}, args...)
		if r := run(t, a.environ(), args...); r.code != exitUsage {
			t.Errorf("%v: %+v", args, r)
		}
	}
	if r := run(t, a.environ(), "doubts", "decide", "msg_1", "--decision", "drop"); r.code != exitUsage || !strings.Contains(r.err, "reason") {
		t.Errorf("%+v", r)
	}
}

// More than one answer can decide is decided all the same.
func TestDecideManyGoesOn(t *testing.T) {
	calls := 0
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		body, _ := io.ReadAll(r.Body)
		if !strings.Contains(string(body), `"all":true`) || strings.Contains(string(body), "filter") {
			t.Errorf("asked %s", body)
		}
		fmt.Fprintf(w, `{"matched":%d,"decided":10,"more":%t,"by":"k"}`, 30-10*calls, calls < 3)
	}))
	defer api.Close()
	r := run(t, []string{"STORMPOST_API=" + api.URL, "STORMPOST_API_KEY=k"}, "doubts", "decide", "--all", "--decision", "resend", "--reason", "r")
	if r.code != exitOK || calls != 3 || !strings.Contains(r.out, "30 doubts decided: resend") {
		t.Errorf("%d calls, %+v", calls, r)
	}
}
