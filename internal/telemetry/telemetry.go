// Package telemetry sets up traces, metrics and logs. It is the only importer
// of the OpenTelemetry SDK; all other packages use the API, through what Setup
// gives them.
//
// Export is configured by the standard OTEL_* variables alone. Without an
// endpoint nothing is traced, which costs nothing, and W3C trace context that
// comes with a request is still passed on. No exporter ever holds anything up.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Options name the process, and say how it logs.
type Options struct {
	Service   string // default of OTEL_SERVICE_NAME
	Version   string
	LogLevel  string // debug, info, warn or error
	LogFormat string // json or text
	Output    io.Writer
}

// Telemetry is what a process hands to its parts.
type Telemetry struct {
	Logger         *slog.Logger
	TracerProvider trace.TracerProvider
	MeterProvider  metric.MeterProvider

	registry *prometheus.Registry
	closers  []func(context.Context) error
}

// Setup makes the providers. An error names the setting that is wrong.
func Setup(ctx context.Context, o Options) (*Telemetry, error) {
	log, err := newLogger(o)
	if err != nil {
		return nil, err
	}
	t := &Telemetry{Logger: log, TracerProvider: noop.NewTracerProvider(), registry: prometheus.NewRegistry()}
	t.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	res, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", o.Service), attribute.String("service.version", o.Version)),
		resource.WithFromEnv(), resource.WithTelemetrySDK(), resource.WithHost(), resource.WithProcessPID())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	export, err := exports()
	if err != nil {
		return nil, err
	}
	if err := t.setupMetrics(ctx, res, export["METRICS"]); err != nil {
		return nil, fmt.Errorf("telemetry: metrics: %w", err)
	}
	if export["TRACES"] {
		exp, err := otlptracehttp.New(ctx)
		if err != nil {
			return nil, fmt.Errorf("telemetry: traces: %w", err)
		}
		// The batcher drops spans when its queue is full, and never blocks.
		tp := sdktrace.NewTracerProvider(sdktrace.WithResource(res), sdktrace.WithBatcher(exp))
		t.TracerProvider = tp
		t.closers = append(t.closers, tp.Shutdown)
	}
	return t, nil
}

func (t *Telemetry) setupMetrics(ctx context.Context, res *resource.Resource, push bool) error {
	prom, err := otelprom.New(otelprom.WithRegisterer(t.registry), otelprom.WithoutScopeInfo())
	if err != nil {
		return err
	}
	opts := []sdkmetric.Option{sdkmetric.WithResource(res), sdkmetric.WithReader(prom)}
	if push {
		exp, err := otlpmetrichttp.New(ctx)
		if err != nil {
			return err
		}
		opts = append(opts, sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exp)))
	}
	mp := sdkmetric.NewMeterProvider(opts...)
	t.MeterProvider = mp
	t.closers = append(t.closers, mp.Shutdown)
	return nil
}

// exports says which signals are pushed by OTLP: those with an endpoint, unless
// they are turned off.
func exports() (map[string]bool, error) {
	on := make(map[string]bool)
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return on, nil
	}
	for _, signal := range []string{"TRACES", "METRICS"} {
		if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") == "" {
			continue
		}
		switch exporter := os.Getenv("OTEL_" + signal + "_EXPORTER"); exporter {
		case "", "otlp":
		case "none":
			continue
		default:
			return nil, fmt.Errorf("telemetry: OTEL_%s_EXPORTER: want otlp or none, not %q", signal, exporter)
		}
		for _, name := range []string{"OTEL_EXPORTER_OTLP_" + signal + "_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
			if p := os.Getenv(name); p != "" && p != "http/protobuf" {
				return nil, fmt.Errorf("telemetry: %s: only http/protobuf is built in, not %q", name, p)
			}
		}
		on[signal] = true
	}
	return on, nil
}

// MetricsHandler answers with all metrics in Prometheus' text format.
func (t *Telemetry) MetricsHandler() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{Registry: t.registry})
}

// Shutdown exports what is left, until ctx ends.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	var errs []error
	for _, closer := range t.closers {
		errs = append(errs, closer(ctx))
	}
	return errors.Join(errs...)
}
