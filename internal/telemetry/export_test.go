package telemetry

import (
	"strings"
	"testing"
)

func TestExports(t *testing.T) {
	const endpoint = "http://127.0.0.1:4318"
	type env map[string]string
	for name, c := range map[string]struct {
		env     env
		traces  bool
		metrics bool
	}{
		"nothing":           {env{}, false, false},
		"endpoint":          {env{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}, true, true},
		"own endpoint":      {env{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint}, true, false},
		"empty endpoint":    {env{"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, false, false},
		"traces off":        {env{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TRACES_EXPORTER": "none"}, false, true},
		"metrics by scrape": {env{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRICS_EXPORTER": "prometheus"}, true, false},
		"asked for":         {env{"OTEL_TRACES_EXPORTER": "otlp"}, true, false},
		"disabled":          {env{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SDK_DISABLED": "TRUE"}, false, false},
		"protocol":          {env{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, true, true},
		"protocol not used": {env{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, false, false},
		"own protocol wins": {env{
			"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
			"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
		}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			for signal, want := range map[string]bool{"TRACES": c.traces, "METRICS": c.metrics} {
				if got, err := exports(signal); err != nil || got != want {
					t.Errorf("%s: %v, %v; want %v", signal, got, err, want)
				}
			}
		})
	}
}

// An error names the variable, and holds no secret of an endpoint.
func TestExportsRefuses(t *testing.T) {
	const endpoint = "http://127.0.0.1:4318"
	for name, env := range map[string]map[string]string{
		"OTEL_EXPORTER_OTLP_PROTOCOL":        {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
		"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
		"OTEL_TRACES_EXPORTER":               {"OTEL_TRACES_EXPORTER": "prometheus"},
		"OTEL_METRICS_EXPORTER":              {"OTEL_METRICS_EXPORTER": "console"},
		"OTEL_EXPORTER_OTLP_ENDPOINT":        {"OTEL_EXPORTER_OTLP_ENDPOINT": "user:s3cret@localhost:4318"},
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "unix:///s3cret"},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range env {
				t.Setenv(k, v)
			}
			_, err := Setup(t.Context(), Options{Service: "s"})
			if err == nil || !strings.Contains(err.Error(), name+":") || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("error %v, want one of %s without the secret", err, name)
			}
		})
	}
}
