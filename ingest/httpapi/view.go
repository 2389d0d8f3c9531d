package httpapi

import (
	"fmt"
	"slices"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// messageView is one message as the API shows it.
type messageView struct {
	ID         string        `json:"id" doc:"Names the message."`
	Submission string        `json:"submission" doc:"Names the submission that it came with."`
	Tenant     int32         `json:"tenant,omitempty" doc:"Whose it is; shown to operators."`
	State      message.State `json:"state" doc:"How it is doing."`
	Reason     string        `json:"reason,omitempty" doc:"Why it failed, is held or in doubt, or which submission superseded it. parked: the journal had accepted it, and the ledger refused it, for the cause that follows."`
	Stream     string        `json:"stream" doc:"The stream that numbers it; empty while it is journaled, or parked."`
	Sequence   *int64        `json:"sequence" doc:"Its number in the stream; null while it is journaled, or parked."`
	Class      string        `json:"class" enum:"transactional,trigger,campaign" doc:"How urgent it is."`
	Channel    string        `json:"channel" enum:"email,push" doc:"The way to its recipient."`
	To         string        `json:"to" doc:"Its recipient; empty while it is journaled, or parked."`
	AcceptedAt time.Time     `json:"accepted_at" doc:"When it was kept."`
	ExpiresAt  time.Time     `json:"expires_at,omitzero" doc:"It is never sent after this; not shown while it is journaled, or parked."`
	DueAt      time.Time     `json:"due_at,omitzero" doc:"When its next attempt is due, while it waits."`
	RepeatOf   string        `json:"repeat_of,omitempty" doc:"The earlier submission with the same content and recipients, if it came without a key while the shield was up."`
	Trace      string        `json:"traceparent,omitempty" doc:"W3C trace context of the request."`
	Attempts   []attemptView `json:"attempts" doc:"What was tried, and what ended it."`
	Timeline   []eventView   `json:"timeline" doc:"The same as a list of events, oldest first."`
	Subject    string        `json:"subject,omitempty" doc:"An email's subject or a notification's title; not in lists."`
	Content    *contentView  `json:"content,omitempty" doc:"What was submitted; not in lists, and gone after the retention time."`
}

type attemptView struct {
	Number    int              `json:"number" doc:"From 1."`
	Kind      string           `json:"kind" enum:"send,cancel,expire,supersede,hold" doc:"A hand-over, or what ended the message instead of one."`
	At        time.Time        `json:"at" doc:"When it began."`
	Outcome   string           `json:"outcome,omitempty" enum:"sent,deferred,rejected,unknown,returned" doc:"How it ended, once it has."`
	OutcomeAt time.Time        `json:"outcome_at,omitzero" doc:"When it ended."`
	Provider  string           `json:"provider,omitempty" doc:"Who it was handed to."`
	Code      string           `json:"code,omitempty" doc:"The provider's own code."`
	Reply     string           `json:"reply,omitempty" doc:"What the provider said."`
	Reference string           `json:"reference,omitempty" doc:"The provider's name for the message."`
	Decision  message.Decision `json:"decision,omitempty" enum:"sent,resend,drop" doc:"What was made of a doubt."`
	DecidedBy string           `json:"decided_by,omitempty" doc:"Who decided."`
	DecidedAt time.Time        `json:"decided_at,omitzero" doc:"When."`
	Because   string           `json:"because,omitempty" doc:"Why."`
}

type eventView struct {
	At      time.Time `json:"at" doc:"When."`
	Event   string    `json:"event" enum:"accepted,entered,sending,canceled,expired,superseded,held,sent,deferred,rejected,unknown,returned,decided,delivered,bounced,soft_bounce,complained" doc:"What happened."`
	Attempt int       `json:"attempt,omitempty" doc:"Of which attempt."`
	Detail  string    `json:"detail,omitempty" doc:"More about it."`
}

// contentView is what was submitted, with attachments by their size.
type contentView struct {
	Email *emailView    `json:"email,omitempty"`
	Push  *message.Push `json:"push,omitempty"`
}

type emailView struct {
	From        string            `json:"from"`
	To          []string          `json:"to"`
	Cc          []string          `json:"cc,omitempty"`
	Bcc         []string          `json:"bcc,omitempty"`
	ReplyTo     []string          `json:"reply_to,omitempty"`
	Subject     string            `json:"subject,omitempty"`
	Text        string            `json:"text,omitempty"`
	HTML        string            `json:"html,omitempty"`
	Headers     map[string]string `json:"headers,omitempty"`
	Attachments []attachmentView  `json:"attachments,omitempty"`
	message.Options
}

type attachmentView struct {
	Filename    string `json:"filename"`
	ContentType string `json:"content_type,omitempty"`
	ContentID   string `json:"content_id,omitempty"`
	Size        int    `json:"size" doc:"In bytes."`
}

// viewOf shows v, with its tenant if an operator asks.
func viewOf(v *message.View, operator bool) messageView {
	out := messageView{
		ID: v.ID.String(), Submission: v.ID.Submission().String(), State: v.State, Reason: v.Reason,
		Stream: v.Stream, Sequence: number(v.Sequence), Class: v.Lane.Class.String(), Channel: v.Lane.Channel.String(),
		To: v.Recipient, AcceptedAt: v.AcceptedAt, ExpiresAt: v.ExpiresAt, DueAt: v.DueAt, RepeatOf: idText(v.RepeatOf), Trace: v.Trace,
		Attempts: make([]attemptView, len(v.Attempts)), Timeline: timeline(v),
	}
	if operator {
		out.Tenant = v.Tenant
	}
	for i, a := range v.Attempts {
		out.Attempts[i] = attemptView{
			Number: a.Number, Kind: a.Kind, At: a.At, OutcomeAt: a.OutcomeAt, Provider: a.Provider, Code: a.Code,
			Reply: a.Reply, Reference: a.Reference, Decision: a.Decision, DecidedBy: a.DecidedBy, DecidedAt: a.DecidedAt,
			Because: a.Because,
		}
		if a.Outcome != 0 {
			out.Attempts[i].Outcome = a.Outcome.String()
		}
	}
	return out
}

// detailOf shows v with its content.
func detailOf(v *message.View, operator bool) (messageView, error) {
	out := viewOf(v, operator)
	if v.Content == nil {
		return out, nil
	}
	c, err := message.DecodeContent(v.Content)
	if err != nil {
		return out, fmt.Errorf("show %s: %w", v.ID, err)
	}
	out.Content = &contentView{Push: c.Push}
	if e := c.Email; e != nil {
		view := &emailView{
			From: e.From, To: e.To, Cc: e.Cc, Bcc: e.Bcc, ReplyTo: e.ReplyTo, Subject: e.Subject, Text: e.Text,
			HTML: e.HTML, Headers: e.Headers, Options: e.Options,
		}
		for _, a := range e.Attachments {
			view.Attachments = append(view.Attachments, attachmentView{a.Filename, a.ContentType, a.ContentID, len(a.Content)})
		}
		out.Content.Email, out.Subject = view, e.Subject
	} else if c.Push.Notification != nil {
		out.Subject = c.Push.Notification.Title
	}
	return out, nil
}

// timeline tells a message's attempts as events.
func timeline(v *message.View) []eventView {
	events := []eventView{{At: v.AcceptedAt, Event: "accepted"}}
	if !v.EnteredAt.IsZero() {
		events = append(events, eventView{At: v.EnteredAt, Event: "entered", Detail: "from the journal into the ledger"})
	}
	for _, a := range v.Attempts {
		events = append(events, eventView{At: a.At, Event: begun(a.Kind), Attempt: a.Number})
		if a.Outcome != 0 {
			events = append(events, eventView{At: a.OutcomeAt, Event: a.Outcome.String(), Attempt: a.Number, Detail: a.Reply})
		}
		if a.Decision != "" {
			events = append(events, eventView{
				At: a.DecidedAt, Event: "decided", Attempt: a.Number,
				Detail: fmt.Sprintf("%s by %s: %s", a.Decision, a.DecidedBy, a.Because),
			})
		}
	}
	for _, e := range v.Events {
		events = append(events, eventView{At: e.At, Event: string(e.Kind), Detail: e.Provider + ": " + e.Detail})
	}
	slices.SortStableFunc(events, func(a, b eventView) int { return a.At.Compare(b.At) })
	return events
}

// begun is the event that an attempt of a kind is.
func begun(kind string) string {
	switch kind {
	case "cancel":
		return "canceled"
	case "expire":
		return "expired"
	case "supersede":
		return "superseded"
	case "hold":
		return "held"
	}
	return "sending"
}
