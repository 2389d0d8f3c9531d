package httpapi_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/ingest/httpapi"
	"github.com/stormpost/stormpost/internal/incident"
	"github.com/stormpost/stormpost/internal/message"
)

func TestIncidents(t *testing.T) {
	now := time.Now()
	e := incident.New(incident.Config{Now: func() time.Time { return now }, Runbook: "https://example.com/r"})
	seen := []incident.Condition{
		{Kind: incident.Stall, Subject: "trigger.push", Lane: "trigger.push", Summary: "slow", Count: 9, ETA: time.Minute, Severity: incident.Warning},
		{Kind: incident.LedgerAway, Summary: "away", ETA: -1},
	}
	for range 5 {
		e.Observe(seen, nil)
		now = now.Add(time.Second)
	}
	for range 20 {
		e.Observe(seen[1:], nil)
		now = now.Add(time.Second)
	}
	f := newFixture(t, func(c *httpapi.Config) { c.Incidents = e })
	f.fail = message.ErrUnavailable // no answer of the ledger is needed

	type view struct {
		ID, State, Cause, Kind, Severity, Summary, Lane, Runbook, Command string
		Count                                                             int64
		ETA                                                               *float64   `json:"eta_seconds"`
		OpenedAt                                                          time.Time  `json:"opened_at"`
		ResolvedAt                                                        *time.Time `json:"resolved_at"`
	}
	type list struct {
		Items []view
		Next  string
	}
	if l := decodeInto[list](t, f.do("GET", "/v1/incidents", "operator", ""), 200); len(l.Items) != 2 {
		t.Errorf("%+v", l)
	}
	open := decodeInto[list](t, f.do("GET", "/v1/incidents?state=open", "operator", ""), 200)
	if len(open.Items) != 1 || open.Items[0].Cause != "ledger_away" || open.Items[0].ResolvedAt != nil || open.Items[0].ETA != nil || open.Items[0].OpenedAt.IsZero() {
		t.Errorf("%+v", open)
	}
	over := decodeInto[list](t, f.do("GET", "/v1/incidents?state=resolved", "operator", ""), 200)
	if len(over.Items) != 1 {
		t.Fatalf("%+v", over)
	}
	if i := over.Items[0]; i.Cause != "stall/trigger.push" || i.Kind != "stall" || i.State != "resolved" || i.Severity != "warning" || i.Lane != "trigger.push" ||
		i.Count != 9 || i.ETA == nil || *i.ETA != 60 || i.ResolvedAt == nil || !strings.HasPrefix(i.Runbook, "https://example.com/r#") || i.Command == "" {
		t.Errorf("%+v", i)
	}
	first := decodeInto[list](t, f.do("GET", "/v1/incidents?limit=1", "operator", ""), 200)
	second := decodeInto[list](t, f.do("GET", "/v1/incidents?limit=1&cursor="+first.Next, "operator", ""), 200)
	if len(first.Items) != 1 || len(second.Items) != 1 || first.Items[0].ID == second.Items[0].ID || second.Next != "" {
		t.Errorf("%+v, %+v", first, second)
	}
	wantProblem(t, f.do("GET", "/v1/incidents?state=bad", "operator", ""), 422, "state")
	wantProblem(t, f.do("GET", "/v1/incidents?limit=0", "operator", ""), 422, "limit")
	wantProblem(t, f.do("GET", "/v1/incidents?cursor=x", "operator", ""), 422, "cursor")
	wantProblem(t, f.do("GET", "/v1/incidents?sate=open", "operator", ""), 422, "sate")
	wantProblem(t, f.do("GET", "/v1/incidents", "one", ""), 403)
	wantProblem(t, f.do("GET", "/v1/incidents", "", ""), 401)
}
