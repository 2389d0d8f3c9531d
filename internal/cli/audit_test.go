package cli

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestAuditOfAStream(t *testing.T) {
	var asked []string
	second := `{"stream":"s","first":1,"last":9,"from":6,"to":8,"next":0,"missing":[],"states":{"sent":2,"queued":1}}`
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.String())
		if r.URL.Query().Get("from") == "" {
			fmt.Fprint(w, `{"stream":"s","first":1,"last":8,"from":1,"to":5,"next":6,"missing":[],"states":{"sent":5}}`)
			return
		}
		fmt.Fprint(w, second)
	}))
	defer api.Close()
	environ := []string{"STORMPOST_API=" + api.URL, "STORMPOST_API_KEY=k"}
	r := run(t, environ, "audit", "--stream", "s", "--tenant", "7", "--json")
	if r.code != exitOK || r.err != "" {
		t.Errorf("%+v", r)
	}
	sameJSON(t, r.out, `{"stream":"s","first":1,"last":8,"from":1,"to":8,"next":0,"missing":[],"states":{"sent":7,"queued":1}}`)
	// It asks for what there was at first, and no more.
	if want := "/v1/streams/s/audit?tenant=7 /v1/streams/s/audit?from=6&tenant=7&to=8"; strings.Join(asked, " ") != want {
		t.Errorf("asked %s, want %s", asked, want)
	}
	second = `{"stream":"s","first":1,"last":9,"from":6,"to":8,"next":0,"missing":[{"from":7,"to":7}],"states":{"sent":2}}`
	if r := run(t, environ, "audit", "--stream", "s"); r.code != exitFailed || !strings.Contains(r.out, "7 to 7") || !strings.Contains(r.err, "missing") {
		t.Errorf("%+v", r)
	}
	second = `{"stream":"s","first":1,"last":9,"from":6,"to":8,"next":0,"missing":[],"states":{"sent":2}}`
	if r := run(t, environ, "audit", "--stream", "s"); r.code != exitFailed {
		t.Errorf("a state too few: %+v", r)
	}
	second = `{"stream":"s","first":1,"last":9,"from":6,"to":8,"next":6,"missing":[],"states":{}}`
	if r := run(t, environ, "audit", "--stream", "s"); r.code != exitFailed || !strings.Contains(r.err, "goes back") {
		t.Errorf("an answer without end: %+v", r)
	}
}

func TestAuditOfLanes(t *testing.T) {
	const good = `{"done":1,"total":9}
{"audit":{"total":{"lane":"all","accepted":9,"sent":7,"queued":2,"adds_up":true},"lanes":[{"lane":"trigger.push","accepted":9,"sent":7,"queued":2,"adds_up":true}]}}`
	a := newAPI(t, 200, good)
	r := run(t, a.environ(), "audit", "--lane", "trigger.push")
	if r.code != exitOK || !strings.Contains(r.out, "trigger.push") || a.last.URL.String() != "/v1/audit?lane=trigger.push" {
		t.Errorf("%+v %s", r, a.last.URL)
	}
	a.body = strings.ReplaceAll(good, `"adds_up":true`, `"adds_up":true,"parked":4321`)
	if r := run(t, a.environ(), "audit", "--all"); r.code != exitOK || !strings.Contains(r.out, "PARKED\n") || strings.Count(r.out, " 4321\n") != 2 {
		t.Errorf("parked: %+v", r)
	}
	a.body = strings.ReplaceAll(good, `"adds_up":true`, `"adds_up":false`)
	if r := run(t, a.environ(), "audit", "--all", "--json"); r.code != exitFailed || !strings.Contains(r.out, `"adds_up": false`) || a.last.URL.String() != "/v1/audit" {
		t.Errorf("%+v %s", r, a.last.URL)
	}
	a.body = `{"error":{"status":503,"detail":"Try again."}}`
	if r := run(t, a.environ(), "audit", "--all"); r.code != exitUnavailable || !strings.Contains(r.err, "Try again") {
		t.Errorf("%+v", r)
	}
	a.body = `{"done":1,"total":9}`
	if r := run(t, a.environ(), "audit", "--all"); r.code != exitFailed || !strings.Contains(r.err, "can't be read") {
		t.Errorf("cut short: %+v", r)
	}
	for _, args := range [][]string{{"audit"}, {"audit", "--all", "--lane", "x"}, {"audit", "--all", "--stream", "x"}} {
		if r := run(t, a.environ(), args...); r.code != exitUsage {
			t.Errorf("%v: %+v", args, r)
		}
	}
}
