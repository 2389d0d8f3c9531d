// Package httpapi is the HTTP door: it decodes requests, calls ingest or the
// ledger, and encodes the answers. /openapi.json describes it.
//
// The bodies of POST are decoded by encoding/json behind a strict check of our
// own (strict.go): alone it lets pass what would make two different requests
// look the same, such as repeated members and broken Unicode. huma would decode
// each body twice and take two to three times as long. What has nothing but
// parameters goes through huma, and all of it is in one OpenAPI document.
package httpapi

import (
	"context"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/sync/semaphore"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

// Verifier tells who an API key stands for. message.ErrUnavailable means that it
// can't tell yet, which is 503; any other error means 401.
type Verifier interface {
	Verify(text string) (*keyring.Principal, error)
}

// Check is one thing that has to work before requests should come here.
type Check struct {
	Name string
	Err  error // nil when it works; its text is shown to anyone who asks
}

// Config is what the API is made of. Service, Ledger, Keyring and Incidents are required;
// the rest may be nil or zero.
type Config struct {
	Service        *ingest.Service
	Ledger         Ledger
	Journal        Journal // nil: there is none
	Keyring        Verifier
	Incidents      Incidents
	Credentials    Credentials // nil: the process signs in nowhere
	Ready          func(context.Context) []Check
	TracerProvider trace.TracerProvider
	MeterProvider  metric.MeterProvider
	Logger         *slog.Logger
	Version        string // of the program, for the OpenAPI document
	// Providers are the names of those that can be held; with none, any name.
	Providers []string
	// Events are the providers that may tell of messages, by name.
	Events map[string]ingest.EventSource
	Limits Limits
}

// Limits bounds what a client can ask for. Zero fields get the default named.
type Limits struct {
	Body          int64         // bytes of a body, also after gunzip: 10 MiB
	BodyMemory    int64         // bytes of large bodies held at once: 256 MiB
	BodyTime      time.Duration // until a body is read: 30 s
	Request       time.Duration // until a request, or a batch's line, is answered: 10 s
	BatchLines    int           // lines of a batch: 1,000
	BatchParallel int           // lines of a batch submitted at once: 200
}

func (l Limits) orDefaults() Limits {
	setDefault(&l.Body, 10<<20)
	setDefault(&l.BodyMemory, 256<<20)
	setDefault(&l.BodyTime, 30*time.Second)
	setDefault(&l.Request, 10*time.Second)
	setDefault(&l.BatchLines, 1000)
	setDefault(&l.BatchParallel, 200)
	l.BodyMemory = max(l.BodyMemory, 2*l.Body)
	return l
}

func setDefault[T int | int64 | time.Duration](v *T, value T) {
	if *v == 0 {
		*v = value
	}
}

type api struct {
	Config
	log    *slog.Logger
	router *chi.Mux
	huma   huma.API
	shapes shapes
	body   sync.Pool           // of *bytes.Buffer, for small bodies
	memory *semaphore.Weighted // of large bodies
}

// New makes the handler of the whole API.
func New(c Config) http.Handler {
	c.Limits = c.Limits.orDefaults()
	if c.TracerProvider == nil {
		c.TracerProvider = tracenoop.NewTracerProvider()
	}
	if c.MeterProvider == nil {
		c.MeterProvider = metricnoop.NewMeterProvider()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Ready == nil {
		c.Ready = func(context.Context) []Check { return nil }
	}
	a := &api{
		Config: c,
		log:    c.Logger,
		router: chi.NewRouter(),
		shapes: newShapes(),
		memory: semaphore.NewWeighted(c.Limits.BodyMemory),
	}
	a.huma = huma.NewAPI(huma.Config{
		OpenAPI:       newDocument(c.Version),
		Formats:       map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat: "application/json",
		Transformers:  []huma.Transformer{translate},
	}, (*adapter)(a))
	a.router.Use(middleware.GetHead)
	a.registerSubmit()
	a.registerBatch()
	a.registerMessages()
	a.registerStreams()
	a.registerAudit()
	a.registerLanes()
	a.registerDoubts()
	a.registerIncidents()
	a.registerCredentials()
	a.registerHolds()
	a.registerReplays()
	a.registerSuppressions()
	a.registerEvents()
	a.registerHealth()
	a.registerDocument()
	a.router.NotFound(func(w http.ResponseWriter, _ *http.Request) { notFound().write(w) })
	a.router.MethodNotAllowed(a.methodNotAllowed)
	return a.observe(a.router)
}

// adapter lets huma mount its operations as ours are.
type adapter api

func (ad *adapter) Handle(op *huma.Operation, handle func(huma.Context)) {
	a := (*api)(ad)
	a.mount(op, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), a.Limits.Request)
		defer cancel()
		handle(newHumaContext(op, r.WithContext(ctx), w))
	})
}

func (ad *adapter) ServeHTTP(w http.ResponseWriter, r *http.Request) { ad.router.ServeHTTP(w, r) }

// register documents an operation and mounts its handler.
func (a *api) register(op *huma.Operation, handle http.HandlerFunc) {
	a.huma.OpenAPI().AddOperation(op)
	a.mount(op, handle)
}

// mount routes an operation to its handler, for whoever may call it: the
// document's security is the rule that is enforced.
func (a *api) mount(op *huma.Operation, handle http.HandlerFunc) {
	allowed := scopesOf(op)
	a.router.MethodFunc(op.Method, op.Path, func(w http.ResponseWriter, r *http.Request) {
		state := stateOf(r.Context())
		state.route = op.Path
		if allowed != nil {
			if p := a.signIn(r, allowed); p != nil {
				p.write(w)
				return
			}
			if err := checkURL(op, r.URL); err != nil {
				a.fail(w, r, err)
				return
			}
		}
		handle(w, r)
	})
}

// checkURL refuses a path and query that say what nothing here can be called, and
// parameters that op doesn't have, which would ask for something else than was meant.
func checkURL(op *huma.Operation, u *url.URL) error {
	if !utf8.ValidString(u.Path) || strings.ContainsRune(u.Path, 0) {
		return notFound()
	}
	if u.RawQuery == "" {
		return nil
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return message.FieldErrors{{Field: "query", Problem: "can't be read"}}
	}
	var wrong message.FieldErrors
	for _, name := range slices.Sorted(maps.Keys(query)) {
		i := slices.IndexFunc(op.Parameters, func(p *huma.Param) bool { return p.In == "query" && p.Name == name })
		value := query[name][0]
		problem := ""
		switch {
		case i < 0:
			problem = "is unknown"
		case len(query[name]) > 1:
			problem = "is repeated"
		case !utf8.ValidString(value) || strings.ContainsRune(value, 0):
			problem = "want UTF-8 without NUL"
		case op.Parameters[i].Schema.Format == "date-time" && value != "" && !isTime(value):
			problem = "want " + wanted[kindTime]
		}
		if problem != "" && len(wrong) < ingest.MaxProblems {
			wrong = append(wrong, message.FieldError{Field: ingest.MemberPath("", name), Problem: problem})
		}
	}
	if len(wrong) > 0 {
		return wrong
	}
	return nil
}

func (a *api) methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	allow := http.Header{}
	for _, m := range []string{http.MethodDelete, http.MethodGet, http.MethodPost} {
		if a.router.Match(chi.NewRouteContext(), m, r.URL.Path) {
			allow.Add("Allow", m)
		}
	}
	if slices.Contains(allow["Allow"], http.MethodGet) {
		allow.Add("Allow", http.MethodHead)
	}
	p := newProblem(http.StatusMethodNotAllowed, "method_not_allowed", "This path has no such method.")
	if p.header = allow; len(allow) == 0 {
		p = notFound() // chi asks for no path when it doesn't know the method
	}
	p.write(w)
}

// fail writes the problem that err is, and logs the one that it can't name.
func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	a.problem(r.Context(), err).write(w)
}

func (a *api) problem(ctx context.Context, err error) *Problem {
	p, known := problemOf(err)
	if !known {
		a.log.ErrorContext(ctx, "request failed", "route", stateOf(ctx).route, "request_id", stateOf(ctx).id, "error", err)
	}
	return p
}
