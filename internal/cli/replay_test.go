package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestReplayRefusesWhatIsUnclear(t *testing.T) {
	a := newAPI(t, 200, `{}`)
	for _, args := range [][]string{
		{}, {"--reason", "r"}, {"--lane", "x"}, {"--lane", "x", "--all", "--reason", "r"}, {"lst"}, {"msg_1"}, {"msg_1", "--all", "--reason", "r"},
		{"msg_1", "--rate", "3", "--reason", "r"}, {"--since", "noon", "--reason", "r"}, {"show", "x"}, {"pause"}, {"cancel", "07"},
	} {
		if r := run(t, a.environ(), append([]string{"replay"}, args...)...); r.code != exitUsage || r.err == "" {
			t.Errorf("%v: %+v", args, r)
		}
	}
	if a.last != nil {
		t.Errorf("asked %s", a.last.URL)
	}
}

// A dry run of several parts is added up.
func TestReplayDryRun(t *testing.T) {
	var asked []string
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked = append(asked, string(body))
		next := ""
		if len(asked) == 1 {
			next = "c2"
		}
		fmt.Fprintf(w, `{"dry_run":true,"to_send":5,"sample":[{"id":"msg_%d"}],"left_out":{"sent":{"count":3,"why":"it was sent","sample":[{"id":"msg_s"}]}},"next":%q}`, len(asked), next)
	}))
	defer api.Close()
	env := []string{"STORMPOST_API=" + api.URL, "STORMPOST_API_KEY=k"}
	r := run(t, env, "replay", "--lane", "trigger.push", "--tag", "a", "--dry-run")
	if r.code != exitOK || !strings.Contains(r.out, "10 messages would be sent") || !strings.Contains(r.out, "msg_1") || !strings.Contains(r.out, "6 not, sent: it was sent") || !strings.Contains(r.out, "msg_s") {
		t.Errorf("%+v", r)
	}
	sameJSON(t, asked[1], `{"filter":{"lane":"trigger.push","tag":"a"},"dry_run":true,"cursor":"c2"}`)
	r = run(t, env, "replay", "--all", "--dry-run", "--json")
	if r.code != exitOK || !strings.Contains(r.out, `"to_send": 5`) {
		t.Errorf("%+v", r)
	}
}

// A replay is followed to its end; what happens here doesn't stop it.
func TestReplayIsFollowed(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var asked []string
	interrupt := false
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked = append(asked, r.Method+" "+r.URL.Path+" "+string(body))
		status, given := "running", 5
		if len(asked) == 3 && !interrupt {
			w.WriteHeader(503)
			return
		}
		if len(asked) > 3 {
			status, given = "done", 10
		}
		if interrupt && len(asked) == 2 {
			cancel()
		}
		fmt.Fprintf(w, `{"id":7,"status":%q,"given":%d,"to_send":10,"eta_seconds":61,"rate":9,"by":"k","reason":"r","filter":{"lane":"trigger.push"},"left_out":{"sent":{"count":3,"why":"it was sent"}}}`, status, given)
	}))
	defer api.Close()
	var out, err strings.Builder
	env := Env{In: strings.NewReader(""), Out: &out, Err: &err, Environ: []string{"STORMPOST_API=" + api.URL, "STORMPOST_API_KEY=k"}}
	code := Run(ctx, []string{"replay", "--lane", "trigger.push", "--rate", "9", "--reason", "r"}, env)
	if code != exitOK || !strings.Contains(err.String(), "[###############...............] 5 of 10 given, about 1m1s left") || !strings.Contains(err.String(), "doesn't answer") ||
		!strings.Contains(out.String(), "replay 7 is done: 10 of 10 given, --lane trigger.push, by k: r") || !strings.Contains(out.String(), "3 not, sent") {
		t.Errorf("%d\n%s\n%s", code, out.String(), err.String())
	}
	sameJSON(t, strings.TrimPrefix(asked[0], "POST /v1/replays "), `{"filter":{"lane":"trigger.push"},"rate":9,"reason":"r"}`)

	asked, interrupt = nil, true
	out.Reset()
	err.Reset()
	if code := Run(ctx, []string{"replay", "--all", "--reason", "r"}, env); code != exitOK || !strings.Contains(err.String(), "replay 7 goes on without this command") || len(asked) != 2 {
		t.Errorf("%d %v\n%s", code, asked, err.String())
	}
}

// One message is named with the attempt that was seen last.
func TestReplayOfOne(t *testing.T) {
	var asked []string
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked = append(asked, r.Method+" "+r.URL.Path+" "+string(body))
		_, _ = io.WriteString(w, `{"id":7,"attempts":[{"number":1},{"number":2}]}`)
	}))
	defer api.Close()
	env := []string{"STORMPOST_API=" + api.URL, "STORMPOST_API_KEY=k"}
	r := run(t, env, "replay", "msg_1", "--reason", "r", "--json")
	if r.code != exitOK || len(asked) != 2 {
		t.Fatalf("asked %v: %+v", asked, r)
	}
	sameJSON(t, strings.TrimPrefix(asked[1], "POST /v1/replays "), `{"id":"msg_1","attempt":2,"reason":"r"}`)
}
