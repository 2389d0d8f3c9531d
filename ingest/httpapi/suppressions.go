package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

type suppressionsInput struct {
	Channel string `query:"channel" enum:"email,push" doc:"Those of this channel."`
	To      string `query:"to" maxLength:"4096" doc:"That of this recipient: a token, an endpoint, or an address in any case, with or without a name."`
	Cursor  string `query:"cursor" maxLength:"64" doc:"A page's next, for the page after it."`
	Limit   int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"How many at most."`
	Tenant  int32  `query:"tenant" minimum:"0" doc:"For operators: those of this tenant."`
}

type suppressionID struct {
	ID int64 `path:"id" minimum:"1" example:"7" doc:"The suppression's id."`
}

type suppressionView struct {
	ID        int64     `json:"id" doc:"Names the suppression."`
	Tenant    int32     `json:"tenant,omitempty" doc:"Whose it is; for operators."`
	Channel   string    `json:"channel" doc:"email or push."`
	To        string    `json:"to" doc:"The recipient: a token, an endpoint, or an address in lower case."`
	Reason    string    `json:"reason" doc:"Why: recipient_gone or complained."`
	Provider  string    `json:"provider,omitempty" doc:"Who said so."`
	At        time.Time `json:"at" doc:"Since when."`
	ClearedBy string    `json:"cleared_by,omitempty" doc:"Who took it off the list."`
	ClearedAt time.Time `json:"cleared_at,omitzero" doc:"When."`
}

func (a *api) registerSuppressions() {
	example := suppressionView{ID: 7, Channel: "push", To: "00fc13adff785122", Reason: message.RecipientGone, Provider: "apns", At: exampleTime}
	huma.Register(a.huma, a.operation(huma.Operation{
		OperationID: "list-suppressions", Method: http.MethodGet, Path: "/v1/suppressions", Tags: []string{"Messages"},
		Summary: "List recipients that are suppressed, newest first", Security: anyOf(keyring.Read, keyring.Operator),
		Description: "A recipient that a provider says is gone, or that complained, is suppressed: messages to it are refused with 422, " +
			"from some seconds later on, unless they set bypass_suppression.",
	}, page[suppressionView]{Items: []suppressionView{example}}), a.listSuppressions)
	example.ClearedBy, example.ClearedAt = "acme key k3v9x2ab", exampleTime.Add(time.Hour)
	huma.Register(a.huma, a.operation(huma.Operation{
		OperationID: "clear-suppression", Method: http.MethodDelete, Path: "/v1/suppressions/{id}", Tags: []string{"Messages"},
		Summary: "Take a recipient off the list", Security: anyOf(keyring.Send, keyring.Operator),
	}, example, http.StatusNotFound), a.clearSuppression)
}

func (a *api) listSuppressions(ctx context.Context, in *suppressionsInput) (*output[page[suppressionView]], error) {
	p := principalOf(ctx)
	tenant, err := visible(p, in.Tenant)
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	f := message.SuppressionFilter{Tenant: tenant, Recipient: in.To, Cursor: in.Cursor, Limit: in.Limit}
	if in.Channel != "" {
		if f.Channel, err = message.ParseChannel(in.Channel); err != nil {
			return nil, a.problem(ctx, message.FieldErrors{{Field: "channel", Problem: err.Error()}})
		}
	}
	found, err := a.Ledger.Suppressions(ctx, f)
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	out := page[suppressionView]{Items: make([]suppressionView, len(found.Items)), Next: found.Next}
	for i, s := range found.Items {
		out.Items[i] = suppressionViewOf(s, p.Can(keyring.Operator))
	}
	return &output[page[suppressionView]]{out}, nil
}

func (a *api) clearSuppression(ctx context.Context, in *suppressionID) (*output[suppressionView], error) {
	p := principalOf(ctx)
	tenant, err := visible(p, 0)
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	s, err := a.Ledger.ClearSuppression(ctx, tenant, in.ID, whoAsks(ctx))
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	return &output[suppressionView]{suppressionViewOf(s, p.Can(keyring.Operator))}, nil
}

func suppressionViewOf(s message.Suppression, operator bool) suppressionView {
	out := suppressionView{
		ID: s.ID, Channel: s.Channel.String(), To: s.Recipient, Reason: s.Reason, Provider: s.Provider, At: s.At,
		ClearedBy: s.ClearedBy, ClearedAt: s.ClearedAt,
	}
	if operator {
		out.Tenant = s.Tenant
	}
	return out
}
