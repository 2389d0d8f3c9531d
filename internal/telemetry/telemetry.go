// Package telemetry sets up traces, metrics and logs. It is the only importer
// of the OpenTelemetry SDK; all other packages use the API, through what Setup
// gives them.
//
// Export is configured by the standard OTEL_* variables alone:
//
//   - Metrics are always there for Prometheus, by MetricsHandler.
//   - OTLP over HTTP (http/protobuf) carries a signal when it has an endpoint,
//     OTEL_EXPORTER_OTLP_ENDPOINT or the signal's own, or when
//     OTEL_TRACES_EXPORTER or OTEL_METRICS_EXPORTER says otlp.
//   - OTEL_SDK_DISABLED=true and an exporter of none turn it off.
//   - OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_BSP_*
//     and the rest are the SDK's own.
//
// Without OTLP nothing is traced, which costs nothing, and the W3C trace context
// that comes with a request is still passed on. Exporters have bounded queues
// and drop what doesn't fit: none ever holds up or fails the work.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Options name the process, and say how it logs.
type Options struct {
	Service   string    // service.name, unless OTEL_SERVICE_NAME says otherwise
	Version   string    // service.version
	LogLevel  string    // debug, info (the default), warn or error
	LogFormat string    // json (the default) or text
	Output    io.Writer // where logs go; os.Stderr by default
}

// Telemetry is what a process hands to its parts. All of it is safe for
// concurrent use.
type Telemetry struct {
	Logger         *slog.Logger // adds trace_id and span_id from the context
	TracerProvider trace.TracerProvider
	MeterProvider  metric.MeterProvider

	registry *prometheus.Registry
	closers  []func(context.Context) error
}

// Setup makes the providers. An error names the setting that is wrong; a
// collector that can't be reached is none, and is logged when an export fails.
//
// The SDK reports its own failures only to a process-wide handler, so Setup
// replaces that: with several in one process, the last one's Logger has them.
func Setup(ctx context.Context, o Options) (*Telemetry, error) {
	if o.Output == nil {
		o.Output = os.Stderr
	}
	log, err := newLogger(o)
	if err != nil {
		return nil, err
	}
	traces, err := exports("TRACES")
	if err != nil {
		return nil, err
	}
	metrics, err := exports("METRICS")
	if err != nil {
		return nil, err
	}
	reportTo(log)

	t := &Telemetry{Logger: log, TracerProvider: noop.NewTracerProvider(), registry: prometheus.NewRegistry()}
	res := describe(ctx, o, log)
	if err := t.setupMetrics(ctx, res, metrics); err != nil {
		return nil, fmt.Errorf("telemetry: metrics: %w", err)
	}
	if traces {
		exporter, err := otlptracehttp.New(ctx)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("telemetry: traces: %w", err), t.Shutdown(ctx))
		}
		tp := sdktrace.NewTracerProvider(sdktrace.WithResource(res), sdktrace.WithBatcher(exporter))
		t.TracerProvider = tp
		t.closers = append(t.closers, tp.Shutdown)
	}
	return t, nil
}

// describe says who emits. What the environment says wins, and what can't be
// found out is left out.
func describe(ctx context.Context, o Options, log *slog.Logger) *resource.Resource {
	res, err := resource.New(ctx,
		// WithService names the instance, which keeps replicas' metrics apart.
		resource.WithService(), resource.WithTelemetrySDK(), resource.WithHost(), resource.WithProcessPID(),
		resource.WithAttributes(attribute.String("service.name", o.Service), attribute.String("service.version", o.Version)),
		resource.WithFromEnv())
	if err != nil {
		log.WarnContext(ctx, "telemetry's resource is incomplete", "error", err)
	}
	return res
}

// Shutdown exports what is left, until ctx ends. The providers give out only
// no-ops afterwards.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	// At the same time, so that no signal spends the time of another one.
	results := make(chan error, len(t.closers))
	for _, closer := range t.closers {
		go func() { results <- closer(ctx) }()
	}
	var err error
	for range t.closers {
		err = errors.Join(err, <-results)
	}
	if err != nil {
		return fmt.Errorf("telemetry: shut down: %w", err)
	}
	return nil
}
