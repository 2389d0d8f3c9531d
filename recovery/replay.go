package recovery

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// replayEvery is how often replays are looked for, and how often one looks
	// whether a lane that has enough due has come down.
	replayEvery = 500 * time.Millisecond
	// replayLease is how long a replay is its process's after its last word. A step
	// may take as long as the ledger's deadline.
	replayLease = 10 * time.Second
	// replayBatch bounds the leaves of one step.
	replayBatch = 500
	// One statement looks at leastSpan to mostSpan submissions: more when it was
	// quick, fewer when it was slow, or found enough in a part of them.
	leastSpan = 64
	mostSpan  = 1 << 14
	quickStep = 100 * time.Millisecond
)

// Replays is the ledger, as far as it replays.
type Replays interface {
	// LeaseReplays is the active replays that are this process's for hold from
	// now on: those that were, and those whose process is silent.
	LeaseReplays(ctx context.Context, hold time.Duration) ([]message.Replay, error)
	// StepReplay looks at up to span submissions behind r's checkpoint, gives
	// leave to most messages at most, and moves r and its checkpoint on, in one
	// transaction. After an error the checkpoint may have moved or not: then a
	// step from the old one does nothing, and says that it Ended for us.
	StepReplay(ctx context.Context, r *message.Replay, span int64, most int) (message.ReplayStep, error)
}

// Replayer works on replays: for each it counts what there is to send, and then
// gives leave, most urgent class first, at its rate. Killed at any point, it has
// given leave exactly to those before the checkpoint; whoever has the lease next
// goes on from there.
type Replayer struct {
	ledger Replays
	log    *slog.Logger
	wg     sync.WaitGroup

	mu   sync.Mutex
	busy map[int64]bool
}

// NewReplayer makes a Replayer.
func NewReplayer(ledger Replays, log *slog.Logger) *Replayer {
	return &Replayer{ledger: ledger, log: log, busy: make(map[int64]bool)}
}

// Run works on all replays that it gets the lease of, until ctx ends.
func (p *Replayer) Run(ctx context.Context) error {
	defer p.wg.Wait()
	failing := false
	for {
		all, err := p.ledger.LeaseReplays(ctx, replayLease)
		if err != nil && !failing && ctx.Err() == nil {
			p.log.WarnContext(ctx, "replays can't be looked for", "error", err)
		}
		failing = err != nil
		for _, r := range all {
			p.mu.Lock()
			known := p.busy[r.ID]
			p.busy[r.ID] = true
			p.mu.Unlock()
			if !known {
				p.wg.Go(func() {
					p.work(ctx, r)
					p.mu.Lock()
					defer p.mu.Unlock()
					delete(p.busy, r.ID)
				})
			}
		}
		if sleep(ctx, replayEvery) != nil {
			return nil
		}
	}
}

// work steps until r ends, is paused, is another's, or a step fails: then it is
// leased again, with the checkpoint that is the ledger's.
func (p *Replayer) work(ctx context.Context, r message.Replay) {
	span := int64(leastSpan)
	most := min(replayBatch, max(1, r.Rate/4))
	for {
		began := time.Now()
		step, err := p.ledger.StepReplay(ctx, &r, span, most)
		if err != nil && ctx.Err() == nil {
			p.log.WarnContext(ctx, "a replay's step failed; it goes on from its checkpoint", "replay", r.ID, "error", err)
		}
		if err != nil || step.Ended {
			return
		}
		switch took := time.Since(began); {
		case step.Filled || took > 4*quickStep:
			span = max(leastSpan, span/2)
		case took < quickStep:
			span = min(mostSpan, 2*span)
		}
		wait := time.Duration(0)
		switch {
		case step.Full:
			wait = replayEvery
		case r.Counted:
			wait = time.Duration(step.Gave)*time.Second/time.Duration(r.Rate) - time.Since(began)
		}
		if sleep(ctx, wait) != nil {
			return
		}
	}
}
