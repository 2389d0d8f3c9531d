package httpapi

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

const (
	keyHeader      = "Idempotency-Key"
	replayedHeader = "Idempotent-Replayed"
)

// submission is the answer to what was accepted.
type submission struct {
	ID       string      `json:"id" example:"sub_aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4" doc:"Names the submission."`
	RepeatOf string      `json:"repeat_of,omitempty" doc:"Without an idempotency key, while the shield is up: the earlier submission with the same content and recipients."`
	Messages []submitted `json:"messages" doc:"One for each recipient, in the order of to, cc, bcc."`
}

type submitted struct {
	ID       string        `json:"id" doc:"Names the message."`
	To       string        `json:"to" doc:"Its recipient."`
	State    message.State `json:"state" example:"queued" doc:"How it is doing."`
	Stream   string        `json:"stream" example:"default" doc:"The stream that numbers it."`
	Sequence *int64        `json:"sequence" example:"1" doc:"Its number in the stream; null while it is journaled."`
}

func (a *api) registerSubmit() {
	a.register(a.submitOperation(message.ChannelEmail), func(w http.ResponseWriter, r *http.Request) {
		a.submit(w, r, message.ChannelEmail)
	})
	a.register(a.submitOperation(message.ChannelPush), func(w http.ResponseWriter, r *http.Request) {
		a.submit(w, r, message.ChannelPush)
	})
}

func (a *api) submit(w http.ResponseWriter, r *http.Request, channel message.Channel) {
	key, err := idempotencyKey(r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	a.withBody(w, r, []string{"application/json"}, func(body []byte) {
		content, wrong, err := a.shapes.decodeContent(channel, body)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		accepted, err := a.accept(r.Context(), key, content, wrong)
		if err != nil {
			p := a.problem(r.Context(), err)
			if errors.Is(err, message.ErrKeyReused) {
				p.Errors[0].Field = keyHeader // in a batch it is a member
			}
			p.write(w)
			return
		}
		status := http.StatusAccepted
		if accepted.Replayed {
			w.Header().Set(replayedHeader, "true")
			status = http.StatusOK
		}
		writeJSON(w, status, "application/json", submission{accepted.ID.String(), idText(accepted.RepeatOf), submittedOf(accepted)})
	})
}

// accept hands one decoded request to the service. A client that hangs up
// doesn't end it: it is too late to take back, and better published than left
// to the lane's cursor.
func (a *api) accept(ctx context.Context, key string, c *message.Content, wrong message.FieldErrors) (*ingest.Accepted, error) {
	request := ingest.Request{Principal: principalOf(ctx), Key: key, Content: c, Trace: traceParent(ctx)}
	if len(wrong) > 0 {
		if c != nil {
			wrong = a.complete(wrong, request)
		}
		return nil, wrong
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.Limits.Request)
	defer cancel()
	return a.Service.Submit(ctx, request)
}

func submittedOf(accepted *ingest.Accepted) []submitted {
	out := make([]submitted, len(accepted.Messages))
	for i, m := range accepted.Messages {
		out[i] = submitted{ID: m.ID.String(), To: m.To, State: m.State, Stream: m.Stream, Sequence: number(m.Sequence)}
	}
	return out
}

// idText shows an id, or nothing where there is none.
func idText(id message.ID) string {
	if id == (message.ID{}) {
		return ""
	}
	return id.String()
}

// number shows a message's number, or null while it has none.
func number(n int64) *int64 {
	if n == 0 {
		return nil
	}
	return &n
}

// idempotencyKey is the request's key, or empty when it has none. It is taken as
// it stands, quotes included.
func idempotencyKey(r *http.Request) (string, error) {
	values, given := r.Header[keyHeader]
	if !given {
		return "", nil
	}
	if len(values) > 1 {
		return "", message.FieldErrors{{Field: keyHeader, Problem: "is repeated"}}
	}
	wrong := ingest.ValidateKey(values[0])
	for i := range wrong {
		wrong[i].Field = keyHeader
	}
	if len(wrong) > 0 {
		return "", wrong
	}
	return values[0], nil
}

func (a *api) submitOperation(channel message.Channel) *huma.Operation {
	op := &huma.Operation{
		Method:   http.MethodPost,
		Tags:     []string{"Submit"},
		Security: anyOf(keyring.Send),
		Parameters: []*huma.Param{{
			Name: keyHeader, In: "header", Example: "order-4711-receipt",
			Description: "1 to 255 printable ASCII characters. The same request under the same key is kept once, and answered with the first one's answer.",
			Schema:      &huma.Schema{Type: huma.TypeString, MinLength: new(1), MaxLength: new(255)},
		}},
	}
	var schema *huma.Schema
	var request map[string]any
	if channel == message.ChannelEmail {
		op.OperationID, op.Path, op.Summary = "submit-email", "/v1/emails", "Submit an email"
		schema, request = a.schemaOf(message.Email{}), map[string]any{
			"from": "Acme <hello@example.com>", "to": []string{"Jo <jo@example.net>"},
			"subject": "Your code", "text": "1234", "stream": "codes",
		}
	} else {
		op.OperationID, op.Path, op.Summary = "submit-push", "/v1/pushes", "Submit a push message"
		schema, request = a.schemaOf(message.Push{}), map[string]any{
			"platform": "fcm", "to": "a-registration-token", "notification": map[string]any{"title": "Your code", "body": "1234"},
		}
	}
	example := submission{
		ID: exampleSubmission,
		Messages: []submitted{{
			ID: exampleMessage, To: "Jo <jo@example.net>", State: message.StateQueued, Stream: "codes", Sequence: number(1),
		}},
	}
	answer := a.schemaOf(submission{})
	op.Responses = map[string]*huma.Response{
		"202": jsonResponse("It is kept.", answer, example),
		"200": jsonResponse("The same request was kept before; this is its answer.", answer, example),
	}
	op.Responses["200"].Headers = map[string]*huma.Param{replayedHeader: {Schema: &huma.Schema{Type: huma.TypeString, Enum: []any{"true"}}}}
	a.documentBody(op, schema, request, "application/json")
	a.problems(op, http.StatusTooManyRequests)
	return op
}
