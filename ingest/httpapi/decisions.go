package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

// doubtFilter narrows doubts, as a request names them.
type doubtFilter struct {
	Lane     string    `json:"lane,omitempty" example:"transactional.email" doc:"Those of this lane."`
	Provider string    `json:"provider,omitempty" maxLength:"64" doc:"Those whose answer this provider owes; silent ones are nobody's."`
	Tenant   int32     `json:"tenant,omitempty" minimum:"1" doc:"Those of this tenant."`
	Since    time.Time `json:"since,omitzero" required:"false" doc:"Those that became doubts at this time or later."`
	Until    time.Time `json:"until,omitzero" required:"false" doc:"Those that became doubts before this time."`
}

// decisionsBody is the request to decide doubts by filter.
type decisionsBody struct {
	Filter   doubtFilter      `json:"filter,omitzero" required:"false" doc:"Which doubts. Without any, all has to be true."`
	All      bool             `json:"all,omitempty" doc:"Every doubt; with an empty filter only."`
	Decision message.Decision `json:"decision" enum:"sent,resend,drop" doc:"sent: they were taken. resend: hand them over again. drop: end them as failed."`
	Reason   string           `json:"reason" minLength:"1" maxLength:"500" doc:"Why, for whoever asks later: one line of 1 to 500 bytes."`
	DryRun   bool             `json:"dry_run,omitempty" doc:"Show which doubts that is, and decide none."`
}

type decisionsView struct {
	DryRun   bool             `json:"dry_run" doc:"Whether this was only a look."`
	Matched  int64            `json:"matched" doc:"How many doubts the filter found."`
	Lanes    map[string]int64 `json:"lanes" doc:"How many of them each lane has."`
	Causes   map[string]int64 `json:"causes" doc:"How many of them have each cause."`
	Sample   []doubtView      `json:"sample" doc:"The oldest of them."`
	Decided  int64            `json:"decided" doc:"How many were decided now."`
	More     bool             `json:"more" doc:"Whether the same request has to be made again, to go on."`
	Decision message.Decision `json:"decision" enum:"sent,resend,drop" doc:"What was decided, or would be."`
	Reason   string           `json:"reason" doc:"Why."`
	By       string           `json:"by" doc:"Who decided: the key's tenant and public prefix."`
}

func (a *api) registerDecisions() {
	takeBody(a, a.operation(huma.Operation{
		OperationID: "decide-doubts", Method: http.MethodPost, Path: "/v1/doubts", Tags: []string{"Operate"},
		Summary: "Decide the doubts that a filter finds, or show which that is", Security: anyOf(keyring.Operator),
	}, decisionsView{
		Matched: 12, Lanes: map[string]int64{"transactional.email": 12}, Causes: map[string]int64{"unknown": 12}, Sample: []doubtView{}, Decided: 12,
		Decision: message.DecideResend, Reason: "the relay was down, its log is empty", By: "acme key k3v9x2ab",
	}), decisionsBody{
		Filter: doubtFilter{Lane: "transactional.email", Provider: "smtp"}, Decision: message.DecideResend,
		Reason: "the relay was down, its log is empty", DryRun: true,
	}, a.decideDoubts)
}

func (a *api) decideDoubts(ctx context.Context, _ *http.Request, b decisionsBody) (*output[decisionsView], error) {
	filter, wrong := b.Filter.parse()
	wrong = append(wrong, decisionBody{Decision: b.Decision, Reason: b.Reason}.problems()...)
	switch empty := b.Filter == (doubtFilter{}); {
	case empty && !b.All:
		wrong = append(wrong, message.FieldError{Field: "filter", Problem: "is empty: that is every doubt, which takes all"})
	case !empty && b.All:
		wrong = append(wrong, message.FieldError{Field: "all", Problem: "goes with an empty filter only"})
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	found, err := a.Ledger.CountDoubts(ctx, filter)
	if err != nil {
		return nil, err
	}
	out := decisionsView{
		DryRun: b.DryRun, Matched: found.Matched, Lanes: map[string]int64{}, Causes: found.Causes, Sample: make([]doubtView, len(found.Sample)),
		Decision: b.Decision, Reason: b.Reason, By: whoAsks(ctx),
	}
	for lane, n := range found.Lanes {
		out.Lanes[lane.String()] = n
	}
	for i := range found.Sample {
		out.Sample[i] = doubtViewOf(&found.Sample[i])
	}
	if b.DryRun {
		return &output[decisionsView]{out}, nil
	}
	if out.Decided, out.More, err = a.Ledger.DecideMany(ctx, filter, b.Decision, out.By, b.Reason); err != nil {
		return nil, err
	}
	return &output[decisionsView]{out}, nil
}

func (f doubtFilter) parse() (message.DoubtFilter, message.FieldErrors) {
	out := message.DoubtFilter{Provider: f.Provider, Tenant: f.Tenant, Since: f.Since, Until: f.Until}
	var wrong message.FieldErrors
	if f.Lane != "" {
		lane, err := message.ParseLane(f.Lane)
		if err != nil {
			wrong = append(wrong, message.FieldError{Field: "filter.lane", Problem: err.Error()})
		}
		out.Lane = lane
	}
	if !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until) {
		wrong = append(wrong, message.FieldError{Field: "filter.until", Problem: "is not after since"})
	}
	return out, wrong
}

func doubtViewOf(d *message.Doubt) doubtView {
	return doubtView{
		ID: d.ID.String(), Attempt: d.Attempt, Cause: d.Cause, Since: d.Since, Provider: d.Provider, Message: viewOf(&d.View, true),
	}
}
