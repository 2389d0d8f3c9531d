package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.uber.org/goleak"

	"github.com/stormpost/stormpost/internal/telemetry/otlptest"
)

const remote = "00-0102030405060708090a0b0c0d0e0f10-1112131415161718-01"

// output is a log that exporters write to while the test reads it.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func setup(t *testing.T, o Options) (*Telemetry, *output) {
	t.Helper()
	var out output
	o.Output = &out
	tel, err := Setup(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = tel.Shutdown(ctx) // a second one is refused by the SDK, and harmless
	})
	return tel, &out
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func shutdown(t *testing.T, tel *Telemetry) {
	t.Helper()
	if err := tel.Shutdown(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
}

// Two processes that pass a traceparent on are in one trace.
func TestTracesJoin(t *testing.T) {
	for _, compression := range []string{"none", "gzip"} {
		t.Run(compression, func(t *testing.T) {
			sink := otlptest.Start(t)
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.URL())
			t.Setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
			t.Setenv("OTEL_METRICS_EXPORTER", "none")

			api, _ := setup(t, Options{Service: "api", Version: "1"})
			ctx, span := api.TracerProvider.Tracer("test").Start(contextWith(t.Context(), remote), "accept")
			parent := traceParent(ctx)
			span.SetAttributes(attribute.String("lane", "a"), attribute.Int("attempt", 2), attribute.Bool("again", true))
			span.End()

			t.Setenv("OTEL_SERVICE_NAME", "worker")
			worker, _ := setup(t, Options{Service: "overridden"})
			_, span = worker.TracerProvider.Tracer("test").Start(contextWith(t.Context(), parent), "deliver")
			span.End()
			shutdown(t, api)
			shutdown(t, worker)

			find := func(spans []otlptest.Span, name string) (found otlptest.Span) {
				for _, s := range spans {
					if s.Name == name {
						found = s
					}
				}
				return found
			}
			var accept, deliver otlptest.Span
			err := sink.Wait(within(t, 10*time.Second), func(spans []otlptest.Span) bool {
				accept, deliver = find(spans, "accept"), find(spans, "deliver")
				return accept.Name != "" && deliver.Name != ""
			})
			if err != nil {
				t.Fatal(err)
			}
			if want := "0102030405060708090a0b0c0d0e0f10"; accept.TraceID != want || deliver.TraceID != want {
				t.Errorf("trace ids %s and %s, want %s", accept.TraceID, deliver.TraceID, want)
			}
			if accept.ParentID != "1112131415161718" || deliver.ParentID != accept.SpanID {
				t.Errorf("accept %+v\ndeliver %+v: not parent and child", accept, deliver)
			}
			if accept.Service != "api" || deliver.Service != "worker" {
				t.Errorf("services %q and %q, want api and worker", accept.Service, deliver.Service)
			}
			if a := accept.Attributes; a["lane"] != "a" || a["attempt"] != "2" || a["again"] != "true" {
				t.Errorf("attributes %v", a)
			}
		})
	}
}

// Without an endpoint no span is recorded, but the context goes on.
func TestWithoutEndpoint(t *testing.T) {
	tel, _ := setup(t, Options{Service: "s"})
	ctx, span := tel.TracerProvider.Tracer("test").Start(contextWith(t.Context(), remote), "accept")
	defer span.End()
	if span.IsRecording() {
		t.Error("a span is recorded for nobody")
	}
	if got := traceParent(ctx); got != remote {
		t.Errorf("traceparent %q, want %q", got, remote)
	}
}

func TestSampler(t *testing.T) {
	t.Setenv("OTEL_TRACES_EXPORTER", "otlp")
	t.Setenv("OTEL_TRACES_SAMPLER", "always_off")
	tel, _ := setup(t, Options{Service: "s"})
	_, span := tel.TracerProvider.Tracer("test").Start(t.Context(), "accept")
	defer span.End()
	if span.SpanContext().IsSampled() || !span.SpanContext().IsValid() {
		t.Errorf("span %+v, want a valid one that isn't sampled", span.SpanContext())
	}
}

func TestMetrics(t *testing.T) {
	sink := otlptest.Start(t)
	t.Setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", sink.URL()+"/v1/metrics")
	tel, _ := setup(t, Options{Service: "s", Version: "7"})
	counter, err := tel.MeterProvider.Meter("test").Int64Counter("stormpost.accepted")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 3)

	w := httptest.NewRecorder()
	tel.MetricsHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{"stormpost_accepted_total 3\n", `service_version="7"`, "go_goroutines ", "process_start_time_seconds "} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %q in\n%s", want, w.Body)
		}
	}
	shutdown(t, tel)
	if err := sink.WaitMetric(within(t, 10*time.Second), "stormpost.accepted"); err != nil {
		t.Error(err)
	}
}

// A collector that never answers holds up neither spans nor, beyond its ctx,
// Shutdown; and neither signal takes the other's time.
func TestCollectorHangs(t *testing.T) {
	before := goleak.IgnoreCurrent()
	// The exports that were cut short fail now, not in the log of the next test.
	defer func() { goleak.VerifyNone(t, before) }()
	asked, release := make(chan string, 100), make(chan struct{})
	hung := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path
		<-release
	}))
	defer hung.Close()
	defer close(release)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", hung.URL)
	t.Setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
	t.Setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")

	tel, _ := setup(t, Options{Service: "s"})
	counter, err := tel.MeterProvider.Meter("test").Int64Counter("stormpost.accepted")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 1)
	tracer := tel.TracerProvider.Tracer("test")
	for range 10_000 { // would take for ever if a span waited for its export
		_, span := tracer.Start(t.Context(), "accept")
		span.End()
	}
	if path := <-asked; path != "/v1/traces" {
		t.Errorf("asked for %s first, want /v1/traces", path)
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- tel.Shutdown(ctx) }()
	for path := range asked { // the metrics, in spite of the traces
		if path == "/v1/metrics" {
			break
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown: %v, want canceled", err)
	}
}

// What an exporter can't do is a line in the process's own log.
func TestCollectorRefuses(t *testing.T) {
	refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, strings.Repeat("no ", 1000), http.StatusForbidden)
	}))
	defer refuses.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", refuses.URL+"/v1/traces")
	tel, out := setup(t, Options{Service: "s"})
	_, span := tel.TracerProvider.Tracer("test").Start(t.Context(), "accept")
	span.End()
	err := tel.Shutdown(within(t, 10*time.Second))

	var line struct{ Level, Msg, Error string }
	if jerr := json.Unmarshal([]byte(out.String()), &line); jerr != nil {
		t.Fatalf("log %q, shutdown %v: %v", out, err, jerr)
	}
	if line.Level != "WARN" || line.Msg != "telemetry failed" || !strings.Contains(line.Error, "403") || len(line.Error) > maxReport+len("…") {
		t.Errorf("logged %+v", line)
	}
}

func TestSecretsStayOut(t *testing.T) {
	sink := otlptest.Start(t)
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", sink.URL()+"/v1/traces")
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization: s3cret")
	_, out := setup(t, Options{Service: "s"})
	if got := out.String(); !strings.Contains(got, "parse headers") || strings.Contains(got, "s3cret") {
		t.Errorf("logged %q, want a line on headers without the secret", got)
	}
}

func TestLogger(t *testing.T) {
	tel, out := setup(t, Options{Service: "s", LogLevel: "warn"})
	ctx := contextWith(t.Context(), remote)
	log := tel.Logger.With("part", "test")
	log.InfoContext(ctx, "below the level")
	log.WarnContext(ctx, "traced")
	log.Warn("bare")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("lines %q, want 2", lines)
	}
	for i, want := range []map[string]string{
		{"msg": "traced", "part": "test", "trace_id": "0102030405060708090a0b0c0d0e0f10", "span_id": "1112131415161718"},
		{"msg": "bare", "part": "test", "trace_id": "", "span_id": ""},
	} {
		got := make(map[string]string)
		if err := json.Unmarshal([]byte(lines[i]), &got); err != nil {
			t.Fatal(err)
		}
		for key, value := range want {
			if got[key] != value {
				t.Errorf("line %s: %s = %q, want %q", lines[i], key, got[key], value)
			}
		}
	}

	tel, out = setup(t, Options{Service: "s", LogFormat: "text"})
	tel.Logger.InfoContext(ctx, "traced")
	if got := out.String(); !strings.Contains(got, "msg=traced trace_id=0102030405060708090a0b0c0d0e0f10 span_id=1112131415161718") {
		t.Errorf("text %q", got)
	}
}

func TestBadOptions(t *testing.T) {
	for _, o := range []Options{{LogLevel: "loud"}, {LogFormat: "xml"}} {
		if _, err := Setup(t.Context(), o); err == nil {
			t.Errorf("Setup(%+v): no error", o)
		}
	}
}
