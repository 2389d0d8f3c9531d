package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

// holdBody is the request to hold something.
type holdBody struct {
	Lane     string `json:"lane,omitempty" example:"campaign.email" doc:"Hold this lane."`
	Tenant   int32  `json:"tenant,omitempty" minimum:"1" doc:"Hold this tenant's messages; with a tag only those with the tag."`
	Provider string `json:"provider,omitempty" maxLength:"64" doc:"Hold what would go to this provider."`
	Tag      string `json:"tag,omitempty" example:"spring-sale" doc:"Hold messages with this tag, of all tenants or of one."`
	Reason   string `json:"reason" minLength:"1" maxLength:"500" doc:"Why, for whoever asks later: one line of 1 to 500 bytes."`
}

type holdID struct {
	ID int64 `path:"id" minimum:"1" example:"7" doc:"The hold's id."`
}

type holdView struct {
	ID         int64     `json:"id" doc:"Names the hold."`
	Lane       string    `json:"lane,omitempty" doc:"The lane that is held."`
	Tenant     int32     `json:"tenant,omitempty" doc:"The tenant that is held, or whose tag."`
	Provider   string    `json:"provider,omitempty" doc:"The provider that is held."`
	Tag        string    `json:"tag,omitempty" doc:"The tag that is held."`
	Reason     string    `json:"reason" doc:"Why."`
	By         string    `json:"by" doc:"Who asked: the key's tenant and public prefix."`
	At         time.Time `json:"at" doc:"Since when."`
	Aside      int64     `json:"aside" doc:"Messages that it has set aside; those of a lane or a provider stay in their queue."`
	ReleasedBy string    `json:"released_by,omitempty" doc:"Who released it."`
	ReleasedAt time.Time `json:"released_at,omitzero" doc:"When."`
}

type releaseBody struct {
	Reason string `json:"reason" minLength:"1" maxLength:"500" doc:"Why, for whoever asks later: one line of 1 to 500 bytes."`
}

func (a *api) registerHolds() {
	example := holdView{ID: 7, Lane: "campaign.email", Reason: "the list was wrong", By: "acme key k3v9x2ab", At: exampleTime}
	takeBody(a, a.operation(huma.Operation{
		OperationID: "hold", Method: http.MethodPost, Path: "/v1/holds", Tags: []string{"Operate"},
		Summary: "Hold a lane, a tenant, a provider or a tag", Security: anyOf(keyring.Operator),
		Description: "Accepting goes on; 2 seconds after the answer nothing of it is claimed any more, until the hold is released. " +
			"What was claimed before is handed over. Messages go on expiring.",
	}, example, http.StatusConflict), holdBody{Lane: "campaign.email", Reason: "the list was wrong"}, a.addHold)
	huma.Register(a.huma, a.operation(huma.Operation{
		OperationID: "list-holds", Method: http.MethodGet, Path: "/v1/holds", Tags: []string{"Operate"},
		Summary: "List what is held", Security: anyOf(keyring.Operator),
	}, page[holdView]{Items: []holdView{example}}), a.listHolds)
	example.ReleasedBy, example.ReleasedAt = "acme key k3v9x2ab", exampleTime.Add(time.Hour)
	huma.Register(a.huma, a.operation(huma.Operation{
		OperationID: "release-hold", Method: http.MethodDelete, Path: "/v1/holds/{id}", Tags: []string{"Operate"},
		Summary: "Release what is held", Security: anyOf(keyring.Operator),
	}, example, http.StatusNotFound, http.StatusConflict), a.releaseHold)
	takeBody(a, a.operation(huma.Operation{
		OperationID: "release-message", Method: http.MethodPost, Path: "/v1/messages/{id}/release", Tags: []string{"Operate"},
		Summary: "Let a message that is set aside be sent after all", Security: anyOf(keyring.Operator),
		Parameters: []*huma.Param{messageParam()},
	}, exampleView(), http.StatusNotFound, http.StatusConflict), releaseBody{"the provider's fault is mended"}, a.releaseMessage)
}

func (a *api) addHold(ctx context.Context, _ *http.Request, b holdBody) (*output[holdView], error) {
	h := message.Hold{Tenant: b.Tenant, Provider: b.Provider, Tag: b.Tag, Reason: b.Reason, By: whoAsks(ctx)}
	wrong := reasonProblems(b.Reason)
	named := 0
	for _, is := range []bool{b.Lane != "", b.Tenant != 0 && b.Tag == "", b.Provider != "", b.Tag != ""} {
		if is {
			named++
		}
	}
	if named != 1 {
		wrong = append(wrong, message.FieldError{Field: "body", Problem: "want one of lane, tenant, provider and tag; a tag may go with a tenant"})
	}
	if b.Lane != "" {
		var err error
		if h.Lane, err = message.ParseLane(b.Lane); err != nil {
			wrong = append(wrong, message.FieldError{Field: "lane", Problem: err.Error()})
		}
	}
	if b.Provider != "" && len(a.Providers) > 0 && !slices.Contains(a.Providers, b.Provider) {
		wrong = append(wrong, message.FieldError{Field: "provider", Problem: fmt.Sprintf("want one of %s", strings.Join(a.Providers, ", "))})
	}
	if b.Tag != "" && !tagText.MatchString(b.Tag) {
		wrong = append(wrong, message.FieldError{Field: "tag", Problem: tagWant})
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	h, err := a.Ledger.AddHold(ctx, h)
	if err != nil {
		return nil, err
	}
	return &output[holdView]{holdViewOf(h)}, nil
}

func (a *api) listHolds(ctx context.Context, _ *struct{}) (*output[page[holdView]], error) {
	all, err := a.Ledger.Holds(ctx)
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	out := page[holdView]{Items: make([]holdView, len(all))}
	for i, h := range all {
		out.Items[i] = holdViewOf(h)
	}
	return &output[page[holdView]]{out}, nil
}

func (a *api) releaseHold(ctx context.Context, in *holdID) (*output[holdView], error) {
	h, err := a.Ledger.ReleaseHold(ctx, in.ID, whoAsks(ctx))
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	return &output[holdView]{holdViewOf(h)}, nil
}

func (a *api) releaseMessage(ctx context.Context, r *http.Request, b releaseBody) (*output[messageView], error) {
	if wrong := reasonProblems(b.Reason); len(wrong) > 0 {
		return nil, wrong
	}
	return a.oneMessage(ctx, r.PathValue("id"), func(ctx context.Context, _ int32, id message.ID) (*message.View, error) {
		return a.Ledger.ReleaseMessage(ctx, id, whoAsks(ctx), b.Reason)
	})
}

func holdViewOf(h message.Hold) holdView {
	out := holdView{
		ID: h.ID, Tenant: h.Tenant, Provider: h.Provider, Tag: h.Tag, Reason: h.Reason, By: h.By, At: h.At, Aside: h.Aside,
		ReleasedBy: h.ReleasedBy, ReleasedAt: h.ReleasedAt,
	}
	if h.Lane != (message.Lane{}) {
		out.Lane = h.Lane.String()
	}
	return out
}
