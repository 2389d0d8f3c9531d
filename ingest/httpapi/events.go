package httpapi

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/message"
)

// registerEvents is the door for providers. They have no API key: each source
// checks its own provider's signature.
func (a *api) registerEvents() {
	op := huma.Operation{
		OperationID: "provider-events", Method: http.MethodPost, Path: "/events/{provider}", Tags: []string{"Providers"},
		Summary: "Called by a provider: bounces, complaints and deliveries, signed in its own way",
		Parameters: []*huma.Param{{
			Name: "provider", In: "path", Required: true, Description: "ses, resend, postmark or sendgrid, if it is configured.", Schema: &huma.Schema{Type: huma.TypeString},
		}},
		RequestBody: &huma.RequestBody{Required: true, Description: "As the provider has it, at most 1 MiB.", Content: map[string]*huma.MediaType{
			"application/json": {Schema: &huma.Schema{}, Example: map[string]string{"RecordType": "Delivery"}},
		}},
	}
	op.Responses = map[string]*huma.Response{"204": {Description: "Kept, or nothing to us."}}
	a.problems(&op, http.StatusBadRequest, http.StatusUnauthorized, http.StatusNotFound, http.StatusRequestEntityTooLarge, http.StatusRequestTimeout,
		http.StatusServiceUnavailable)
	a.register(&op, a.tellEvents)
}

func (a *api) tellEvents(w http.ResponseWriter, r *http.Request) {
	source := a.Events[chi.URLParam(r, "provider")]
	if source == nil {
		a.fail(w, r, notFound())
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), a.Limits.Request)
	defer cancel()
	var told []message.ProviderEvent
	var err error
	if bad := a.read(w, http.MaxBytesReader(w, r.Body, ingest.MaxEventBody), r.ContentLength, ingest.MaxEventBody, func(body []byte) {
		told, err = source.Read(ctx, r.Header, body)
	}); bad != nil {
		a.fail(w, r, bad)
		return
	}
	switch {
	case errors.Is(err, ingest.ErrForged):
		a.fail(w, r, newProblem(http.StatusUnauthorized, "unauthorized", "This isn't signed as the provider signs it."))
	case errors.Is(err, ingest.ErrMalformed):
		a.fail(w, r, newProblem(http.StatusBadRequest, "malformed", err.Error()))
	case err != nil:
		a.log.WarnContext(ctx, "a provider's event could not be checked", "provider", chi.URLParam(r, "provider"), "error", err)
		a.fail(w, r, unavailable("The event can't be checked now. Tell again."))
	default:
		if err := a.Ledger.Tell(ctx, told); err != nil {
			a.fail(w, r, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}
