package incident

import (
	"context"
	"log/slog"
)

// Log is the sink that logs.
type Log struct{ Logger *slog.Logger }

var _ Sink = Log{}

// Name implements Sink.
func (Log) Name() string { return "log" }

// Send implements Sink.
func (l Log) Send(ctx context.Context, e Event) error {
	i := &e.Incident
	level := slog.LevelWarn
	if e.Change == Resolved {
		level = slog.LevelInfo
	}
	l.Logger.Log(ctx, level, "incident "+string(e.Change), "cause", i.Cause, "severity", i.Severity, "summary", i.Summary, "lane", i.Lane,
		"count", i.Count, "oldest_age_seconds", i.OldestAge, "runbook", i.Runbook, "command", i.Command, "incident", i.ID)
	return nil
}
