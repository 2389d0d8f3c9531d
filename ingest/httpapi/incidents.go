package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/stormpost/stormpost/internal/incident"
	"github.com/stormpost/stormpost/internal/keyring"
)

type incidentsInput struct {
	State  string `query:"state" enum:"open,resolved" doc:"Only those of this state."`
	Cursor string `query:"cursor" maxLength:"1024" doc:"A page's next, for the page after it."`
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"How many at most."`
}

type incidentView struct {
	ID         string     `json:"id" doc:"The incident's id."`
	State      string     `json:"state" enum:"open,resolved" doc:"It resolves by itself when its cause is gone."`
	Cause      string     `json:"cause" example:"stall/transactional.email" doc:"What it is about: KIND, or KIND/SUBJECT. A cause has at most one open incident."`
	Kind       string     `json:"kind" example:"stall" doc:"The sort of cause."`
	Severity   string     `json:"severity" enum:"critical,warning" doc:"critical: messages are late or not accepted."`
	Summary    string     `json:"summary" doc:"What is wrong, for people."`
	Lane       string     `json:"lane,omitempty" example:"transactional.email" doc:"CLASS.CHANNEL, if it is about one."`
	Count      int64      `json:"count" doc:"Messages affected, as far as is known."`
	OldestAge  float64    `json:"oldest_age_seconds" doc:"Age of the oldest of them, or since when a store is away."`
	ETA        *float64   `json:"eta_seconds" nullable:"true" doc:"Until it is over by itself; null if that is not known, or never."`
	Runbook    string     `json:"runbook" doc:"The section that helps."`
	Command    string     `json:"command" doc:"A command that helps."`
	OpenedAt   time.Time  `json:"opened_at" doc:"When it opened."`
	UpdatedAt  time.Time  `json:"updated_at" doc:"When its facts last changed."`
	ResolvedAt *time.Time `json:"resolved_at" nullable:"true" doc:"When it was over; null while it is open."`
}

func (a *api) registerIncidents() {
	example := incidentViewOf(&incident.Incident{
		ID: "inc_4jq2z6m5k7xw3r5tq2n7d6c4pa", Cause: "stall/transactional.email", Kind: incident.Stall, Severity: incident.Critical,
		Summary: "transactional.email: nothing moves, and 1200 messages wait, the oldest for 41s (objective 30s)",
		Lane:    "transactional.email", Count: 1200, OldestAge: 41.3, Runbook: "https://example.com/runbook.md#a-lanes-backlog-grows",
		Command:  "stormpost messages --state queued --class transactional --channel email",
		OpenedAt: exampleTime, UpdatedAt: exampleTime.Add(8 * time.Second),
	})
	huma.Register(a.huma, a.operation(huma.Operation{
		OperationID: "list-incidents", Method: http.MethodGet, Path: "/v1/incidents", Tags: []string{"Operate"},
		Summary:     "See what is wrong, newest first",
		Description: "Answers from this process's memory, also while PostgreSQL and Kafka are away. The last 200 are kept.",
		Security:    anyOf(keyring.Operator),
	}, page[incidentView]{Items: []incidentView{example}}), a.listIncidents)
}

func (a *api) listIncidents(ctx context.Context, in *incidentsInput) (*output[page[incidentView]], error) {
	found, err := a.Incidents.List(in.State, in.Cursor, in.Limit)
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	out := page[incidentView]{Items: make([]incidentView, len(found.Items)), Next: found.Next}
	for n := range found.Items {
		out.Items[n] = incidentViewOf(&found.Items[n])
	}
	return &output[page[incidentView]]{out}, nil
}

func incidentViewOf(i *incident.Incident) incidentView {
	return incidentView{
		ID: i.ID, State: i.State(), Cause: i.Cause, Kind: string(i.Kind), Severity: string(i.Severity), Summary: i.Summary, Lane: i.Lane,
		Count: i.Count, OldestAge: i.OldestAge, ETA: i.ETA, Runbook: i.Runbook, Command: i.Command,
		OpenedAt: i.OpenedAt, UpdatedAt: i.UpdatedAt, ResolvedAt: i.ResolvedAt,
	}
}
