package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/message"
)

// retryAfter is what a 503 asks a client to wait, in seconds.
const retryAfter = 2

// Problem is every answer that isn't a success: RFC 9457 problem details, with
// a code for programs to compare.
type Problem struct {
	Type   string         `json:"type" example:"about:blank" doc:"Always about:blank: code tells problems apart."`
	Title  string         `json:"title" example:"Unprocessable Entity" doc:"The status in words."`
	Status int            `json:"status" example:"422" doc:"The HTTP status."`
	Code   string         `json:"code" example:"invalid_request" doc:"Which problem it is, for programs. It never changes its meaning."`
	Detail string         `json:"detail" example:"The request is not valid." doc:"What happened, for people."`
	Errors []ProblemField `json:"errors,omitempty" doc:"Each thing that is wrong, at most 50."`

	header http.Header
}

// ProblemField is one thing that is wrong.
type ProblemField struct {
	Field   string `json:"field" example:"to[2]" doc:"A path in the request's JSON, a parameter, a header, or body."`
	Message string `json:"message" example:"is not one mailbox as in RFC 5322" doc:"What is wrong with it, for people."`
}

var (
	_ huma.StatusError       = (*Problem)(nil)
	_ huma.HeadersError      = (*Problem)(nil)
	_ huma.ContentTypeFilter = (*Problem)(nil)
)

func newProblem(status int, code, detail string, fields ...ProblemField) *Problem {
	return &Problem{
		Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: detail, Errors: fields,
	}
}

func (p *Problem) Error() string { return fmt.Sprintf("%d %s: %s", p.Status, p.Code, p.Detail) }

// GetStatus is the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// GetHeaders is the headers that go with the problem.
func (p *Problem) GetHeaders() http.Header { return p.header }

// ContentType is that of RFC 9457 §3.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// with adds a header to the answer.
func (p *Problem) with(name, value string) *Problem {
	if p.header == nil {
		p.header = http.Header{}
	}
	p.header.Set(name, value)
	return p
}

func (p *Problem) write(w http.ResponseWriter) {
	for name, values := range p.header {
		w.Header()[name] = values
	}
	writeJSON(w, p.Status, p.ContentType(""), p)
}

func invalid(fields message.FieldErrors) *Problem {
	out := make([]ProblemField, len(fields))
	for i, f := range fields {
		out[i] = ProblemField{f.Field, f.Problem}
	}
	return newProblem(http.StatusUnprocessableEntity, "invalid_request", "The request is not valid.", out...)
}

func malformed(what string) *Problem {
	return newProblem(http.StatusBadRequest, "malformed_body", "The body can't be read.", ProblemField{"body", what})
}

func notFound() *Problem {
	return newProblem(http.StatusNotFound, "not_found", "There is no such thing.")
}

// problemOf turns what the service and the ledger answer into a problem. An
// error that it doesn't know is nobody's business outside: the caller logs it.
func problemOf(err error) (p *Problem, known bool) {
	var fields message.FieldErrors
	var overlap *message.ReplayOverlap
	var not *message.NotReplayable
	var busy *ingest.Busy
	switch {
	case errors.As(err, &busy):
		return tooMuch(busy), true
	case errors.As(err, &p):
		return p, true
	case errors.As(err, &fields):
		return invalid(fields), true
	case errors.Is(err, message.ErrNotFound):
		return notFound(), true
	case errors.Is(err, message.ErrKeyReused):
		return newProblem(http.StatusUnprocessableEntity, "idempotency_key_reused",
			"This idempotency key was used for another request.",
			ProblemField{"idempotency_key", "was used for another request"}), true
	case errors.Is(err, message.ErrTooLate):
		return newProblem(http.StatusConflict, "too_late", "The message was handed over or has ended."), true
	case errors.Is(err, message.ErrDecided):
		return newProblem(http.StatusConflict, "already_decided", "The doubt was decided or resolved already."), true
	case errors.Is(err, message.ErrHeld):
		return newProblem(http.StatusConflict, "already_held", "It is held already. See GET /v1/holds."), true
	case errors.Is(err, message.ErrNotHeld):
		return newProblem(http.StatusConflict, "not_held", "It is not held, or was released already."), true
	case errors.As(err, &overlap):
		detail := "Another replay is about some of the same messages, or may be. See GET /v1/replays/" + strconv.FormatInt(overlap.ID, 10)
		if overlap.ID == 0 {
			detail = "There are too many replays that are not through. See GET /v1/replays."
		}
		return newProblem(http.StatusConflict, "replay_overlap", detail), true
	case errors.As(err, &not):
		return newProblem(http.StatusConflict, "not_replayable", "The message is not sent again: "+message.ReplayCauses[not.Cause]+".",
			ProblemField{"id", not.Cause}), true
	case errors.Is(err, message.ErrReplayEnded):
		return newProblem(http.StatusConflict, "replay_ended", "The replay is done or canceled."), true
	case errors.Is(err, message.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return unavailable("Nothing was promised. Repeat the request with the same idempotency key."), true
	}
	return newProblem(http.StatusInternalServerError, "internal",
		"Something went wrong here. If it was a request with an idempotency key, it is safe to repeat it."), false
}

func unavailable(detail string) *Problem {
	return newProblem(http.StatusServiceUnavailable, "unavailable", detail).with("Retry-After", strconv.Itoa(retryAfter))
}

// tooMuch says when to come again, and by which policy: RateLimit is the fields of
// draft-ietf-httpapi-ratelimit-headers-09.
func tooMuch(b *ingest.Busy) *Problem {
	wait := strconv.Itoa(max(1, int(math.Ceil(b.RetryAfter.Seconds()))))
	policy := fmt.Sprintf("%q;q=%d", b.Policy, b.Quota)
	if b.Window > 0 {
		policy += fmt.Sprintf(";w=%d", int(b.Window.Seconds()))
	}
	return newProblem(http.StatusTooManyRequests, "too_much", b.Detail).with("Retry-After", wait).
		with("RateLimit-Policy", policy).with("RateLimit", fmt.Sprintf("%q;r=0;t=%s", b.Policy, wait))
}

// translate turns huma's own error model into ours, so that there is one.
func translate(_ huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	p := newProblem(m.Status, "invalid_request", "The request is not valid.")
	if m.Status >= http.StatusInternalServerError {
		p.Code, p.Detail = "internal", "Something went wrong here."
	}
	for _, e := range m.Errors {
		field := e.Location
		if _, name, found := strings.Cut(field, "."); found {
			field = name
		}
		p.Errors = append(p.Errors, ProblemField{field, e.Message})
	}
	return p, nil
}

func writeJSON(w http.ResponseWriter, status int, contentType string, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		// Only a type of ours that can't be encoded gets here.
		panic(fmt.Errorf("encode answer: %w", err))
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // the client is gone: there is nobody to tell
}
