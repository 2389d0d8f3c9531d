package ingest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

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
	RepeatOf message.ID // of the submission that this one has the whole content of, while the shield is up; else zero
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
	sub, err := s.submission(r, now)
	if err != nil {
		return nil, fmt.Errorf("submit: %w", err)
	}
	if stale != nil {
		return s.repeatOr(ctx, r, sub, s.until(sub.ExpiresAt, now), stale)
	}
	if suppressed := s.cfg.Suppressions.problems(r); suppressed != nil {
		return s.repeatOr(ctx, r, sub, time.Time{}, suppressed)
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
	if receipt.Replayed && receipt.RepeatOf != (message.ID{}) {
		sub.Key = receipt.RepeatOf.KeyHash() // it is answered as the first one
	}
	if !receipt.Replayed && !receipt.Waiting {
		s.publisher.Publish(sub.Items(receipt))
	}
	return answer(sub, receipt), nil
}

// submission makes what r asks for.
func (s *Service) submission(r Request, now time.Time) (*message.Submission, error) {
	life := s.cfg.EmailLife
	if r.Content.Push != nil {
		life = s.cfg.PushLife
	}
	p, key := r.Principal, r.Key
	if key != "" && plant.Is(plant.ProcessKeys) {
		key = fmt.Sprint(key, "-", os.Getpid())
	}
	var sub *message.Submission
	var err error
	if key == "" {
		sub, err = message.SubmitKeyless(p.Tenant, p.Test, r.Content, now, life)
	} else {
		sub, err = message.Submit(p.Tenant, scopedKey(p, key), r.Content, now, life)
	}
	if err != nil {
		return nil, err
	}
	sub.Trace, sub.Test = r.Trace, p.Test
	if key == "" && s.cfg.RepeatsSince != nil {
		sub.RepeatsSince = s.cfg.RepeatsSince()
	}
	return sub, nil
}

func answer(sub *message.Submission, receipt message.Receipt) *Accepted {
	id := sub.ID()
	state := message.StateQueued
	if receipt.Waiting {
		state = message.StateWaiting
	}
	out := &Accepted{ID: id, Replayed: receipt.Replayed, RepeatOf: receipt.RepeatOf, Messages: make([]Message, len(sub.Recipients))}
	for i, to := range sub.Recipients {
		if receipt.States != nil {
			state = receipt.States[i]
		}
		out.Messages[i] = Message{
			ID: id.Message(i), To: to, State: state, Stream: sub.Stream, Sequence: receipt.Sequence + int64(i),
		}
	}
	return out
}

// repeatOr answers a request that is refused with no only for when it came, or
// since its recipient is gone by now. If it was kept before, at some time until
// last, its sender deserves to hear that: an application that retries after an
// outage would else take a sent message for a refused one.
func (s *Service) repeatOr(ctx context.Context, r Request, sub *message.Submission, last time.Time, no error) (*Accepted, error) {
	if r.Key == "" {
		return nil, no
	}
	kept, known := s.inJournal(sub)
	views, err := s.find(ctx, sub)
	if !kept && known && len(views) == 0 && s.cfg.Journal != nil && !last.IsZero() {
		// Another process's may have come to the journal a moment ago.
		limit, cancel := context.WithTimeout(ctx, currentLimit)
		defer cancel()
		if s.cfg.Journal.Current(limit, last) != nil {
			known = false
		} else {
			kept, known = s.inJournal(sub)
		}
		views, err = s.find(ctx, sub) // where it goes from the journal
	}
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
		a.Messages[v.ID.Index()] = Message{ID: v.ID, To: cmp.Or(v.Recipient, sub.Recipients[v.ID.Index()]), State: v.State, Stream: v.Stream, Sequence: v.Sequence}
	}
	return a, nil
}

// currentLimit bounds the wait for what other processes had journaled.
const currentLimit = 4 * time.Second

// until is when a request that was right until its end may have been kept at the
// latest, by a process whose clock is a little behind.
func (s *Service) until(end, now time.Time) time.Time {
	if end = end.Add(s.cfg.Timeout + 5*time.Second); end.Before(now) {
		return end
	}
	return now
}

func (s *Service) find(ctx context.Context, sub *message.Submission) ([]message.View, error) {
	if s.cfg.Finder == nil {
		return nil, nil
	}
	page, err := s.cfg.Finder.Messages(ctx, message.Filter{Tenant: sub.Tenant, Submission: sub.ID(), Limit: message.MaxRecipients})
	return page.Items, err
}
