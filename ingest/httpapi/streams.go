package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

type auditInput struct {
	Name   string `path:"name" example:"codes" doc:"The stream's name."`
	Tenant int32  `query:"tenant" minimum:"0" doc:"For operators: whose stream, by default the key's own tenant."`
	From   int64  `query:"from" minimum:"0" doc:"From this number on, by default the first."`
	To     int64  `query:"to" minimum:"0" doc:"Up to this number, by default the last."`
}

type auditView struct {
	Stream  string                  `json:"stream" doc:"The stream's name."`
	First   int64                   `json:"first" doc:"1, or the first number that retention has left; 0 when there is none."`
	Last    int64                   `json:"last" doc:"The last number given out."`
	From    int64                   `json:"from" doc:"The first number that this answer looked at."`
	To      int64                   `json:"to" doc:"The last number that this answer looked at."`
	Next    int64                   `json:"next" doc:"from of the request that goes on; 0 when all that was asked for was looked at."`
	Missing []rangeView             `json:"missing" doc:"Numbers from from to to that no message has, the first 1,000 ranges. There should be none."`
	States  map[message.State]int64 `json:"states" doc:"How many messages from from to to are in each state."`
}

type rangeView struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

func (a *api) registerStreams() {
	huma.Register(a.huma, a.operation(huma.Operation{
		OperationID: "audit-stream", Method: http.MethodGet, Path: "/v1/streams/{name}/audit", Tags: []string{"Streams"},
		Summary: "Prove a stream complete, in as many answers as that takes", Security: anyOf(keyring.Read, keyring.Operator),
	}, auditView{
		Stream: "codes", First: 1, Last: 250, From: 1, To: 250, Missing: []rangeView{},
		States: map[message.State]int64{message.StateSent: 248, message.StateQueued: 2},
	}, http.StatusNotFound), a.auditStream)
}

func (a *api) auditStream(ctx context.Context, in *auditInput) (*output[auditView], error) {
	p := principalOf(ctx)
	tenant, err := visible(p, in.Tenant)
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	if tenant == 0 {
		tenant = p.Tenant // a name means something within a tenant alone
	}
	if tenant == 0 {
		return nil, a.problem(ctx, message.FieldErrors{{Field: "tenant", Problem: "is required for this key"}})
	}
	if in.To != 0 && in.To < in.From {
		return nil, a.problem(ctx, message.FieldErrors{{Field: "to", Problem: "is below from"}})
	}
	found, err := a.Ledger.AuditPart(ctx, tenant, in.Name, message.Range{From: in.From, To: in.To})
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	out := auditView{
		Stream: found.Stream, First: found.First, Last: found.Last, From: found.From, To: found.To, Next: found.Next,
		Missing: []rangeView{}, States: found.States,
	}
	for _, r := range found.Missing {
		out.Missing = append(out.Missing, rangeView(r))
	}
	if out.States == nil {
		out.States = map[message.State]int64{}
	}
	return &output[auditView]{out}, nil
}
