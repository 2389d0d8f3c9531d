package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/danielgtaylor/huma/v2"

	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

const maxReason = 500 // bytes

type doubtsInput struct {
	Cursor string `query:"cursor" maxLength:"1024" doc:"A page's next, for the page after it."`
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"How many at most."`
}

type doubtView struct {
	ID       string      `json:"id" doc:"The message's id; the doubt is decided by it."`
	Attempt  int         `json:"attempt" doc:"Which attempt nobody knows the end of."`
	Cause    string      `json:"cause" enum:"unknown,silent" doc:"unknown: the provider's answer was lost. silent: its worker is gone."`
	Since    time.Time   `json:"since" doc:"When it became one."`
	Provider string      `json:"provider,omitempty" doc:"Who may have taken the message."`
	Message  messageView `json:"message" doc:"The message, without its content."`
}

// decisionBody is the request to decide a doubt.
type decisionBody struct {
	Decision message.Decision `json:"decision" enum:"sent,resend,drop" doc:"sent: it was taken. resend: hand it over again. drop: end it as failed."`
	Reason   string           `json:"reason" minLength:"1" maxLength:"500" doc:"Why, for whoever asks later."`
	Attempt  *int32           `json:"attempt,omitempty" minimum:"1" doc:"Which attempt it is about, as the doubt says. Without it, the one that is in doubt now: a request that is repeated may then decide a later doubt."`
}

type decisionView struct {
	ID       string           `json:"id" doc:"The message's id."`
	Decision message.Decision `json:"decision" enum:"sent,resend,drop" doc:"What was decided."`
	Reason   string           `json:"reason" doc:"Why."`
	By       string           `json:"by" doc:"Who decided: the key's tenant and public prefix."`
}

func (a *api) registerDoubts() {
	huma.Register(a.huma, a.operation(huma.Operation{
		OperationID: "list-doubts", Method: http.MethodGet, Path: "/v1/doubts", Tags: []string{"Operate"},
		Summary: "List messages of which nobody knows whether they were taken, oldest first", Security: anyOf(keyring.Operator),
	}, page[doubtView]{Items: []doubtView{{
		ID: exampleMessage, Attempt: 1, Cause: "unknown", Since: exampleTime, Provider: "relay", Message: exampleView(),
	}}}), a.listDoubts)
	takeBody(a, a.operation(huma.Operation{
		OperationID: "decide-doubt", Method: http.MethodPost, Path: "/v1/doubts/{id}", Tags: []string{"Operate"},
		Summary: "Decide a doubt, once", Security: anyOf(keyring.Operator), Parameters: []*huma.Param{messageParam()},
	}, decisionView{exampleMessage, message.DecideResend, "the relay's log has no such message", "acme key k3v9x2ab"}, http.StatusNotFound, http.StatusConflict),
		decisionBody{message.DecideResend, "the relay's log has no such message", new(int32(1))}, a.decideDoubt)
	a.registerDecisions()
}

func (a *api) listDoubts(ctx context.Context, in *doubtsInput) (*output[page[doubtView]], error) {
	found, err := a.Ledger.Doubts(ctx, in.Cursor, in.Limit)
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	out := page[doubtView]{Items: make([]doubtView, len(found.Items)), Next: found.Next}
	for i := range found.Items {
		out.Items[i] = doubtViewOf(&found.Items[i])
	}
	return &output[page[doubtView]]{out}, nil
}

func (a *api) decideDoubt(ctx context.Context, r *http.Request, in decisionBody) (*output[decisionView], error) {
	if wrong := in.problems(); len(wrong) > 0 {
		return nil, wrong
	}
	id, err := messageID(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	by := whoAsks(ctx)
	attempt := 0
	if in.Attempt != nil {
		attempt = int(*in.Attempt)
	}
	if err := a.Ledger.Decide(ctx, id, attempt, in.Decision, by, in.Reason); err != nil {
		return nil, err
	}
	return &output[decisionView]{decisionView{id.String(), in.Decision, in.Reason, by}}, nil
}

func (d decisionBody) problems() message.FieldErrors {
	var wrong message.FieldErrors
	switch d.Decision {
	case message.DecideSent, message.DecideResend, message.DecideDrop:
	default:
		wrong = append(wrong, message.FieldError{Field: "decision", Problem: "want sent, resend or drop"})
	}
	return append(wrong, reasonProblems(d.Reason)...)
}

func reasonProblems(reason string) message.FieldErrors {
	reason = strings.TrimSpace(reason)
	if reason == "" || len(reason) > maxReason || strings.ContainsFunc(reason, unicode.IsControl) {
		return message.FieldErrors{{Field: "reason", Problem: fmt.Sprintf("want one line of 1 to %d bytes", maxReason)}}
	}
	return nil
}
