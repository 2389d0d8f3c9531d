package app

import (
	"context"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/message"
)

// trailed is the ledger as the worker uses it, with all that is claimed and
// recorded told to Kafka as well. Outcomes are told before the ledger has them:
// should it lose them, or the worker go before it is back, they are read there.
type trailed struct {
	*dedupe.Ledger
	trail *clusters
}

var _ delivery.Ledger = trailed{}

func (t trailed) Claim(ctx context.Context, it message.Item) (message.Claim, error) {
	c, err := t.Ledger.Claim(ctx, it)
	switch {
	case err != nil:
	case c.Verdict == message.Claimed:
		t.trail.Note(message.Step{Position: it.Position, ID: it.ID, Attempt: it.Attempt, Kind: message.StepClaimed, At: time.Now(), Provider: it.Provider})
	case c.Verdict == message.Taken && it.Before.Basis != "": // by the ledger itself, perhaps, instead of this claim
		t.trail.noteStoodIn(ctx, t.Ledger, it.Position)
	}
	return c, err
}

func (t trailed) Record(ctx context.Context, r message.Report) error {
	t.trail.Note(message.Step{
		Position: r.Position, ID: r.ID, Attempt: r.Attempt, Kind: message.StepKind(r.Outcome), At: time.Now(), Provider: r.Provider, Code: r.Code,
	})
	return t.Ledger.Record(ctx, r)
}

// canceling is the ledger as the API uses it, with what is canceled told to Kafka, and
// what is not handed over again since its provider tells that it has it.
type canceling struct {
	*dedupe.Ledger
	trail *clusters
}

func (c canceling) Tell(ctx context.Context, events []message.ProviderEvent) error {
	changed, err := c.Ledger.TellOf(ctx, events)
	if err == nil {
		c.trail.noteStoodIn(ctx, c.Ledger, changed...)
	}
	return err
}

// noteStoodIn tells of attempts that are no worker's. If the ledger can't be asked they
// are left out: should it be rolled back then, they are in doubt.
func (cs *clusters) noteStoodIn(ctx context.Context, l *dedupe.Ledger, of ...message.Position) {
	steps, err := l.StoodIn(ctx, of...)
	if err != nil {
		return
	}
	for _, s := range steps {
		cs.Note(s)
	}
}

func (c canceling) Cancel(ctx context.Context, tenant int32, id message.ID) (*message.View, error) {
	v, err := c.Ledger.Cancel(ctx, tenant, id)
	if err == nil && v.State == message.StateCanceled && len(v.Attempts) > 0 {
		c.trail.Note(message.Step{
			Position: v.Position, ID: v.ID, Attempt: v.Attempts[len(v.Attempts)-1].Number, Kind: message.StepCanceled, At: time.Now(),
		})
	}
	return v, err
}
