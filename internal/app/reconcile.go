package app

import (
	"context"
	"fmt"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/internal/broker"
	"github.com/stormpost/stormpost/internal/config"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/recovery"
)

const (
	// reconcileMargin is by how much Kafka's records are read from before the time
	// up to which the ledger knows its history: the clocks may differ.
	reconcileMargin = 10 * time.Minute
	// journalMargin is the same for the journals' records: so long may one have
	// waited there to be entered.
	journalMargin = 7 * 24 * time.Hour
)

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
	all, err := evidence(cfg)
	if err != nil {
		return nil, err
	}
	books, err := l.BeginReconcile(ctx)
	if err != nil {
		return nil, err
	}
	defer books.Close()
	since := opt.Since
	switch {
	case since.IsZero():
		since = books.BackTo.Add(-reconcileMargin)
	case since.After(books.At):
		return nil, config.Wrong(fmt.Errorf("--since: the rollback was noticed at %s; what the ledger has forgotten is older", books.At.UTC().Format(time.RFC3339)))
	}
	done, err := recovery.Reconcile(ctx, recovery.ReconcileConfig{
		Books: books, From: since, Journals: journalsSince(since, began, cfg.Retention.Messages), By: opt.By, DryRun: opt.DryRun, Progress: opt.Progress,
		Evidence: all,
	})
	return &ReconcileReport{
		Cause: books.Cause, Noticed: books.At, Since: since, DryRun: opt.DryRun, Took: time.Since(began).Seconds(), Done: *done,
	}, err
}

// journalsSince is from when on journals are read, if everything else is from since
// on. What retention has dropped would seem lost.
func journalsSince(since, now time.Time, retention time.Duration) time.Time {
	from := since.Add(-journalMargin)
	if kept := now.Add(-retention); retention > 0 && from.Before(kept) {
		from = kept
	}
	if from.After(since) {
		return since
	}
	return from
}

// evidence is what all Kafka clusters know.
func evidence(cfg config.Config) (e recovery.Evidence, err error) {
	var all []*broker.Broker
	names, addrs := clusterBrokers(cfg)
	for _, name := range names {
		kafka := kafkaConfig(cfg)
		kafka.Brokers = addrs[name]
		b, err := broker.New(kafka)
		if err != nil {
			return e, config.Wrong(err)
		}
		all = append(all, b)
	}
	each := func(read func(*broker.Broker) error) error {
		for i, b := range all {
			if err := read(b); err != nil {
				return fmt.Errorf("cluster %s: %w", names[i], err)
			}
		}
		return nil
	}
	return recovery.Evidence{
		Lanes: func(ctx context.Context, from time.Time, use func(recovery.Witness) error) error {
			return each(func(b *broker.Broker) error {
				return b.ReadLanes(ctx, from, func(r broker.LaneRecord) error { return use(recovery.Witness(r)) })
			})
		},
		Journals: func(ctx context.Context, from time.Time, use func(recovery.Kept) error) error {
			return each(func(b *broker.Broker) error {
				return b.ReadJournals(ctx, from, func(r broker.JournalRecord) error { return use(recovery.Kept(r)) })
			})
		},
		Trail: func(ctx context.Context, from time.Time, use func(message.Step) error) error {
			return each(func(b *broker.Broker) error { return b.ReadTrail(ctx, from, use) })
		},
	}, nil
}
