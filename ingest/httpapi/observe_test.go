package httpapi_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/stormpost/stormpost/ingest/httpapi"
)

// tracer gives each span a new id in its parent's trace, or in trace 1.
type tracer struct {
	tracenoop.TracerProvider
	spans int
}

func (tr *tracer) Tracer(string, ...trace.TracerOption) trace.Tracer { return starter{t: tr} }

type starter struct {
	tracenoop.Tracer
	t *tracer
}

func (s starter) Start(ctx context.Context, _ string, _ ...trace.SpanStartOption) (context.Context, trace.Span) {
	s.t.spans++
	parent := trace.SpanContextFromContext(ctx)
	id := parent.TraceID()
	if !parent.IsValid() {
		id = trace.TraceID{15: 1}
	}
	ctx = trace.ContextWithSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: id, SpanID: trace.SpanID{7: byte(s.t.spans)}, TraceFlags: trace.FlagsSampled,
	}))
	return ctx, trace.SpanFromContext(ctx)
}

// meter keeps the attributes of what is recorded.
type meter struct {
	metricnoop.MeterProvider
	mu   sync.Mutex
	seen map[string]int
}

func (m *meter) Meter(string, ...metric.MeterOption) metric.Meter { return instruments{m: m} }

type instruments struct {
	metricnoop.Meter
	m *meter
}

func (i instruments) Float64Histogram(string, ...metric.Float64HistogramOption) (metric.Float64Histogram, error) {
	return histogram{m: i.m}, nil
}

type histogram struct {
	metricnoop.Float64Histogram
	m *meter
}

func (h histogram) Record(_ context.Context, _ float64, options ...metric.RecordOption) {
	set := metric.NewRecordConfig(options).Attributes()
	var b strings.Builder
	for _, kv := range set.ToSlice() {
		b.WriteString(kv.Value.String() + " ")
	}
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	h.m.seen[strings.TrimSpace(b.String())]++
}

func TestObserved(t *testing.T) {
	tr, m := &tracer{}, &meter{seen: map[string]int{}}
	var log bytes.Buffer
	f := newFixture(t, func(c *httpapi.Config) {
		c.TracerProvider, c.MeterProvider = tr, m
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	f.do("POST", "/v1/emails", "one", strings.ReplaceAll(goodEmail, `"s"`, `"canary-subject"`),
		"Traceparent", "00-0102030405060708090a0b0c0d0e0f10-1112131415161718-01", "Idempotency-Key", "canary-key")
	if got, want := f.items[0].Trace, "00-0102030405060708090a0b0c0d0e0f10-0000000000000001-01"; got != want {
		t.Errorf("trace %s, want the request's span within its client's trace, %s", got, want)
	}
	f.do("POST", "/v1/emails", "one", goodEmail, "Traceparent", "nonsense")
	if got, want := f.items[1].Trace, "00-00000000000000000000000000000001-0000000000000002-01"; got != want {
		t.Errorf("trace %s, want %s", got, want)
	}
	for range 3 {
		f.do("GET", "/v1/messages/canary-id", "one", "")
		f.do("GET", "/canary-path", "one", "")
		f.do("CANARY", "/v1/emails", "one", "")
	}
	f.panics = true
	f.do("POST", "/v1/emails", "one", goodEmail)
	want := map[string]int{
		"POST 202 /v1/emails": 2, "GET 404 /v1/messages/{id}": 3, "GET 404 unmatched": 3, "_OTHER 405 unmatched": 3, "POST 500 /v1/emails": 1,
	}
	if len(m.seen) != len(want) {
		t.Errorf("series: %v", m.seen)
	}
	for series, n := range want {
		// Attributes are sorted by key: method, status, route.
		if m.seen[series] != n {
			t.Errorf("%s: %d times, want %d; all: %v", series, m.seen[series], n, m.seen)
		}
	}
	text := log.String()
	for _, canary := range []string{"canary", "example.net", "a@example"} {
		if strings.Contains(text, canary) {
			t.Errorf("the log holds %q:\n%s", canary, text)
		}
	}
	for _, part := range []string{"route=/v1/emails", "status=202", "trace_id=0102030405060708090a0b0c0d0e0f10", "key=11", "panicked"} {
		if !strings.Contains(text, part) {
			t.Errorf("the log has no %q:\n%s", part, text)
		}
	}
}
