package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

const (
	// auditLimit is how long the audit of lanes may take.
	auditLimit = 5*time.Minute + 30*time.Second
	// progressEvery is the pause between two lines of progress.
	progressEvery = 500 * time.Millisecond
)

// laneAuditView is a lane's account, or that of all lanes together.
type laneAuditView struct {
	Lane       string `json:"lane" example:"transactional.email" doc:"CLASS.CHANNEL, or all."`
	Accepted   int64  `json:"accepted" doc:"Messages that were accepted and that retention has left: the sum of what follows, if it adds up."`
	Sent       int64  `json:"sent" doc:"Messages that a provider took."`
	Failed     int64  `json:"failed" doc:"Messages that a provider refused, and dropped doubts."`
	Expired    int64  `json:"expired" doc:"Messages whose life ended first."`
	Superseded int64  `json:"superseded" doc:"Messages that a newer one replaced."`
	Canceled   int64  `json:"canceled" doc:"Messages that were canceled."`
	Held       int64  `json:"held" doc:"Messages that are set aside."`
	InDoubt    int64  `json:"in_doubt" doc:"Messages of which nobody knows whether they were taken."`
	Queued     int64  `json:"queued" doc:"Still to go: nobody tried yet."`
	Waiting    int64  `json:"waiting" doc:"Still to go: scheduled, or between attempts."`
	Sending    int64  `json:"sending" doc:"Still to go: an attempt is open."`
	Lost       int64  `json:"lost" doc:"Messages that have not ended and that nothing will take up. There should be none."`
	AddsUp     bool   `json:"adds_up" doc:"Whether every accepted message is accounted for."`
	Journaled  *int64 `json:"journaled" nullable:"true" doc:"Messages that Kafka's journal has and the ledger may not have yet, beside those accepted; null while the journal can't be read."`
	Parked     int64  `json:"parked" doc:"Messages that the journal had accepted and the ledger has refused, beside those accepted; what can't be read counts as one in the total of all lanes. A person is to see to them."`
}

type ledgerAuditView struct {
	Total laneAuditView   `json:"total" doc:"All of the lanes asked for."`
	Lanes []laneAuditView `json:"lanes" doc:"Each of them, most urgent first."`
}

// auditLine is one line of the answer as it comes about.
type auditLine struct {
	Done  *int64           `json:"done,omitempty" doc:"Messages that are counted."`
	Total *int64           `json:"total,omitempty" doc:"About how many there are."`
	Audit *ledgerAuditView `json:"audit,omitempty" doc:"The last line: the answer."`
	Error *Problem         `json:"error,omitempty" doc:"The last line: why there is none."`
}

func (a *api) registerAudit() {
	example := ledgerAuditViewOf([]message.LaneAudit{{
		Lane: message.Lanes()[0], Accepted: 1250, States: map[message.State]int64{message.StateSent: 1200, message.StateQueued: 50},
	}}, map[message.Lane]int64{}, nil)
	op := a.operation(huma.Operation{
		OperationID: "audit-lanes", Method: http.MethodGet, Path: "/v1/audit", Tags: []string{"Operate"},
		Summary: "Account for every message of a lane, or of all, in one snapshot", Security: anyOf(keyring.Operator),
		Description: "It takes a few seconds for every million messages, at most 5 minutes. With Accept: application/x-ndjson the answer is lines " +
			"of progress, {done, total}, and at last one of {audit} or {error}.",
		Parameters: []*huma.Param{{
			Name: "lane", In: "query", Description: "CLASS.CHANNEL; all lanes by default.", Schema: &huma.Schema{Type: huma.TypeString},
		}},
	}, example)
	op.Responses["200"].Content["application/json"].Schema = a.schemaOf(ledgerAuditView{})
	op.Responses["200"].Content[ndjson] = &huma.MediaType{Schema: a.schemaOf(auditLine{}), Example: auditLine{Done: new(int64(500)), Total: new(int64(1250))}}
	a.register(&op, a.auditLanes)
}

func (a *api) auditLanes(w http.ResponseWriter, r *http.Request) {
	lanes, err := askedLanes(r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	// It may take longer than other answers; a writer in a test may not know how.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(auditLimit))
	if !strings.Contains(r.Header.Get("Accept"), ndjson) {
		view, err := a.account(r.Context(), lanes, func(int64, int64) {})
		if err != nil {
			a.fail(w, r, err)
			return
		}
		writeJSON(w, http.StatusOK, "application/json", view)
		return
	}
	w.Header().Set("Content-Type", ndjson)
	lines := json.NewEncoder(w)
	var told time.Time
	view, err := a.account(r.Context(), lanes, func(done, total int64) {
		if time.Since(told) < progressEvery {
			return
		}
		told = time.Now()
		_ = lines.Encode(auditLine{Done: &done, Total: &total}) // a client that is gone ends the context
		_ = http.NewResponseController(w).Flush()
	})
	last := auditLine{Audit: view}
	if err != nil {
		last.Error = a.problem(r.Context(), err)
	}
	_ = lines.Encode(last)
}

// account asks for each place before the one that messages go to from it: what goes
// meanwhile is in both, not in neither.
func (a *api) account(ctx context.Context, lanes []message.Lane, progress func(done, total int64)) (*ledgerAuditView, error) {
	journaled := a.onlyJournaled(ctx)
	parked, err := a.Ledger.Parked(ctx)
	if err != nil {
		return nil, err
	}
	all, err := a.Ledger.AuditLanes(ctx, lanes, progress)
	if err != nil {
		return nil, err
	}
	view := ledgerAuditViewOf(all, journaled, parked)
	return &view, nil
}

// askedLanes is the lane that the query names, or all.
func askedLanes(r *http.Request) ([]message.Lane, error) {
	query := r.URL.Query()
	if !query.Has("lane") {
		return message.Lanes(), nil
	}
	lane, err := message.ParseLane(query.Get("lane"))
	if err != nil {
		return nil, message.FieldErrors{{Field: "lane", Problem: err.Error()}}
	}
	return []message.Lane{lane}, nil
}

// onlyJournaled is what the journal holds of each lane; nil while it can't tell.
func (a *api) onlyJournaled(ctx context.Context) map[message.Lane]int64 {
	if a.Journal == nil {
		return map[message.Lane]int64{}
	}
	if a.readJournal(ctx) != nil {
		return nil
	}
	lanes, known := a.Journal.Lanes()
	if !known {
		return nil
	}
	if lanes == nil {
		lanes = map[message.Lane]int64{}
	}
	return lanes
}

func ledgerAuditViewOf(all []message.LaneAudit, journaled, parked map[message.Lane]int64) ledgerAuditView {
	out := ledgerAuditView{Lanes: []laneAuditView{}}
	var only, aside int64
	sum := message.LaneAudit{States: make(map[message.State]int64)}
	addsUp := true
	for _, l := range all {
		view := laneAuditViewOf(l)
		view.Lane = l.Lane.String()
		if n := journaled[l.Lane]; journaled != nil {
			view.Journaled = &n
			only += n
		}
		view.Parked = parked[l.Lane]
		aside += view.Parked
		out.Lanes = append(out.Lanes, view)
		sum.Accepted += l.Accepted
		sum.Lost += l.Lost
		for state, n := range l.States {
			sum.States[state] += n
		}
		addsUp = addsUp && view.AddsUp // a lane too few and one too many add up to nothing good
	}
	out.Total = laneAuditViewOf(sum)
	out.Total.Lane, out.Total.AddsUp = "all", addsUp
	if journaled != nil {
		out.Total.Journaled = &only
	}
	if len(all) == 1 {
		out.Total.Lane = all[0].Lane.String()
	} else {
		aside += parked[message.Lane{}]
	}
	out.Total.Parked = aside
	return out
}

func laneAuditViewOf(l message.LaneAudit) laneAuditView {
	n := l.States
	return laneAuditView{
		Accepted: l.Accepted, Sent: n[message.StateSent], Failed: n[message.StateFailed], Expired: n[message.StateExpired],
		Superseded: n[message.StateSuperseded], Canceled: n[message.StateCanceled], Held: n[message.StateHeld], InDoubt: n[message.StateInDoubt],
		Queued: n[message.StateQueued], Waiting: n[message.StateWaiting], Sending: n[message.StateSending], Lost: l.Lost, AddsUp: l.AddsUp(),
	}
}
