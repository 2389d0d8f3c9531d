package delivery

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// operation is one thing that the ledger is asked for.
type operation uint8

const (
	opClaim operation = iota
	opRecord
	opHold
	opPostpone
	opPark
	opContent
	opFeed
	opBeat
	operations
)

func (o operation) String() string {
	return [...]string{"claim", "record", "hold", "postpone", "park", "content", "feed", "beat"}[o]
}

// insist repeats do, with growing pauses, until it succeeds or ctx ends; then
// it returns ctx's error.
func (w *Worker) insist(ctx context.Context, op operation, do func() error) error {
	var pauses *backoff.ExponentialBackOff
	for {
		err := do()
		if err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		if w.note(op, err); err == nil {
			return nil
		}
		if pauses == nil {
			pauses = newLedgerBackoff()
		}
		if err := pause(ctx, pauses.NextBackOff()); err != nil {
			return err
		}
	}
}

// newLedgerBackoff makes the pauses of one loop that asks the ledger again.
func newLedgerBackoff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.MaxElapsedTime = 100*time.Millisecond, 5*time.Second, 0
	b.Reset()
	return b
}

// pause waits for d, or fails when ctx ends before.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// note logs when an operation of the ledger begins to fail, and when it works
// again.
func (w *Worker) note(op operation, err error) {
	down := &w.ledgerDown[op]
	switch {
	case err == nil:
		if down.Load() && down.CompareAndSwap(true, false) {
			w.log.Info("the ledger answers again", "operation", op)
		}
	case down.CompareAndSwap(false, true):
		w.log.Warn("the ledger does not answer", "operation", op, "error", err)
	}
}
