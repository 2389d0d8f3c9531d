package app

import (
	"context"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/internal/broker"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/recovery"
)

// reconcileMargin is by how much Kafka's records are read from before the time
// up to which the ledger knows its history: the clocks may differ.
const reconcileMargin = 10 * time.Minute

// ReconcileOptions say how to reconcile.
type ReconcileOptions struct {
	DryRun   bool
	Since    time.Time // zero: from when the ledger was rolled back to
	By       string
	Progress func(step string, done int64)
}

// ReconcileReport is what was found and done.
type ReconcileReport struct {
	Cause   string              `json:"cause"`
	Noticed time.Time           `json:"noticed_at"`
	Since   time.Time           `json:"since"` // from when on Kafka was read
	DryRun  bool                `json:"dry_run"`
	Took    float64             `json:"took_s"`
	Done    recovery.Reconciled `json:"done"`
}

// Reconcile tells a rolled-back ledger what Kafka knows, and starts it again.
// After an error, ReconcileReport says how far it came, and it may be run again.
func Reconcile(ctx context.Context, cfg config.Config, opt ReconcileOptions) (*ReconcileReport, error) {
	began := time.Now()
	l, err := dedupe.Open(dedupe.Config{DSN: cfg.DSN.Reveal(), MaxConns: 4, Deadline: time.Minute, Reconciling: true})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	kafka := kafkaConfig(cfg)
	b, err := broker.New(kafka)
	if err != nil {
		return nil, err
	}
	books, err := l.BeginReconcile(ctx)
	if err != nil {
		return nil, err
	}
	defer books.Close()
	since := opt.Since
	if since.IsZero() {
		since = books.BackTo.Add(-reconcileMargin)
	}
	done, err := recovery.Reconcile(ctx, recovery.ReconcileConfig{
		Books: books, From: since, By: opt.By, DryRun: opt.DryRun, Progress: opt.Progress,
		Evidence: recovery.Evidence{
			Lanes: func(ctx context.Context, from time.Time, use func(recovery.Witness) error) error {
				return b.ReadLanes(ctx, from, func(r broker.LaneRecord) error { return use(recovery.Witness(r)) })
			},
			Journals: func(ctx context.Context, from time.Time, use func(message.Journaled) error) error {
				return b.ReadJournals(ctx, from, func(r broker.JournalRecord) error { return use(r.Journaled) })
			},
			Trail: b.ReadTrail,
		},
	})
	return &ReconcileReport{
		Cause: books.Cause, Noticed: books.At, Since: since, DryRun: opt.DryRun, Took: time.Since(began).Seconds(), Done: *done,
	}, err
}
