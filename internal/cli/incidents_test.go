package cli

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const incidentsBody = `{"items":[{"id":"inc_x","state":"open","cause":"stall/transactional.email","severity":"critical",
	"summary":"nothing moves","runbook":"https://example.com/r#a","command":"stormpost messages","opened_at":"2026-01-02T03:04:05Z"}],"next":"1-inc_x"}`

func TestIncidents(t *testing.T) {
	api := newAPI(t, 200, incidentsBody)
	r := run(t, api.environ(), "incidents", "--limit", "7", "--cursor", "2-inc_y")
	if r.code != exitOK || api.last.URL.Path != "/v1/incidents" || api.last.URL.RawQuery != "cursor=2-inc_y&limit=7&state=open" {
		t.Fatalf("%+v, %s", r, api.last.URL)
	}
	for _, part := range []string{"stall/transactional.email", "critical, open", "nothing moves", "https://example.com/r#a", "stormpost messages", "--cursor 1-inc_x"} {
		if !strings.Contains(r.out, part) {
			t.Errorf("no %q in\n%s", part, r.out)
		}
	}
	r = run(t, api.environ(), "incidents", "--state", "all", "--json")
	var page struct{ Items []incidentAnswer }
	if err := json.Unmarshal([]byte(r.out), &page); err != nil || len(page.Items) != 1 || api.last.URL.Query().Has("state") {
		t.Errorf("%+v, %v, %s", r, err, api.last.URL)
	}
	api.body = `{"items":[]}`
	if r = run(t, api.environ(), "incidents"); r.code != exitOK || r.out != "no open incidents\n" {
		t.Errorf("%+v", r)
	}
	for _, bad := range [][]string{{"--state", "shut"}, {"--limit", "0"}, {"--limit", "201"}} {
		if r := run(t, api.environ(), append([]string{"incidents"}, bad...)...); r.code != exitUsage || !strings.Contains(r.err, bad[0]) {
			t.Errorf("%v: %+v", bad, r)
		}
	}
	api.status, api.body = 403, `{"title":"Forbidden","detail":"This API key doesn't allow that."}`
	if r := run(t, api.environ(), "incidents"); r.code != exitRefused {
		t.Errorf("%+v", r)
	}
}

// TestIncidentsOfDev: beside a running dev it needs no key.
func TestIncidentsOfDev(t *testing.T) {
	api := newAPI(t, 200, incidentsBody)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "dev.json"), []byte(`{"api":"`+api.URL+`","api_key":"plain","operator_key":"oper"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := run(t, nil, "incidents", "--data", dir); r.code != exitOK || api.last.Header.Get("Authorization") != "Bearer oper" {
		t.Errorf("%+v, %v", r, api.last.Header)
	}
}

// TestIncidentsWatch: it goes on while the API is away, until it is interrupted.
func TestIncidentsWatch(t *testing.T) {
	api := newAPI(t, 503, `{}`)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var out, errs strings.Builder
	code := Run(ctx, []string{"incidents", "--watch"}, Env{In: strings.NewReader(""), Out: &out, Err: &errs, Environ: api.environ()})
	if code != exitOK || strings.Count(errs.String(), "503") < 2 {
		t.Errorf("exit %d\n%s", code, errs.String())
	}
}
