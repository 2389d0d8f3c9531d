package ingest

import (
	"context"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Acceptor keeps submissions: the ledger.
type Acceptor interface {
	// Accept makes s durable, numbers its messages and answers with where it
	// stands; calls are gathered into batches. The same submission again is
	// answered with the first one's Receipt, Replayed. Another submission under
	// the same key fails with message.ErrKeyReused, an unreachable ledger with
	// message.ErrUnavailable; after the latter the submission may be in or not,
	// and accepting it again is safe.
	Accept(ctx context.Context, s *message.Submission) (message.Receipt, error)
}

// Publisher spreads accepted messages over the workers.
type Publisher interface {
	// Publish takes items without ever blocking. What it can't take is left to
	// the lane's cursor.
	Publish(items []message.Item)
}

// Journal keeps submissions while the ledger is away: Kafka.
type Journal interface {
	// Append makes j durable, to be entered into the ledger when that is back.
	// message.ErrUnavailable means that it may be kept or not; appending it again,
	// or accepting it otherwise, is safe.
	Append(ctx context.Context, j message.Journaled) error
	// Find says what the journal holds of an id; content, stream and who its
	// recipients are it need not know. known is false while it may hold it without
	// that it can tell.
	Find(id message.ID) (j *message.Journaled, known bool)
	// Current waits until Find knows of all that any process had the journal keep
	// before a time. It fails when ctx ends, or when the journal can't be read.
	Current(ctx context.Context, at time.Time) error
}

// Finder tells what became of a submission that was made before: the ledger.
type Finder interface {
	// Messages is one page of the messages that f matches.
	Messages(ctx context.Context, f message.Filter) (message.Page[message.View], error)
}
