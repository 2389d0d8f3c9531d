package recovery

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// recallEvery is how often doubts are looked for whose workers have gone, and
	// recallAgain after how long a trail that can't be read is tried again.
	recallEvery = time.Second
	recallAgain = 10 * time.Second
	// recallBatch bounds how many are looked for in one reading of the trail.
	recallBatch = 1000
	// recallRest is for how much longer than a reading took none follows.
	recallRest = 9
	// recallBack is how old doubts are that a process looks for when it starts: what is
	// older the trail has no more.
	recallBack = 7 * 24 * time.Hour
	// recallMargin is by how much clocks may differ. What says that nothing was taken is
	// believed for recallSure before the claim alone, as retrace_batch has it: after a
	// rollback an attempt's number may have been given twice.
	recallMargin = time.Minute
	recallSure   = 5 * time.Second
)

// Doubtful is the ledger, as far as its doubts are resolved by what is told elsewhere.
type Doubtful interface {
	// Silent is the open doubts since a time that have no outcome, since their
	// workers have gone; the oldest first.
	Silent(ctx context.Context, after time.Time, limit int) ([]message.Doubt, error)
	Record(ctx context.Context, r message.Report) error
}

// Recall resolves doubts of workers that have gone by the outcomes which these had
// told Kafka: the ledger was away, or it was the last thing they did.
type Recall struct {
	Ledger Doubtful
	// Trail reads what was told since a time, up to now.
	Trail func(ctx context.Context, from time.Time, use func(message.Step) error) error
	Log   *slog.Logger
}

// Run looks for doubts until ctx ends.
func (r Recall) Run(ctx context.Context) error {
	after := time.Now().Add(-recallBack)
	failing := false
	for wait := recallEvery; sleep(ctx, wait) == nil; {
		began := time.Now()
		last, err := r.once(ctx, after)
		if err != nil && !failing && ctx.Err() == nil {
			r.Log.WarnContext(ctx, "doubts can't be resolved by what their workers told Kafka; it is tried again", "error", err)
		}
		failing, wait = err != nil, max(recallEvery, recallRest*time.Since(began))
		if failing {
			wait = max(wait, recallAgain)
		} else {
			after = last
		}
	}
	return nil
}

// once looks at the doubts after a time, and says up to when it has.
func (r Recall) once(ctx context.Context, after time.Time) (time.Time, error) {
	doubts, err := r.Ledger.Silent(ctx, after, recallBatch)
	if err != nil || len(doubts) == 0 {
		return after, err
	}
	open := make(map[message.AttemptKey]message.Doubt, len(doubts))
	from := time.Now()
	for _, d := range doubts {
		open[message.AttemptKey{Position: d.Position, Attempt: d.Attempt}] = d
		if at := d.ClaimedAt(); at.Before(from) {
			from = at
		}
	}
	told, claims := make(map[message.AttemptKey]message.Step), make(map[message.AttemptKey]time.Time)
	err = r.Trail(ctx, from.Add(-recallMargin), func(s message.Step) error {
		k := message.AttemptKey{Position: s.Position, Attempt: s.Attempt}
		d, ok := open[k]
		// A rolled-back ledger may have given out a place twice.
		if !ok || d.ID != s.ID || s.At.Before(d.ClaimedAt().Add(-recallMargin)) {
			return nil
		}
		if s.Kind == message.StepClaimed && s.At.After(claims[k]) {
			claims[k] = s.At
		}
		if was, ok := told[k]; !ok || s.After(was) {
			told[k] = s
		}
		return nil
	})
	if err != nil {
		return after, err
	}
	for k, s := range told {
		d := open[k]
		if s.Kind != message.StepKind(message.Sent) && (s.At.Before(d.ClaimedAt().Add(-recallSure)) || claims[k].After(s.At)) {
			delete(told, k) // of an attempt before, perhaps
		}
	}
	n, err := r.record(ctx, told)
	if n > 0 {
		r.Log.InfoContext(ctx, "doubts are resolved by what their workers had told Kafka", "count", n)
	}
	return doubts[len(doubts)-1].Since, err
}

// record records the outcomes that tell what happened, in one batch.
func (r Recall) record(ctx context.Context, told map[message.AttemptKey]message.Step) (n int, err error) {
	var all sync.WaitGroup
	var mu sync.Mutex
	for k, s := range told {
		switch message.Outcome(s.Kind) {
		case message.Sent, message.Rejected, message.Deferred, message.Returned:
		default: // claimed, canceled, or as unknown there as here
			continue
		}
		all.Go(func() {
			e := r.Ledger.Record(ctx, message.Report{
				Position: k.Position, ID: s.ID, Attempt: k.Attempt, Provider: s.Provider,
				Result: message.Result{Outcome: message.Outcome(s.Kind), Code: s.Code, Reply: "told to Kafka by a worker that has gone"},
			})
			mu.Lock()
			defer mu.Unlock()
			if e != nil {
				err = fmt.Errorf("recall: %w", e)
				return
			}
			n++
		})
	}
	all.Wait()
	return n, err
}
