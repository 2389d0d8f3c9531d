package dedupe

import (
	"context"
	"errors"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// AcceptLate is Accept of what came to the door at a time, where the clock is
// known.
func (l *Ledger) AcceptLate(ctx context.Context, s *message.Submission, came time.Time) (message.Receipt, error) {
	for _, known := l.horizon.clock.at(came); !known; _, known = l.horizon.clock.at(came) {
		if err := l.horizon.probe(ctx, l.pool, time.Second); err != nil {
			return message.Receipt{}, err
		}
	}
	return l.submit(ctx, l.accepts, &acceptCall{s: s, came: came, done: make(chan struct{})})
}

// SetPatience changes after how long a stream's audit answers with what it has.
func (l *Ledger) SetPatience(d time.Duration) { l.patient = d }

// Probe and Sweep are what Run does again and again.
func (l *Ledger) Probe(ctx context.Context) error {
	return l.horizon.probe(ctx, l.pool, l.cfg.Deadline)
}
func (l *Ledger) Sweep(ctx context.Context) error { return l.sweep(ctx) }

// Work answers reports and claims as one batch.
func (l *Ledger) Work(reports []message.Report, items []message.Item) (recorded []error, claims []message.Claim, claimed []error) {
	var calls []workCall
	for _, r := range reports {
		calls = append(calls, workCall{record: &recordCall{r: r, done: make(chan struct{})}})
	}
	for _, it := range items {
		calls = append(calls, workCall{claim: &claimCall{item: it, token: l.tokens.Add(1), done: make(chan struct{})}})
	}
	l.workBatch(calls)
	for _, c := range calls {
		if c.record != nil {
			<-c.record.done
			recorded = append(recorded, c.record.err)
			continue
		}
		<-c.claim.done
		claims, claimed = append(claims, c.claim.claim), append(claimed, c.claim.err)
	}
	return recorded, claims, claimed
}

// ClaimAgain has a claim's answer lost, has PostgreSQL asked again, behind another claim of
// the same attempt, and returns the answers of both.
func (l *Ledger) ClaimAgain(it message.Item, between func()) (again, other message.Claim, err error) {
	c := &claimCall{item: it, token: l.tokens.Add(1), asked: true, done: make(chan struct{})}
	if err := l.claimOnce([]*claimCall{c}); err != nil {
		return again, other, err
	}
	c.claim = message.Claim{}
	between()
	twin := &claimCall{item: it, token: l.tokens.Add(1), done: make(chan struct{})}
	l.claimBatch([]*claimCall{twin, c})
	<-c.done
	<-twin.done
	return c.claim, twin.claim, errors.Join(c.err, twin.err)
}

// CountedOne is up to where a backlog is counted one by one.
const CountedOne = countedOne
