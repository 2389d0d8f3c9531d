package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/stormpost/stormpost/internal/message"
)

const problemType = "application/problem+json"

// What the document's examples name.
const (
	exampleSubmission = "sub_aebagbafaydqqcikbmga2dqpcaireeyuculbogaz74"
	exampleMessage    = "msg_aebagbafaydqqcikbmga2dqpcaireeyuculbogaaaa"
)

var exampleTime = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func newDocument(version string) *huma.OpenAPI {
	if version == "" {
		version = "dev"
	}
	schemas := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	// huma documents its own error model; here there is one of ours.
	schemas.RegisterTypeAlias(reflect.TypeFor[huma.ErrorModel](), reflect.TypeFor[Problem]())
	schemas.RegisterTypeAlias(reflect.TypeFor[message.Target](), reflect.TypeFor[target]())
	schemas.RegisterTypeAlias(reflect.TypeFor[message.State](), reflect.TypeFor[stateName]())
	return &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title: "Stormpost", Version: version,
			Description: "Hands transactional email and push messages over, once. Every answer carries X-Request-Id; every failure " +
				"is problem details (RFC 9457) with a code for programs and errors that name each field.",
			License: &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
		},
		Components: &huma.Components{
			Schemas: schemas,
			SecuritySchemes: map[string]*huma.SecurityScheme{securityName: {
				Type: "http", Scheme: "bearer",
				Description: "An API key. Each operation names the scopes of which the key needs one.",
			}},
		},
		Tags: []*huma.Tag{
			{Name: "Submit", Description: "Hand messages over to Stormpost"},
			{Name: "Messages", Description: "See and cancel them"},
			{Name: "Streams", Description: "Prove that none is missing"},
			{Name: "Operate", Description: "For operators"},
			{Name: "Health", Description: "For load balancers and orchestrators"},
		},
	}
}

// registerDocument serves the document, which is complete by now.
func (a *api) registerDocument() {
	op := a.operation(huma.Operation{
		OperationID: "openapi", Method: http.MethodGet, Path: "/openapi.json", Tags: []string{"Health"},
		Summary: "This document",
	}, map[string]any{"openapi": "3.1.0"})
	op.Responses["200"].Content["application/json"].Schema = &huma.Schema{Type: huma.TypeObject}
	a.huma.OpenAPI().AddOperation(&op)
	a.describe()
	document, err := json.Marshal(a.huma.OpenAPI())
	if err != nil {
		panic(fmt.Errorf("encode the OpenAPI document: %w", err)) // it is made of constants
	}
	a.mount(&op, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(document)
	})
}

// operation completes an operation with an example of its answer and with the
// problems that it may answer beside those of every operation.
func (a *api) operation(op huma.Operation, example any, problems ...int) huma.Operation {
	op.Responses = map[string]*huma.Response{"200": jsonResponse("OK", nil, example)}
	if op.Security != nil {
		problems = append(problems, http.StatusUnprocessableEntity, http.StatusServiceUnavailable)
	}
	a.problems(&op, problems...)
	return op
}

func (a *api) problems(op *huma.Operation, statuses ...int) {
	statuses = append(statuses, http.StatusInternalServerError)
	if op.Security != nil {
		statuses = append(statuses, http.StatusUnauthorized, http.StatusForbidden)
	}
	schema := a.schemaOf(Problem{})
	for _, status := range statuses {
		op.Responses[strconv.Itoa(status)] = &huma.Response{
			Description: http.StatusText(status),
			Content:     map[string]*huma.MediaType{problemType: {Schema: schema}},
		}
	}
}

func (a *api) schemaOf(v any) *huma.Schema {
	t := reflect.TypeOf(v)
	return a.huma.OpenAPI().Components.Schemas.Schema(t, true, t.Name())
}

// documentBody tells of a body that withBody reads: its types, and what may be
// wrong with it.
func (a *api) documentBody(op *huma.Operation, schema *huma.Schema, example any, types ...string) {
	op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{}}
	for _, t := range types {
		op.RequestBody.Content[t] = &huma.MediaType{Schema: schema, Example: example}
	}
	op.Parameters = append(op.Parameters, &huma.Param{
		Name: "Content-Encoding", In: "header", Description: "How the body is compressed, if it is.",
		Schema: &huma.Schema{Type: huma.TypeString, Enum: []any{"gzip", "identity"}},
	})
	a.problems(op, http.StatusBadRequest, http.StatusRequestTimeout, http.StatusRequestEntityTooLarge,
		http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity, http.StatusServiceUnavailable)
}

func jsonResponse(description string, schema *huma.Schema, example any) *huma.Response {
	return &huma.Response{
		Description: description,
		Content:     map[string]*huma.MediaType{"application/json": {Schema: schema, Example: example}},
	}
}

// stateName documents message.State.
type stateName string

// Schema lists the states.
func (stateName) Schema(huma.Registry) *huma.Schema {
	s := &huma.Schema{Type: huma.TypeString}
	for _, state := range message.States() {
		s.Enum = append(s.Enum, string(state))
	}
	return s
}

// target documents message.Target.
type target struct{}

// Schema is a token's string, or the object of a topic or subscription.
func (target) Schema(huma.Registry) *huma.Schema {
	text := &huma.Schema{Type: huma.TypeString}
	return &huma.Schema{OneOf: []*huma.Schema{
		{Type: huma.TypeString, MaxLength: new(4096), Description: "A registration or device token."},
		{
			Type: huma.TypeObject, Description: "A topic (fcm).", AdditionalProperties: false,
			Properties: map[string]*huma.Schema{"topic": {Type: huma.TypeString, MaxLength: new(900)}}, Required: []string{"topic"},
		},
		{
			Type: huma.TypeObject, Description: "A subscription (webpush).", AdditionalProperties: false,
			Properties: map[string]*huma.Schema{
				"endpoint": {Type: huma.TypeString, MaxLength: new(2048)},
				"keys": {
					Type: huma.TypeObject, AdditionalProperties: false,
					Properties: map[string]*huma.Schema{"p256dh": text, "auth": text}, Required: []string{"p256dh", "auth"},
				},
			},
			Required: []string{"endpoint", "keys"},
		},
	}}
}

func exampleView() messageView {
	return messageView{
		ID: exampleMessage, Submission: exampleSubmission, State: message.StateSent, Stream: "codes", Sequence: number(1),
		Class: "transactional", Channel: "email", To: "Jo <jo@example.net>", AcceptedAt: exampleTime,
		ExpiresAt: exampleTime.Add(72 * time.Hour),
		Attempts: []attemptView{{
			Number: 1, Kind: "send", At: exampleTime, Outcome: "sent", OutcomeAt: exampleTime.Add(time.Second),
			Provider: "relay", Code: "250", Reply: "2.0.0 OK",
		}},
		Timeline: []eventView{
			{At: exampleTime, Event: "accepted"}, {At: exampleTime, Event: "sending", Attempt: 1},
			{At: exampleTime.Add(time.Second), Event: "sent", Attempt: 1, Detail: "2.0.0 OK"},
		},
	}
}
