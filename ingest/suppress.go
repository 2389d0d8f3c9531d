package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	suppressionsEvery = time.Second
	// maxSuppressions bounds the copy, at some 50 MB. Whoever isn't in it is
	// refused by the provider again, which is what it is for to spare.
	maxSuppressions = 1_000_000
)

// SuppressionSource is where suppressions are kept: the ledger.
type SuppressionSource interface {
	// SuppressionChanges calls each with what has changed since it was called
	// before, and answers from where to go on; with 0 it begins with everything.
	// A change may come again.
	SuppressionChanges(ctx context.Context, since uint64, each func(message.SuppressionChange)) (next uint64, err error)
}

// Suppressions is a copy of who is suppressed, so that the door needs to ask
// nobody: some seconds old at most while the source answers, and older while it
// doesn't. It is safe for concurrent use.
type Suppressions struct {
	source SuppressionSource
	log    *slog.Logger

	mu    sync.RWMutex
	set   map[[16]byte]struct{}
	since uint64
	full  bool
}

// NewSuppressions makes an empty copy.
func NewSuppressions(source SuppressionSource, log *slog.Logger) *Suppressions {
	return &Suppressions{source: source, log: log, set: make(map[[16]byte]struct{})}
}

// Run refreshes the copy every second until ctx ends.
func (s *Suppressions) Run(ctx context.Context) {
	tick := time.NewTicker(suppressionsEvery)
	defer tick.Stop()
	failing := false
	for {
		err := s.Refresh(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failing {
			s.log.Warn("suppressions are not refreshed", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Refresh takes over what has changed.
func (s *Suppressions) Refresh(ctx context.Context) error {
	s.mu.RLock()
	since := s.since
	s.mu.RUnlock()
	var batch []message.SuppressionChange
	take := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, c := range batch {
			switch {
			case !c.Active:
				delete(s.set, c.Digest)
			case len(s.set) < maxSuppressions:
				s.set[c.Digest] = struct{}{}
			case !s.full:
				s.full = true
				s.log.Warn("too many suppressions: further ones are not looked at", "most", maxSuppressions)
			}
		}
		batch = batch[:0]
	}
	next, err := s.source.SuppressionChanges(ctx, since, func(c message.SuppressionChange) {
		if batch = append(batch, c); len(batch) == 1000 {
			take()
		}
	})
	if err != nil {
		return fmt.Errorf("refresh suppressions: %w", err)
	}
	take()
	s.mu.Lock()
	s.since = next
	s.mu.Unlock()
	return nil
}

// problems names the recipients of r that are suppressed. A nil s knows none.
func (s *Suppressions) problems(r Request) message.FieldErrors {
	if s == nil || r.Content.Options().BypassSuppression {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.set) == 0 {
		return nil
	}
	var errs message.FieldErrors
	for i, to := range r.Content.Recipients() {
		if _, is := s.set[message.SuppressionDigest(r.Principal.Tenant, r.Content.Channel(), to)]; is {
			errs = append(errs, message.FieldError{
				Field: recipientField(r.Content, i), Problem: "is suppressed, since a provider said that it is gone, or its reader complained: see GET /v1/suppressions, or set bypass_suppression",
			})
		}
	}
	return errs
}

// recipientField is the path of the recipient with that index.
func recipientField(c *message.Content, i int) string {
	if c.Push != nil {
		return "to"
	}
	for _, list := range []struct {
		name string
		n    int
	}{{"to", len(c.Email.To)}, {"cc", len(c.Email.Cc)}, {"bcc", len(c.Email.Bcc)}} {
		if i < list.n {
			return fmt.Sprintf("%s[%d]", list.name, i)
		}
		i -= list.n
	}
	return "to"
}
