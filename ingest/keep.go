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
	pass := s.breaker.enter()
	err := errLedgerAway
	if pass != nil {
		var receipt message.Receipt
		receipt, err = s.offer(ctx, sub, pass)
		if !errors.Is(err, message.ErrUnavailable) {
			return receipt, err
		}
	}
	if jerr := s.cfg.Journal.Append(ctx, message.Journaled{Submission: sub, AcceptedAt: now}); jerr != nil {
		return message.Receipt{}, errors.Join(err, jerr)
	}
	return message.Receipt{}, errJournaled
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
