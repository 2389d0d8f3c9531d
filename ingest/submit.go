package ingest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/plant"
)

// Request is one submission as a door decoded it.
type Request struct {
	Principal *keyring.Principal
	Key       string           // idempotency key; one is made when it is empty
	Content   *message.Content // as it was given, with nothing defaulted
	Trace     string           // W3C traceparent, or empty
}

// Accepted is the answer to a request that is kept.
type Accepted struct {
	ID       message.ID // of the submission
	Replayed bool       // the same request was kept before, and this is its answer
	Messages []Message  // in the order of to, cc, bcc
}

// Message is one message of an accepted request.
type Message struct {
	ID       message.ID
	To       string
	State    message.State
	Stream   string
	Sequence int64 // 0 while it has none
}

// KeyHash is the hash under which the ledger keeps what p submitted with an
// idempotency key. Test and live keys have key spaces of their own: else a live
// request could be taken for the repeat of a test, and never be sent.
func KeyHash(p *keyring.Principal, key string) message.KeyHash {
	return message.HashKey(p.Tenant, scopedKey(p, key))
}

// scopedKey can't collide with a live key: those have no control characters.
func scopedKey(p *keyring.Principal, key string) string {
	if p.Test {
		return "test\x00" + key
	}
	return key
}

// Submit keeps r and answers with its ids and numbers.
//
// It fails with message.FieldErrors for a request that is wrong, with *Busy for
// one that is too much now, with
// message.ErrKeyReused, and with message.ErrUnavailable or ctx's error when
// nobody can tell whether it is kept: the same request under the same key may
// be submitted again until there is an answer. Only a nil error is a promise.
func (s *Service) Submit(ctx context.Context, r Request) (*Accepted, error) {
	now := s.cfg.Now()
	problems, stale := s.validate(r, now)
	if len(problems) > 0 {
		return nil, problems
	}
	key := r.Key
	if key == "" {
		key = rand.Text()
	}
	if plant.Is(plant.ProcessKeys) {
		key = fmt.Sprint(key, "-", os.Getpid())
	}
	life := s.cfg.EmailLife
	if r.Content.Push != nil {
		life = s.cfg.PushLife
	}
	sub, err := message.Submit(r.Principal.Tenant, scopedKey(r.Principal, key), r.Content, now, life)
	if err != nil {
		return nil, fmt.Errorf("submit: %w", err)
	}
	sub.Trace = r.Trace
	sub.Test = r.Principal.Test
	if stale == nil {
		stale = s.cfg.Suppressions.problems(r)
	}
	if stale != nil {
		return s.repeatOr(ctx, r, sub, stale)
	}
	if a, err := s.admit(ctx, r, sub); a != nil || err != nil {
		return a, err
	}
	receipt, err := s.keep(ctx, sub, now)
	switch {
	case errors.Is(err, errJournaled):
		return journaled(sub), nil
	case err != nil:
		return nil, fmt.Errorf("accept: %w", err)
	}
	accepted := answer(sub, receipt)
	if receipt.Replayed {
		s.recall(ctx, sub, accepted)
		return accepted, nil
	}
	if !receipt.Waiting {
		s.publisher.Publish(sub.Items(receipt))
	}
	return accepted, nil
}

func answer(sub *message.Submission, receipt message.Receipt) *Accepted {
	id := sub.ID()
	state := message.StateQueued
	if receipt.Waiting {
		state = message.StateWaiting
	}
	out := &Accepted{ID: id, Replayed: receipt.Replayed, Messages: make([]Message, len(sub.Recipients))}
	for i, to := range sub.Recipients {
		out.Messages[i] = Message{
			ID: id.Message(i), To: to, State: state, Stream: sub.Stream, Sequence: receipt.Sequence + int64(i),
		}
	}
	return out
}

// recall fills in what became of a replayed submission's messages. Ids and
// numbers are right without it, so a ledger that can't tell now changes nothing.
func (s *Service) recall(ctx context.Context, sub *message.Submission, a *Accepted) {
	views, err := s.find(ctx, sub)
	if err != nil {
		return
	}
	for _, v := range views {
		if i := v.ID.Index(); i < len(a.Messages) && a.Messages[i].ID == v.ID {
			a.Messages[i].State = v.State
		}
	}
}

// repeatOr answers a request that is refused with no only for when it came, or
// since its recipient is gone by now. If it was kept before, its sender deserves to
// hear that: an application that retries after an outage would else take a sent message for a refused one.
func (s *Service) repeatOr(ctx context.Context, r Request, sub *message.Submission, no error) (*Accepted, error) {
	if r.Key == "" {
		return nil, no
	}
	kept, known := s.inJournal(sub)
	views, err := s.find(ctx, sub)
	switch {
	case kept && len(views) == 0:
		a := journaled(sub)
		a.Replayed = true
		return a, nil
	case err != nil && !errors.Is(err, message.ErrNotFound):
		return nil, fmt.Errorf("find the earlier request: %w", err)
	case !known && len(views) == 0:
		return nil, fmt.Errorf("find the earlier request: %w: the journal can't be read yet", message.ErrUnavailable)
	}
	if len(views) != len(sub.Recipients) {
		return nil, no
	}
	a := &Accepted{ID: sub.ID(), Replayed: true, Messages: make([]Message, len(views))}
	for _, v := range views {
		if v.ID.Submission() != a.ID || v.ID.Index() >= len(views) {
			return nil, no
		}
		a.Messages[v.ID.Index()] = Message{ID: v.ID, To: v.Recipient, State: v.State, Stream: v.Stream, Sequence: v.Sequence}
	}
	return a, nil
}

func (s *Service) find(ctx context.Context, sub *message.Submission) ([]message.View, error) {
	if s.cfg.Finder == nil {
		return nil, nil
	}
	page, err := s.cfg.Finder.Messages(ctx, message.Filter{Tenant: sub.Tenant, Submission: sub.ID(), Limit: message.MaxRecipients})
	return page.Items, err
}
