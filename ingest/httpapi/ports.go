package httpapi

import (
	"context"
	"time"

	"github.com/stormpost/stormpost/internal/incident"
	"github.com/stormpost/stormpost/internal/message"
)

// Journal is what was accepted while the ledger was away.
type Journal interface {
	// Find says what the journals hold of a message's or submission's id; content,
	// stream and who its recipients are it need not know. known is false while they
	// may hold it without that it can tell.
	Find(id message.ID) (j *message.Journaled, known bool)
	// Under is Find by an idempotency key: all requests that came under it, each with
	// its id.
	Under(key message.KeyHash) (all []*message.Journaled, known bool)
	// Lanes is how many messages of each lane the journals hold.
	Lanes() (messages map[message.Lane]int64, known bool)
	// Current waits until Find knows of all that any process had the journals keep
	// before a time. It fails when ctx ends, or when one can't be read.
	Current(ctx context.Context, at time.Time) error
}

// Ledger is what the API reads and changes beside accepting. A tenant of 0
// stands for an operator, who sees everything. An id of another tenant is
// message.ErrNotFound; an unreachable ledger is message.ErrUnavailable.
type Ledger interface {
	// Message is one message with its attempts and content.
	Message(ctx context.Context, tenant int32, id message.ID) (*message.View, error)
	// Messages is one page, newest first, without content.
	Messages(ctx context.Context, f message.Filter) (message.Page[message.View], error)
	// Tell keeps what providers told of messages, once.
	Tell(ctx context.Context, events []message.ProviderEvent) error
	// Cancel ends a message that was not handed over; else message.ErrTooLate.
	// Canceling a canceled message again succeeds.
	Cancel(ctx context.Context, tenant int32, id message.ID) (*message.View, error)
	// AuditPart proves the numbers of a tenant's stream that are within a range
	// complete, as far as it comes in some seconds; zero ends of the range stand
	// for the stream's own. message.ErrNotFound if the stream never was.
	AuditPart(ctx context.Context, tenant int32, stream string, within message.Range) (*message.Audit, error)
	// AuditLanes tells where every message of lanes is, in one snapshot, and
	// meanwhile how many it has counted, of how many that it expects.
	AuditLanes(ctx context.Context, lanes []message.Lane, progress func(done, total int64)) ([]message.LaneAudit, error)
	// Parked is how many messages of each lane a journal had accepted and the ledger has
	// refused; of the zero lane records that can't be read.
	Parked(ctx context.Context) (map[message.Lane]int64, error)
	// Lanes is how each lane is doing, most urgent first.
	Lanes(ctx context.Context) ([]message.LaneView, error)
	// Doubts is one page of open doubts, oldest first.
	Doubts(ctx context.Context, cursor string, limit int) (message.Page[message.Doubt], error)
	// Decide settles the doubt of a message, once; message.ErrDecided after
	// that, message.ErrNotFound when it has none. An attempt of 0 is the one that is
	// in doubt now.
	Decide(ctx context.Context, id message.ID, attempt int, d message.Decision, by, reason string) error
	// CountDoubts says how many open doubts a filter finds, with a sample.
	CountDoubts(ctx context.Context, f message.DoubtFilter) (*message.DoubtCount, error)
	// DecideMany settles the doubts that there are now, as far as it comes in
	// some seconds; more says that asking again goes on.
	DecideMany(ctx context.Context, f message.DoubtFilter, d message.Decision, by, reason string) (decided int64, more bool, err error)
	// AddHold holds a lane, a tenant, a provider or a tag; message.ErrHeld if it is.
	AddHold(ctx context.Context, h message.Hold) (message.Hold, error)
	// Holds is what is held, at most 1,000.
	Holds(ctx context.Context) ([]message.Hold, error)
	// ReleaseHold ends a hold; message.ErrNotHeld if somebody did before.
	ReleaseHold(ctx context.Context, id int64, by string) (message.Hold, error)
	// ReleaseMessage lets a message that was set aside be sent after all;
	// message.ErrNotHeld if it isn't.
	ReleaseMessage(ctx context.Context, id message.ID, by, reason string) (*message.View, error)
	// LookReplay says what a replay would do, as far as it comes in some seconds.
	LookReplay(ctx context.Context, f message.ReplayFilter, cursor string) (*message.ReplayLook, error)
	// AddReplay begins a replay with r's Filter, Rate, Reason and By; or fails
	// with a message.ReplayOverlap.
	AddReplay(ctx context.Context, r message.Replay) (message.Replay, error)
	// ReplayMessage gives leave to send a message again after its last attempt,
	// whose number is attempt; or fails with a message.NotReplayable.
	ReplayMessage(ctx context.Context, id message.ID, attempt int, by, reason string) (message.Replay, error)
	// Replays is one page, newest first.
	Replays(ctx context.Context, cursor string, limit int) (message.Page[message.Replay], error)
	// Replay is one replay.
	Replay(ctx context.Context, id int64) (message.Replay, error)
	// TurnReplay pauses, cancels or resumes (message.ReplayRunning) a replay;
	// message.ErrReplayEnded if it is over otherwise.
	TurnReplay(ctx context.Context, id int64, to message.ReplayStatus, by string) (message.Replay, error)
	// Suppressions is one page of those that are on the list, newest first.
	Suppressions(ctx context.Context, f message.SuppressionFilter) (message.Page[message.Suppression], error)
	// ClearSuppression takes one off the list; message.ErrNotFound if it isn't
	// there.
	ClearSuppression(ctx context.Context, tenant int32, id int64, by string) (message.Suppression, error)
}

// Incidents is what is wrong, as this process sees it. It needs no store.
type Incidents interface {
	// List is one page, newest first, of state open, resolved or, if that is
	// empty, of both.
	List(state, cursor string, limit int) (message.Page[incident.Incident], error)
}
