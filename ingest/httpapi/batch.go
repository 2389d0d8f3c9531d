package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

const ndjson = "application/x-ndjson"

// batchTypes are what a batch may come as: the first is the one to use.
var batchTypes = []string{ndjson, "application/jsonl", "application/json"}

// lineAnswer is the answer to one line of a batch: what the same request would
// have got alone.
type lineAnswer struct {
	Line     int         `json:"line" example:"1" doc:"The line's number in the request, from 1."`
	Status   int         `json:"status" example:"202" doc:"The HTTP status that the line would have got alone."`
	ID       string      `json:"id,omitempty" doc:"Names the submission."`
	RepeatOf string      `json:"repeat_of,omitempty" doc:"As with a single request."`
	Messages []submitted `json:"messages,omitempty" doc:"One for each recipient."`
	Error    *Problem    `json:"error,omitempty" doc:"Why it was not kept."`
}

func (a *api) registerBatch() { a.register(a.batchOperation(), a.batch) }

// batch answers a line with a line, in their order and as soon as it can. The
// lines are submitted side by side, so that they share the ledger's batches:
// which of two lines comes first in a stream is not said.
func (a *api) batch(w http.ResponseWriter, r *http.Request) {
	if _, given := r.Header[keyHeader]; given {
		a.fail(w, r, message.FieldErrors{{Field: keyHeader, Problem: "is for one request: a batch's lines carry idempotency_key"}})
		return
	}
	a.withBody(w, r, batchTypes, func(body []byte) {
		lines := bytes.Split(bytes.TrimRight(body, "\r\n"), []byte{'\n'})
		switch {
		case len(bytes.TrimSpace(body)) == 0:
			a.fail(w, r, malformed("is empty"))
		case len(lines) > a.Limits.BatchLines:
			newProblem(http.StatusRequestEntityTooLarge, "too_many_lines",
				fmt.Sprintf("A batch has at most %d lines.", a.Limits.BatchLines),
				ProblemField{"body", fmt.Sprintf("has %d lines, want at most %d", len(lines), a.Limits.BatchLines)}).write(w)
		default:
			a.answerLines(w, r, lines)
		}
	})
}

// answerLines submits all lines, and returns when all of them are answered.
func (a *api) answerLines(w http.ResponseWriter, r *http.Request, lines [][]byte) {
	answers := make([]chan lineAnswer, len(lines))
	for i := range answers {
		answers[i] = make(chan lineAnswer, 1)
	}
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(a.Limits.BatchParallel, len(lines)) {
		workers.Go(func() {
			for i := range next {
				answers[i] <- a.answerLine(r.Context(), i+1, lines[i])
			}
		})
	}
	workers.Go(func() {
		defer close(next)
		for i := range lines {
			next <- i
		}
	})
	w.Header().Set("Content-Type", ndjson)
	w.WriteHeader(http.StatusOK)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for _, answer := range answers {
		_ = enc.Encode(<-answer) // the client may be gone: the lines are submitted all the same
	}
	workers.Wait()
}

// answerLine submits one line. What goes wrong with it, a panic included, is
// that line's alone.
func (a *api) answerLine(ctx context.Context, number int, line []byte) (answer lineAnswer) {
	defer func() {
		if v := recover(); v != nil {
			p := a.problem(ctx, fmt.Errorf("panic at line %d: %v", number, v))
			answer = lineAnswer{Line: number, Status: p.Status, Error: p}
		}
	}()
	accepted, err := a.acceptLine(ctx, line)
	if err != nil {
		p := a.problem(ctx, err)
		return lineAnswer{Line: number, Status: p.Status, Error: p}
	}
	status := http.StatusAccepted
	if accepted.Replayed {
		status = http.StatusOK
	}
	return lineAnswer{Line: number, Status: status, ID: accepted.ID.String(), RepeatOf: idText(accepted.RepeatOf), Messages: submittedOf(accepted)}
}

func (a *api) acceptLine(ctx context.Context, line []byte) (*ingest.Accepted, error) {
	if len(bytes.TrimSpace(line)) == 0 {
		return nil, malformed("is an empty line")
	}
	key, content, wrong, err := a.shapes.decodeLine(line)
	if err != nil {
		return nil, err
	}
	return a.accept(ctx, key, content, wrong)
}

func (a *api) batchOperation() *huma.Operation {
	op := &huma.Operation{
		OperationID: "submit-batch", Method: http.MethodPost, Path: "/v1/batches", Tags: []string{"Submit"},
		Summary: "Submit many emails and push messages",
		Description: "Takes up to 1,000 lines of JSON, each the body of an email or push with its channel and, if wanted, its " +
			"idempotency_key. A line that is wrong fails alone. Which of two lines is numbered first is not said.",
		Security: anyOf(keyring.Send),
		Responses: map[string]*huma.Response{"200": {
			Description: "One line of JSON for each line of the request, in the same order.",
			Content: map[string]*huma.MediaType{ndjson: {
				Schema: a.schemaOf(lineAnswer{}),
				Example: lineAnswer{Line: 1, Status: http.StatusAccepted, ID: exampleSubmission, Messages: []submitted{
					{ID: exampleMessage, To: "jo@example.net", State: message.StateQueued, Stream: "default", Sequence: number(7)},
				}},
			}},
		}},
	}
	a.documentBody(op, &huma.Schema{OneOf: []*huma.Schema{a.schemaOf(emailLine{}), a.schemaOf(pushLine{})}}, map[string]any{
		"channel": "email", "idempotency_key": "order-4711-receipt",
		"from": "Acme <hello@example.com>", "to": []string{"jo@example.net"}, "subject": "Receipt", "text": "Thanks!",
	}, batchTypes...)
	return op
}
