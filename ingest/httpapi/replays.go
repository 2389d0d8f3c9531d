package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

// defaultReplayRate is how many messages a second get leave, if the request
// doesn't say.
const defaultReplayRate = 100

// tagText is what a tag may be, as in a submission.
var tagText = regexp.MustCompile(`^[A-Za-z0-9._:=-]{1,64}$`)

const tagWant = "want 1 to 64 of A–Z a–z 0–9 . _ - : ="

// replayFilter narrows a replay, as a request names it.
type replayFilter struct {
	Lane     string    `json:"lane,omitempty" example:"transactional.email" doc:"Messages of this lane."`
	State    string    `json:"state,omitempty" example:"failed" doc:"failed or held; both by default. All others are left out, always."`
	Provider string    `json:"provider,omitempty" maxLength:"64" doc:"Those that this provider answered last."`
	Tenant   int32     `json:"tenant,omitempty" minimum:"1" doc:"Those of this tenant."`
	Stream   string    `json:"stream,omitempty" maxLength:"255" doc:"Those of the streams of this name."`
	Since    time.Time `json:"since,omitzero" required:"false" doc:"Those accepted at this time or later."`
	Until    time.Time `json:"until,omitzero" required:"false" doc:"Those accepted before this time."`
	Tag      string    `json:"tag,omitempty" doc:"Those with this tag."`
}

// replayBody is the request to replay.
type replayBody struct {
	Filter  replayFilter `json:"filter,omitzero" required:"false" doc:"Which messages. Without any, all has to be true."`
	All     bool         `json:"all,omitempty" doc:"Every message; with an empty filter only."`
	ID      string       `json:"id,omitempty" doc:"Instead of a filter: one message, which may be a sent one."`
	Attempt int          `json:"attempt,omitempty" minimum:"1" maximum:"32767" doc:"With id: the number of its last attempt, as you saw it. If it was attempted since, nothing is done."`
	Rate    int          `json:"rate,omitempty" minimum:"1" maximum:"10000" doc:"Messages a second, at most; 100 by default."`
	Reason  string       `json:"reason,omitempty" maxLength:"500" doc:"Why, for whoever asks later: one line of 1 to 500 bytes. A dry run needs none."`
	DryRun  bool         `json:"dry_run,omitempty" doc:"Show how many would be sent, and how many not, and do nothing."`
	Cursor  string       `json:"cursor,omitempty" maxLength:"64" doc:"With dry_run: an answer's next, to go on."`
}

type replayLeft struct {
	Count  int64         `json:"count" doc:"How many."`
	Why    string        `json:"why" doc:"What that means."`
	Sample []messageView `json:"sample,omitempty" doc:"A few of them; in a dry run only."`
}

type replayView struct {
	ID        int64                 `json:"id,omitempty" doc:"Names the replay; a dry run has none."`
	DryRun    bool                  `json:"dry_run" doc:"Whether this is only a look."`
	Message   string                `json:"message,omitempty" doc:"The one message that was named."`
	Filter    replayFilter          `json:"filter,omitzero" required:"false" doc:"Which messages it is about."`
	Status    message.ReplayStatus  `json:"status,omitempty" enum:"counting,running,paused,canceled,done" doc:"How far it is. counting: nothing is sent yet. canceled: what got leave before is sent."`
	Rate      int                   `json:"rate,omitempty" doc:"Messages a second, at most."`
	Reason    string                `json:"reason,omitempty" doc:"Why."`
	By        string                `json:"by,omitempty" doc:"Who asked: the key's tenant and public prefix."`
	At        time.Time             `json:"at,omitzero" doc:"When."`
	StoppedBy string                `json:"stopped_by,omitempty" doc:"Who paused or canceled it last."`
	EndedAt   time.Time             `json:"ended_at,omitzero" doc:"When it was done or canceled."`
	MovedAt   time.Time             `json:"moved_at,omitzero" doc:"When it last came on."`
	ToSend    int64                 `json:"to_send" doc:"Messages to be sent, as they were counted."`
	Given     int64                 `json:"given" doc:"Those of them that are on their way, or sent."`
	LeftOut   map[string]replayLeft `json:"left_out" doc:"Messages that fit the filter, and are not sent, by cause."`
	Sample    []messageView         `json:"sample,omitempty" doc:"A few of those that would be sent; in a dry run only."`
	ETA       *float64              `json:"eta_seconds,omitempty" doc:"Until all of them are given, as it goes now."`
	Next      string                `json:"next,omitempty" doc:"In a dry run: there are more; ask again with this as cursor, and add up."`
}

type replayID struct {
	ID int64 `path:"id" minimum:"1" example:"7" doc:"The replay's id."`
}

type replaysInput struct {
	Cursor string `query:"cursor" maxLength:"64" doc:"A page's next, for the page after it."`
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"How many at most."`
}

func (a *api) registerReplays() {
	eta := 120.0
	example := replayView{
		ID: 7, Filter: replayFilter{Lane: "transactional.email", Provider: "smtp"}, Status: message.ReplayRunning, Rate: 100,
		Reason: "the relay's fault is mended", By: "acme key k3v9x2ab", At: exampleTime, MovedAt: exampleTime, ToSend: 15000, Given: 3000, ETA: &eta,
		LeftOut: map[string]replayLeft{"sent": {Count: 81000, Why: message.ReplayCauses["sent"]}},
	}
	takeBody(a, a.operation(huma.Operation{
		OperationID: "replay", Method: http.MethodPost, Path: "/v1/replays", Tags: []string{"Operate"},
		Summary: "Send again what failed or is held, or show what that is", Security: anyOf(keyring.Operator),
		Description: "Only messages that certainly were not taken are sent: none that was sent, or may have been, none that has expired, is superseded or canceled. " +
			"With an id instead of a filter one message is sent that may have been sent before. The role recovery works on it, most urgent class first.",
	}, example, http.StatusNotFound, http.StatusConflict), replayBody{
		Filter: replayFilter{Lane: "transactional.email", Provider: "smtp"}, Rate: 100, Reason: "the relay's fault is mended",
	}, a.replay)
	huma.Register(a.huma, a.operation(huma.Operation{
		OperationID: "list-replays", Method: http.MethodGet, Path: "/v1/replays", Tags: []string{"Operate"},
		Summary: "List replays, newest first", Security: anyOf(keyring.Operator),
	}, page[replayView]{Items: []replayView{example}}), a.listReplays)
	huma.Register(a.huma, a.operation(huma.Operation{
		OperationID: "get-replay", Method: http.MethodGet, Path: "/v1/replays/{id}", Tags: []string{"Operate"},
		Summary: "Show how far a replay is", Security: anyOf(keyring.Operator),
	}, example, http.StatusNotFound), a.getReplay)
	for verb, to := range map[string]message.ReplayStatus{
		"pause": message.ReplayPaused, "resume": message.ReplayRunning, "cancel": message.ReplayCanceled,
	} {
		example.Status = to
		huma.Register(a.huma, a.operation(huma.Operation{
			OperationID: verb + "-replay", Method: http.MethodPost, Path: "/v1/replays/{id}/" + verb, Tags: []string{"Operate"},
			Summary: strings.ToUpper(verb[:1]) + verb[1:] + " a replay", Security: anyOf(keyring.Operator),
			Description: "What is given already is sent. Asking twice is the same as once.",
		}, example, http.StatusNotFound, http.StatusConflict), func(ctx context.Context, in *replayID) (*output[replayView], error) {
			return a.oneReplay(ctx)(a.Ledger.TurnReplay(ctx, in.ID, to, whoAsks(ctx)))
		})
	}
}

// oneReplay answers with a replay, or with what is wrong.
func (a *api) oneReplay(ctx context.Context) func(message.Replay, error) (*output[replayView], error) {
	return func(r message.Replay, err error) (*output[replayView], error) {
		if err != nil {
			return nil, a.problem(ctx, err)
		}
		return &output[replayView]{replayViewOf(r)}, nil
	}
}

func (a *api) getReplay(ctx context.Context, in *replayID) (*output[replayView], error) {
	return a.oneReplay(ctx)(a.Ledger.Replay(ctx, in.ID))
}

func (a *api) listReplays(ctx context.Context, in *replaysInput) (*output[page[replayView]], error) {
	found, err := a.Ledger.Replays(ctx, in.Cursor, in.Limit)
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	out := page[replayView]{Items: make([]replayView, len(found.Items)), Next: found.Next}
	for i, r := range found.Items {
		out.Items[i] = replayViewOf(r)
	}
	return &output[page[replayView]]{out}, nil
}

func (a *api) replay(ctx context.Context, _ *http.Request, b replayBody) (*output[replayView], error) {
	filter, wrong := b.Filter.parse(a.Providers)
	wrong = append(wrong, b.problems()...)
	if !b.DryRun {
		wrong = append(wrong, reasonProblems(b.Reason)...)
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	switch {
	case b.ID != "":
		id, err := messageID(b.ID)
		if err != nil {
			return nil, err
		}
		return a.oneReplay(ctx)(a.Ledger.ReplayMessage(ctx, id, b.Attempt, whoAsks(ctx), b.Reason))
	case b.DryRun:
		look, err := a.Ledger.LookReplay(ctx, filter, b.Cursor)
		if err != nil {
			return nil, err
		}
		return &output[replayView]{replayLookView(b.Filter, look)}, nil
	}
	if b.Rate == 0 {
		b.Rate = defaultReplayRate
	}
	return a.oneReplay(ctx)(a.Ledger.AddReplay(ctx, message.Replay{Filter: filter, Rate: b.Rate, Reason: b.Reason, By: whoAsks(ctx)}))
}

// problems is what is wrong with how the parts of a request go together.
func (b replayBody) problems() (wrong message.FieldErrors) {
	add := func(is bool, field, problem string) {
		if is {
			wrong = append(wrong, message.FieldError{Field: field, Problem: problem})
		}
	}
	empty := b.Filter == (replayFilter{})
	if b.ID != "" {
		add(!empty, "filter", "goes without id")
		add(b.All, "all", "goes without id")
		add(b.DryRun, "dry_run", "goes without id")
		add(b.Rate != 0, "rate", "goes without id")
		add(b.Attempt == 0, "attempt", "is needed with id: the number of the message's last attempt")
	} else {
		add(empty && !b.All, "filter", "is empty: that is every message, which takes all")
		add(!empty && b.All, "all", "goes with an empty filter only")
		add(b.Attempt != 0, "attempt", "goes with id only")
	}
	add(b.Cursor != "" && !b.DryRun, "cursor", "goes with dry_run only")
	return wrong
}

func (f replayFilter) parse(providers []string) (message.ReplayFilter, message.FieldErrors) {
	out := message.ReplayFilter{
		State: message.State(f.State), Provider: f.Provider, Tenant: f.Tenant, Stream: f.Stream, Since: f.Since, Until: f.Until, Tag: f.Tag,
	}
	var wrong message.FieldErrors
	add := func(field, format string, args ...any) {
		wrong = append(wrong, message.FieldError{Field: "filter." + field, Problem: fmt.Sprintf(format, args...)})
	}
	if f.Lane != "" {
		var err error
		if out.Lane, err = message.ParseLane(f.Lane); err != nil {
			add("lane", "%v", err)
		}
	}
	switch out.State {
	case "", message.StateFailed, message.StateHeld:
	case message.StateSent:
		add("state", "a sent message is only sent again by its id, with a reason")
	default:
		add("state", "%q is not replayed: want failed or held", f.State)
	}
	if f.Provider != "" && len(providers) > 0 && !slices.Contains(providers, f.Provider) {
		add("provider", "want one of %s", strings.Join(providers, ", "))
	}
	if f.Tag != "" && !tagText.MatchString(f.Tag) {
		add("tag", tagWant)
	}
	if !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until) {
		add("until", "is not after since")
	}
	return out, wrong
}

func replayViewOf(r message.Replay) replayView {
	f := r.Filter
	out := replayView{
		ID: r.ID, Status: r.Status, Rate: r.Rate, Reason: r.Reason, By: r.By, At: r.At, StoppedBy: r.StoppedBy, EndedAt: r.EndedAt, MovedAt: r.MovedAt,
		ToSend: r.Total, Given: r.Given, LeftOut: make(map[string]replayLeft),
		Filter: replayFilter{
			State: string(f.State), Provider: f.Provider, Tenant: f.Tenant, Stream: f.Stream, Since: f.Since, Until: f.Until, Tag: f.Tag,
		},
	}
	if r.Named != (message.ID{}) {
		out.Message = r.Named.String()
	}
	if f.Lane != (message.Lane{}) {
		out.Filter.Lane = f.Lane.String()
	}
	for cause, n := range r.LeftOut {
		out.LeftOut[cause] = replayLeft{Count: n, Why: message.ReplayCauses[cause]}
	}
	if r.ETA >= 0 {
		s := r.ETA.Seconds()
		out.ETA = &s
	}
	return out
}

func replayLookView(f replayFilter, look *message.ReplayLook) replayView {
	sample := func(cause string) []messageView {
		views := make([]messageView, len(look.Samples[cause]))
		for i := range views {
			views[i] = viewOf(&look.Samples[cause][i], true)
		}
		return views
	}
	out := replayView{DryRun: true, Filter: f, ToSend: look.Counts[""], Sample: sample(""), LeftOut: make(map[string]replayLeft), Next: look.Next}
	for cause, n := range look.Counts {
		if cause != "" {
			out.LeftOut[cause] = replayLeft{n, message.ReplayCauses[cause], sample(cause)}
		}
	}
	return out
}
