package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/keyring"
)

// Credentials is what this process signs in with.
type Credentials interface {
	List() []credential.Status
	// Test signs in wherever the credential is used, and hands nothing over.
	Test(ctx context.Context, name string) (tests []CredentialTest, found bool)
}

// CredentialTest is how signing in on one route ended.
type CredentialTest struct {
	Route string // empty: no route uses it, so it was only fetched
	Err   error  // nil: it works
}

type credentialView struct {
	Name        string           `json:"name" example:"smtp" doc:"Its name in the configuration; NAME.FIELD is a secret that another one is made with."`
	Source      string           `json:"source" example:"file /run/secrets/smtp" doc:"Where it comes from."`
	Health      string           `json:"health" enum:"working,unproven,expiring_soon,refresh_failing,fell_back,rejected,missing" doc:"How it is doing. unproven: no service has accepted it yet. fell_back: the last good one is used instead of the newest. missing: there is none that may work."`
	Trouble     string           `json:"trouble,omitempty" doc:"What is wrong, for people."`
	ExpiresAt   *time.Time       `json:"expires_at" nullable:"true" doc:"When what is in use ends; null if that is not known."`
	LastUsed    *time.Time       `json:"last_used_at" nullable:"true" doc:"When it was last taken to sign in with."`
	LastWorked  *time.Time       `json:"last_worked_at" nullable:"true" doc:"When a service last accepted it."`
	Refreshed   *time.Time       `json:"refreshed_at" nullable:"true" doc:"When its source last answered."`
	NextRefresh *time.Time       `json:"next_refresh_at" nullable:"true" doc:"When its source is asked next; null: when that is needed."`
	Refreshes   int64            `json:"refreshes" doc:"How often this process has asked its source."`
	Rejections  int64            `json:"rejections" doc:"How often a service refused it in this process."`
	Generations []generationView `json:"generations" doc:"What the source gave, newest first. No secret is shown."`
}

type generationView struct {
	Number     int        `json:"number" doc:"Counts from 1 in this process."`
	State      string     `json:"state" enum:"current,candidate,spare,older,rejected,expired,early" doc:"candidate: newer than what is in use, and not proved yet."`
	Label      string     `json:"label,omitempty" example:"version 7" doc:"The source's name for it: a version, a key id."`
	Kept       bool       `json:"kept" doc:"It is from disk, where an earlier process kept it (secrets.safe): the source has not given it to this one."`
	Received   time.Time  `json:"received_at" doc:"When the source gave it."`
	ValidFrom  *time.Time `json:"valid_from" nullable:"true" doc:"Null: at once."`
	ExpiresAt  *time.Time `json:"expires_at" nullable:"true" doc:"Null if that is not known."`
	LastWorked *time.Time `json:"last_worked_at" nullable:"true" doc:"When a service last accepted it."`
	Reply      string     `json:"reply,omitempty" doc:"What the service said when it refused it."`
}

type credentialTestView struct {
	Route string `json:"route" doc:"The provider that was signed in to; empty: none uses the credential, so it was only fetched."`
	OK    bool   `json:"ok" doc:"It works."`
	Error string `json:"error,omitempty" doc:"Why it doesn't, for people."`
}

type credentialTests struct {
	Name  string               `json:"name" doc:"The credential's name."`
	OK    bool                 `json:"ok" doc:"It works on every route."`
	Tests []credentialTestView `json:"tests" doc:"One for each route."`
}

func (a *api) registerCredentials() {
	example := credentialViewOf(credential.Status{
		Name: "smtp", Source: "file /run/secrets/smtp", Health: credential.Working, LastUse: exampleTime, LastOK: exampleTime, LastRefresh: exampleTime,
		Refreshes: 412, Generations: []credential.GenerationStatus{{Number: 1, State: "current", Got: exampleTime, LastOK: exampleTime}},
	})
	huma.Register(a.huma, a.operation(huma.Operation{
		OperationID: "list-credentials", Method: http.MethodGet, Path: "/v1/credentials", Tags: []string{"Operate"},
		Summary: "See what this process signs in with, and how that is doing",
		Description: "Passwords, tokens and keys by their names and generations, without any secret. Each process knows its own: " +
			"one without the role worker has none.",
		Security: anyOf(keyring.Operator),
	}, page[credentialView]{Items: []credentialView{example}}), a.listCredentials)
	huma.Register(a.huma, a.operation(huma.Operation{
		OperationID: "test-credential", Method: http.MethodPost, Path: "/v1/credentials/{name}/test", Tags: []string{"Operate"},
		Summary:     "Sign in with a credential, now",
		Description: "Signs in wherever the credential is used, and hands nothing over.",
		Security:    anyOf(keyring.Operator),
	}, credentialTests{Name: "smtp", OK: true, Tests: []credentialTestView{{Route: "smtp", OK: true}}}, http.StatusNotFound), a.testCredential)
}

func (a *api) listCredentials(context.Context, *struct{}) (*output[page[credentialView]], error) {
	out := page[credentialView]{Items: []credentialView{}}
	if a.Credentials != nil {
		for _, s := range a.Credentials.List() {
			out.Items = append(out.Items, credentialViewOf(s))
		}
	}
	return &output[page[credentialView]]{out}, nil
}

type testCredentialInput struct {
	Name string `path:"name" maxLength:"100" doc:"The credential's name."`
}

func (a *api) testCredential(ctx context.Context, in *testCredentialInput) (*output[credentialTests], error) {
	var tests []CredentialTest
	found := false
	if a.Credentials != nil {
		tests, found = a.Credentials.Test(ctx, in.Name)
	}
	if !found {
		return nil, notFound()
	}
	out := credentialTests{Name: in.Name, OK: true}
	for _, t := range tests {
		v := credentialTestView{Route: t.Route, OK: t.Err == nil}
		if t.Err != nil {
			v.Error, out.OK = t.Err.Error(), false
		}
		out.Tests = append(out.Tests, v)
	}
	return &output[credentialTests]{out}, nil
}

func credentialViewOf(s credential.Status) credentialView {
	v := credentialView{
		Name: s.Name, Source: s.Source, Health: string(s.Health), Trouble: s.Trouble, ExpiresAt: known(s.Expires), LastUsed: known(s.LastUse),
		LastWorked: known(s.LastOK), Refreshed: known(s.LastRefresh), NextRefresh: known(s.NextRefresh), Refreshes: s.Refreshes, Rejections: s.Rejections,
		Generations: make([]generationView, len(s.Generations)),
	}
	for i, g := range s.Generations {
		v.Generations[i] = generationView{
			Number: g.Number, State: g.State, Label: g.Label, Kept: g.Kept, Received: g.Got.UTC(), ValidFrom: known(g.NotBefore), ExpiresAt: known(g.Expires),
			LastWorked: known(g.LastOK), Reply: g.Why,
		}
	}
	return v
}

// known is nil for no time.
func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return new(t.UTC())
}
