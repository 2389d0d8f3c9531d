package telemetry

import (
	"context"
	"fmt"
	"log/slog"

	"go.opentelemetry.io/otel/trace"
)

func newLogger(o Options) (*slog.Logger, error) {
	var level slog.Level
	if o.LogLevel != "" {
		if err := level.UnmarshalText([]byte(o.LogLevel)); err != nil {
			return nil, fmt.Errorf("log.level: want debug, info, warn or error, not %q", o.LogLevel)
		}
	}
	opts := &slog.HandlerOptions{Level: level}
	switch o.LogFormat {
	case "", "json":
		return slog.New(traced{slog.NewJSONHandler(o.Output, opts)}), nil
	case "text":
		return slog.New(traced{slog.NewTextHandler(o.Output, opts)}), nil
	}
	return nil, fmt.Errorf("log.format: want json or text, not %q", o.LogFormat)
}

// traced adds the ids of the span that a line was logged in. In a logger with a
// group they stand in that group.
type traced struct{ slog.Handler }

func (h traced) Handle(ctx context.Context, r slog.Record) error {
	if s := trace.SpanContextFromContext(ctx); s.IsValid() {
		r = r.Clone() // copies of a record share their attributes
		r.AddAttrs(slog.String("trace_id", s.TraceID().String()), slog.String("span_id", s.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h traced) WithAttrs(attrs []slog.Attr) slog.Handler { return traced{h.Handler.WithAttrs(attrs)} }
func (h traced) WithGroup(name string) slog.Handler       { return traced{h.Handler.WithGroup(name)} }
