package app

import (
	"context"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/message"
)

// trailed is the ledger as the worker uses it, with all that is claimed and
// recorded told to Kafka as well. Outcomes are told before the ledger has them,
// so they are not lost with it, or while it is away.
type trailed struct {
	*dedupe.Ledger
	trail *clusters
}

var _ delivery.Ledger = trailed{}

func (t trailed) Claim(ctx context.Context, it message.Item) (message.Claim, error) {
	c, err := t.Ledger.Claim(ctx, it)
	if err == nil && c.Verdict == message.Claimed {
		t.trail.Note(message.Step{Position: it.Position, ID: it.ID, Attempt: it.Attempt, Kind: message.StepClaimed, At: time.Now(), Provider: it.Provider})
	}
	return c, err
}

func (t trailed) Record(ctx context.Context, r message.Report) error {
	t.trail.Note(message.Step{
		Position: r.Position, ID: r.ID, Attempt: r.Attempt, Kind: message.StepKind(r.Outcome), At: time.Now(), Provider: r.Provider, Code: r.Code,
	})
	return t.Ledger.Record(ctx, r)
}

// canceling is the ledger as the API uses it, with what is canceled told to Kafka.
type canceling struct {
	*dedupe.Ledger
	trail *clusters
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
