// Package ingest is the use case of accepting: it judges a request, has the
// ledger keep it, and publishes what is to be sent at once. The doors (HTTP and
// later SMTP) decode their protocol, call Submit, and encode the answer.
//
// A request goes through five steps, and a failure in one ends it:
//
//	validate   all problems at once, as message.FieldErrors; nothing is kept
//	submit     canonical content, fingerprint and ids
//	accept     durable and numbered; from here on the answer is a promise. While
//	           the ledger is away: durable in the journal, numbered later
//	publish    one item for each message that is due; best effort, never waits
//	answer     ids and numbers
package ingest

import (
	"log/slog"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Config is what may be set about accepting. Zero fields get the default named.
type Config struct {
	EmailLife   time.Duration // an email without expires_at ends as expired after it: 72 h
	PushLife    time.Duration // likewise a push: 24 h
	MaxSchedule time.Duration // how far ahead send_at may be: 30 days
	MaxLife     time.Duration // how far ahead expires_at may be: 90 days
	Platforms   []string      // push platforms that have a provider; default fcm alone
	// PushCheck is a provider's own judgement, such as of a payload's size.
	// What it answers is shown to whoever asked. Nil checks nothing.
	PushCheck func(*message.Push) error
	// EmailCheck is the same for an email.
	EmailCheck func(*message.Email) error
	// Suppressions are whom nothing is taken for. Nil: nobody.
	Suppressions *Suppressions
	// Finder answers for submissions that were made before, when the same would be
	// refused by now. Nil: nobody does.
	Finder Finder
	// Journal keeps what the ledger can't. Nil: what the ledger can't take is
	// answered with message.ErrUnavailable.
	Journal Journal
	// JournalAway says that the journal can't take anything just now; nil: never.
	JournalAway func() bool
	// Patience is how long the ledger may take to accept before the journal does
	// instead, at most half of what is left of the request: 2 s.
	Patience time.Duration
	// RepeatsSince is from when on a request without a key counts as a repeat of
	// what was accepted; zero, or nil: never. It is up to the ledger what becomes of one.
	RepeatsSince func() time.Time
	// Admission refuses what is too much. Nil takes everything.
	Admission *Admission
	Log       *slog.Logger // nil: none
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// LedgerTime is what the ledger's clock shows at a moment of this process's, if it
	// is known: the order of requests under one supersede key must not hang on whose
	// clock was read. Nil: it never is.
	LedgerTime func(time.Time) (time.Time, bool)
	// Timeout is how long a request may take: 10 s.
	Timeout time.Duration
}

// Service accepts requests. It is safe for concurrent use.
type Service struct {
	acceptor  Acceptor
	publisher Publisher
	breaker   *breaker
	lookups   chan struct{} // one for each repeat that is looked up though it is too much
	cfg       Config
}

// mostLookups bounds those.
const mostLookups = 16

// New makes a Service over a ledger and a publisher.
func New(acceptor Acceptor, publisher Publisher, cfg Config) *Service {
	orDefault(&cfg.EmailLife, 72*time.Hour)
	orDefault(&cfg.PushLife, 24*time.Hour)
	orDefault(&cfg.MaxSchedule, 30*24*time.Hour)
	orDefault(&cfg.MaxLife, 90*24*time.Hour)
	if cfg.Platforms == nil {
		cfg.Platforms = []string{"fcm"}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	orDefault(&cfg.Patience, 2*time.Second)
	orDefault(&cfg.Timeout, 10*time.Second)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	changed := func(open bool, cause error) {
		if open {
			cfg.Log.Warn("the ledger doesn't accept; the journal does", "error", cause)
		} else {
			cfg.Log.Info("the ledger accepts again")
		}
	}
	return &Service{acceptor: acceptor, publisher: publisher, breaker: newBreaker(cfg.Patience, cfg.Now, changed), lookups: make(chan struct{}, mostLookups), cfg: cfg}
}

func orDefault(d *time.Duration, value time.Duration) {
	if *d == 0 {
		*d = value
	}
}
