package ingest

import (
	"context"
	"errors"
	"time"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/plant"
)

// errJournaled says that the journal has taken what the ledger could not.
var errJournaled = errors.New("journaled")

// keep makes sub durable: in the ledger, or, while that is away or too slow, in
// the journal, which is errJournaled. What the ledger may have taken before it
// failed does no harm in the journal, since it is entered by the same key. Any
// other error means that nothing is promised.
func (s *Service) keep(ctx context.Context, sub *message.Submission, now time.Time) (message.Receipt, error) {
	if s.cfg.Journal == nil {
		return s.acceptor.Accept(ctx, sub)
	}
	if plant.Is(plant.EarlyAnswer) {
		go func() { _, _ = s.acceptor.Accept(context.WithoutCancel(ctx), sub) }()
		return message.Receipt{}, errJournaled
	}
	began := time.Now()
	if s.waits(ctx, sub, now) {
		outlast(ctx, sub, began)
		return message.Receipt{}, errJournaled
	}
	asked := time.Now()
	err := errLedgerAway
	if pass := s.breaker.enter(); pass != nil {
		var receipt message.Receipt
		receipt, err = s.offer(ctx, sub, pass)
		if !errors.Is(err, message.ErrUnavailable) {
			return receipt, err
		}
	}
	// An incident may be seen only in a moment: what comes out of the journal later
	// and was accepted from now on repeats this one, or this one it.
	if sub.RepeatsSince.IsZero() && s.cfg.RepeatsSince != nil && sub.Keyless() {
		its := *sub
		its.RepeatsSince = now
		sub = &its
	}
	kept := false
	if sub.Supersede != "" { // perhaps meanwhile; there once, it has one time
		kept, _ = s.inJournal(sub)
	}
	if !kept {
		if jerr := s.cfg.Journal.Append(ctx, message.Journaled{Submission: sub, AcceptedAt: s.accepted(sub, now)}); jerr != nil {
			return message.Receipt{}, errors.Join(err, jerr)
		}
	}
	outlast(ctx, sub, asked)
	return message.Receipt{}, errJournaled
}

const (
	// sightLimit bounds the wait for what other processes have journaled: one that
	// was just started reads the journals first.
	sightLimit = 2 * time.Second
	// sightAge is how old the sight of the journals may be. Younger would cost each
	// request with a supersede key a round to Kafka.
	sightAge = 250 * time.Millisecond
	// waitsLimit bounds the look whether the ledger has it by now.
	waitsLimit = 500 * time.Millisecond
)

// waits says whether a journal has sub, while the ledger hasn't, where that
// matters: of the messages with one supersede key the newest goes, and the ledger
// would take what is submitted again for newer than what came in between. Out of
// the journal it comes with its first time.
func (s *Service) waits(ctx context.Context, sub *message.Submission, now time.Time) bool {
	if sub.Supersede == "" || sub.Keyless() {
		return false
	}
	sight, cancel := context.WithTimeout(ctx, min(sightLimit, s.share(ctx)))
	_ = s.cfg.Journal.Current(sight, now.Add(-sightAge)) // where it can't be had, the ledger answers for what isn't known here
	cancel()
	if kept, _ := s.inJournal(sub); !kept {
		return false
	}
	ctx, cancel = context.WithTimeout(ctx, waitsLimit)
	defer cancel()
	views, _ := s.find(ctx, sub) // a ledger that can't tell hasn't got it
	return len(views) == 0
}

// offer has the ledger accept sub within the patience that pass has.
func (s *Service) offer(ctx context.Context, sub *message.Submission, pass *pass) (message.Receipt, error) {
	limit, cancel := context.WithTimeout(ctx, s.patience(ctx, pass))
	defer cancel()
	defer context.AfterFunc(pass.ctx, cancel)()
	receipt, err := s.acceptor.Accept(limit, sub)
	pass.leave(err)
	return receipt, err
}

// accepted is the time of sub for the journal.
func (s *Service) accepted(sub *message.Submission, now time.Time) time.Time {
	if sub.Supersede != "" && s.cfg.LedgerTime != nil {
		if at, known := s.cfg.LedgerTime(now); known {
			return at
		}
	}
	return now
}

// outlast waits until the ledger, which may have been asked for sub at began, here
// or by another process, can no longer take it for newer than what comes after its
// answer.
func outlast(ctx context.Context, sub *message.Submission, began time.Time) {
	if sub.Supersede == "" {
		return
	}
	timer := time.NewTimer(time.Until(began.Add(2 * message.AcceptSlack)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// patience is how long the ledger may take. While there is no journal to go to,
// to give it up would be to refuse the request.
func (s *Service) patience(ctx context.Context, pass *pass) time.Duration {
	if deadline, ok := ctx.Deadline(); ok && s.cfg.JournalAway != nil && s.cfg.JournalAway() {
		return time.Until(deadline) * 9 / 10
	}
	return min(pass.patience, s.share(ctx))
}

// share is how much of what is left of a request the ledger may use: the other
// half is the journal's.
func (s *Service) share(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return s.cfg.Patience
	}
	return time.Until(deadline) / 2
}

// journaled is the answer to what the journal keeps. The ids are those that it
// will have in the ledger; a number it has none yet.
func journaled(sub *message.Submission) *Accepted {
	a := answer(sub, message.Receipt{})
	for i := range a.Messages {
		a.Messages[i].State, a.Messages[i].Sequence = message.StateJournaled, 0
	}
	return a
}

// inJournal says whether the journal holds sub, and whether it can tell.
func (s *Service) inJournal(sub *message.Submission) (kept, known bool) {
	if s.cfg.Journal == nil {
		return false, true
	}
	j, known := s.cfg.Journal.Find(sub.ID())
	return j != nil, known
}
