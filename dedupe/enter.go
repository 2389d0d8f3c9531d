package dedupe

import (
	"context"
	"errors"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// entry is what a submission out of the journal brings beside itself.
type entry struct {
	acceptedAt time.Time
	held       bool       // another request came first under its key
	id         message.ID // its own, when it is held
}

// Enter implements recovery.Ledger: it is Accept for what a journal kept while
// the ledger was away, with the time of acceptance at the door. A key that is
// known for another request, which is 422 at the door, is no reason to drop
// what was answered 202: it is entered under a key of its own, and held.
func (l *Ledger) Enter(ctx context.Context, j message.Journaled) (message.Receipt, error) {
	call := func(s *message.Submission, e entry) (message.Receipt, error) {
		return l.submit(ctx, l.enters, &acceptCall{s: s, entry: &e, done: make(chan struct{})})
	}
	r, err := call(j.Submission, entry{acceptedAt: j.AcceptedAt})
	if !errors.Is(err, message.ErrKeyReused) {
		return r, err
	}
	second := *j.Submission
	second.Key = message.ConflictKey(j.ID())
	r, err = call(&second, entry{acceptedAt: j.AcceptedAt, held: true, id: j.ID()})
	r.Held = err == nil
	return r, err
}
