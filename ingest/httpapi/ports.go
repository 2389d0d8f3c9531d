package httpapi

import (
	"context"

	"github.com/stormpost/stormpost/internal/message"
)

// Journal is what was accepted while the ledger was away.
type Journal interface {
	// Find says what the journals hold of a message's or submission's id; content,
	// stream and who its recipients are it need not know. known is false while they
	// may hold it without that it can tell.
	Find(id message.ID) (j *message.Journaled, known bool)
}

// Ledger is what the API reads and changes beside accepting. A tenant of 0
// stands for an operator, who sees everything. An id of another tenant is
// message.ErrNotFound; an unreachable ledger is message.ErrUnavailable.
type Ledger interface {
	// Message is one message with its attempts and content.
	Message(ctx context.Context, tenant int32, id message.ID) (*message.View, error)
	// Messages is one page, newest first, without content.
	Messages(ctx context.Context, f message.Filter) (message.Page[message.View], error)
	// Cancel ends a message that was not handed over; else message.ErrTooLate.
	// Canceling a canceled message again succeeds.
	Cancel(ctx context.Context, tenant int32, id message.ID) (*message.View, error)
	// Audit proves a tenant's stream complete; message.ErrNotFound if it never was.
	Audit(ctx context.Context, tenant int32, stream string) (*message.Audit, error)
	// Lanes is how each lane is doing, most urgent first.
	Lanes(ctx context.Context) ([]message.LaneView, error)
	// Doubts is one page of open doubts, oldest first.
	Doubts(ctx context.Context, cursor string, limit int) (message.Page[message.Doubt], error)
	// Decide settles the doubt of a message, once; message.ErrDecided after
	// that, message.ErrNotFound when it has none.
	Decide(ctx context.Context, id message.ID, d message.Decision, by, reason string) error
}
