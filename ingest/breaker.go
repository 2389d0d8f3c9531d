package ingest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// breakAfter is how many accepts in a row have to fail before the ledger is
	// left alone.
	breakAfter = 3
	// probeEvery is how often one request tries it again, and probePatience how
	// long that one waits for it.
	probeEvery    = time.Second
	probePatience = time.Second
)

var errLedgerAway = fmt.Errorf("%w: the ledger has failed repeatedly", message.ErrUnavailable)

// breaker keeps requests from waiting, one after the other, for a ledger that
// doesn't answer. Closed, every request has a pass; after breakAfter failures in
// a row it opens, which ends the wait of all that hold one; then one request at a time
// has a pass, at most each probeEvery, and the first that succeeds closes it.
type breaker struct {
	patience time.Duration
	now      func() time.Time
	changed  func(open bool, cause error)

	mu     sync.Mutex
	failed int // in a row
	open   bool
	probe  time.Time // when the next may begin
	ctx    context.Context
	end    context.CancelFunc // of the passes given out while it was closed
}

// pass is the leave to try the ledger. It must be left.
type pass struct {
	patience time.Duration
	ctx      context.Context // ends when waiting on is useless
	breaker  *breaker
}

func newBreaker(patience time.Duration, now func() time.Time, changed func(bool, error)) *breaker {
	b := &breaker{patience: patience, now: now, changed: changed}
	b.ctx, b.end = context.WithCancel(context.Background())
	return b
}

// enter gives a pass, or nil.
func (b *breaker) enter() *pass {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return &pass{b.patience, b.ctx, b}
	}
	now := b.now()
	if now.Before(b.probe) {
		return nil
	}
	b.probe = now.Add(probeEvery + probePatience) // a failure sets it earlier
	return &pass{min(b.patience, probePatience), context.Background(), b}
}

// leave tells how the try went. A stream that can't be numbered says nothing of
// the ledger as a whole.
func (p *pass) leave(err error) {
	b := p.breaker
	if errors.Is(err, message.ErrNumbering) {
		err = nil
	}
	b.mu.Lock()
	was := b.open
	switch {
	case !errors.Is(err, message.ErrUnavailable):
		b.failed = 0
		if b.open {
			b.open = false
			b.ctx, b.end = context.WithCancel(context.Background())
		}
	case b.open:
		b.probe = b.now().Add(probeEvery)
	default:
		if b.failed++; b.failed >= breakAfter {
			b.open, b.probe = true, b.now().Add(probeEvery)
			b.end()
		}
	}
	is := b.open
	b.mu.Unlock()
	if was != is {
		b.changed(is, err)
	}
}
