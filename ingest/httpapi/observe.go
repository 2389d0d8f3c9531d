package httpapi

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/stormpost/stormpost/internal/keyring"
)

const scopeName = "github.com/stormpost/stormpost/ingest/httpapi"

// state is what is known of a request while it is served, by its goroutine.
type state struct {
	id        string
	route     string // the operation's path; empty when there is none
	principal *keyring.Principal
}

type stateKey struct{}

func stateOf(ctx context.Context) *state {
	if s, ok := ctx.Value(stateKey{}).(*state); ok {
		return s
	}
	return &state{}
}

// observe gives a request its id and span, and counts and logs how it ended.
// Neither holds anything of the body or the path but the operation's own name.
func (a *api) observe(next http.Handler) http.Handler {
	tracer := a.TracerProvider.Tracer(scopeName)
	duration, err := a.MeterProvider.Meter(scopeName).Float64Histogram("http.server.request.duration",
		metric.WithUnit("s"), metric.WithDescription("Duration of HTTP requests."),
		metric.WithExplicitBucketBoundaries(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10))
	if err != nil {
		a.log.Error("no metrics of requests", "error", err) // the instrument is usable all the same
	}
	propagator := propagation.TraceContext{}

	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		s := &state{id: requestID(r)}
		ctx := propagator.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, span := tracer.Start(ctx, knownMethod(r.Method), trace.WithSpanKind(trace.SpanKindServer))
		ctx = context.WithValue(ctx, stateKey{}, s)
		rec := &recorder{ResponseWriter: w}
		rec.Header().Set("X-Request-Id", s.id)
		if r.ContentLength != 0 {
			// Also for a body that nobody asks for: before it answers, net/http reads what
			// is left of it. read takes the deadline away. A writer in a test may not know how.
			_ = http.NewResponseController(rec).SetReadDeadline(start.Add(a.Limits.BodyTime))
		}

		defer func() {
			if v := recover(); v != nil {
				a.recovered(ctx, rec, v)
			}
			took := time.Since(start)
			method, route, status := knownMethod(r.Method), s.route, rec.status
			if route == "" {
				route = "unmatched"
			}
			duration.Record(ctx, took.Seconds(), metric.WithAttributes(
				attribute.String("http.request.method", method),
				attribute.String("http.route", route),
				attribute.Int("http.response.status_code", status)))
			endSpan(span, method, route, status)
			a.access(ctx, s, method, route, rec, took)
		}()
		next.ServeHTTP(rec, r.WithContext(ctx))
	})
}

func endSpan(span trace.Span, method, route string, status int) {
	if span.IsRecording() {
		span.SetName(method + " " + route)
		span.SetAttributes(
			attribute.String("http.request.method", method),
			attribute.String("http.route", route),
			attribute.Int("http.response.status_code", status))
		if status >= http.StatusInternalServerError {
			span.SetStatus(codes.Error, http.StatusText(status))
		}
	}
	span.End()
}

// access logs one request: failures of ours as warnings, the others for debugging.
func (a *api) access(ctx context.Context, s *state, method, route string, rec *recorder, took time.Duration) {
	level := slog.LevelDebug
	if rec.status >= http.StatusInternalServerError {
		level = slog.LevelWarn
	}
	if !a.log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("method", method), slog.String("route", route), slog.Int("status", rec.status),
		slog.Duration("took", took), slog.Int64("bytes", rec.bytes), slog.String("request_id", s.id),
	}
	if s.principal != nil {
		attrs = append(attrs, slog.Int64("key", s.principal.KeyID), slog.Int("tenant", int(s.principal.Tenant)))
	}
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() {
		attrs = append(attrs, slog.String("trace_id", sc.TraceID().String()))
	}
	a.log.LogAttrs(ctx, level, "request", attrs...)
}

// recovered answers for a handler that panicked, if nothing was answered yet.
func (a *api) recovered(ctx context.Context, rec *recorder, v any) {
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v)
	}
	a.log.ErrorContext(ctx, "handler panicked", "route", stateOf(ctx).route, "request_id", stateOf(ctx).id,
		"panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	if rec.status == 0 {
		p, _ := problemOf(errors.New("panic"))
		p.write(rec)
	}
}

// requestID is the client's own, if it is short and plain, or a new one.
func requestID(r *http.Request) string {
	const limit = 128
	id := r.Header.Get("X-Request-Id")
	if id == "" || len(id) > limit {
		return rand.Text()
	}
	for _, c := range []byte(id) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			return rand.Text()
		}
	}
	return id
}

// knownMethod keeps a client from making up values of a metric's attribute.
func knownMethod(m string) string {
	switch m {
	case http.MethodGet, http.MethodPost, http.MethodDelete, http.MethodHead, http.MethodPut, http.MethodPatch, http.MethodOptions:
		return m
	}
	return "_OTHER"
}

// traceParent is the span in ctx as W3C Trace Context has it, or empty.
func traceParent(ctx context.Context) string {
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() {
		return ""
	}
	return "00-" + sc.TraceID().String() + "-" + sc.SpanID().String() + "-" + (sc.TraceFlags() & trace.FlagsSampled).String()
}

// recorder sees the status and size of an answer pass.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && status >= http.StatusOK {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController find what is below.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
