package telemetry

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
)

const (
	reportEvery = 10 * time.Second
	maxReport   = 512 // bytes; an error may quote a collector's whole answer
)

// reportTo makes the SDK report its failures to log. By default it prints them
// to standard error, in a form of its own.
func reportTo(log *slog.Logger) {
	otel.SetErrorHandler(&reporter{log: log})
	otel.SetLogger(logr.FromSlogHandler(settingsLog{log.Handler()}))
}

// reporter logs failures of exporters, which come as often as spans do.
type reporter struct {
	log *slog.Logger

	mu     sync.Mutex
	next   time.Time // no line before
	unsaid int       // failures since the last line
}

// Handle implements otel.ErrorHandler. It logs one failure per reportEvery, and
// how many it passed over before.
func (r *reporter) Handle(err error) {
	if err == nil {
		return
	}
	r.mu.Lock()
	now := time.Now()
	if now.Before(r.next) {
		r.unsaid++
		r.mu.Unlock()
		return
	}
	unsaid := r.unsaid
	r.next, r.unsaid = now.Add(reportEvery), 0
	r.mu.Unlock()

	text := err.Error()
	if len(text) > maxReport {
		text = text[:maxReport] + "…"
	}
	r.log.Warn("telemetry failed", "error", text, "unsaid", unsaid)
}

// settingsLog logs what the SDK says of settings that it can't use, without
// their values: it quotes headers that hold the collector's credentials.
type settingsLog struct{ slog.Handler }

// Enabled leaves out the SDK's own chatter: logr has its warnings at -1, and
// what is less at -4 and below.
func (settingsLog) Enabled(_ context.Context, level slog.Level) bool { return level >= -1 }

func (l settingsLog) Handle(ctx context.Context, r slog.Record) error {
	bare := slog.NewRecord(r.Time, slog.LevelWarn, "telemetry's setting was not understood", r.PC)
	bare.AddAttrs(slog.String("error", r.Message))
	return l.Handler.Handle(ctx, bare)
}

func (l settingsLog) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l settingsLog) WithGroup(string) slog.Handler      { return l }
