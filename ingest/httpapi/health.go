package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

type statusView struct {
	Status string `json:"status" example:"ok" doc:"ok."`
}

func (a *api) registerHealth() {
	live := a.operation(huma.Operation{
		OperationID: "livez", Method: http.MethodGet, Path: "/livez", Tags: []string{"Health"},
		Summary: "Say that the process serves requests",
	}, statusView{"ok"})
	ready := a.operation(huma.Operation{
		OperationID: "readyz", Method: http.MethodGet, Path: "/readyz", Tags: []string{"Health"},
		Summary:     "Say whether requests should come here",
		Description: "The 503 names each check that fails in errors.",
	}, statusView{"ok"}, http.StatusServiceUnavailable)
	for _, op := range []*huma.Operation{&live, &ready} {
		op.Responses["200"].Content["application/json"].Schema = a.schemaOf(statusView{})
	}
	a.register(&live, func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, "application/json", statusView{"ok"})
	})
	a.register(&ready, a.readyz)
}

func (a *api) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), a.Limits.Request)
	defer cancel()
	var failing []ProblemField
	for _, c := range a.Ready(ctx) {
		if c.Err != nil {
			failing = append(failing, ProblemField{c.Name, c.Err.Error()})
		}
	}
	if len(failing) > 0 {
		newProblem(http.StatusServiceUnavailable, "not_ready", "Requests shouldn't come here now.", failing...).write(w)
		return
	}
	writeJSON(w, http.StatusOK, "application/json", statusView{"ok"})
}
