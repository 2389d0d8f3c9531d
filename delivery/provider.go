package delivery

import (
	"context"
	"errors"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Provider hands messages of one channel to one outside service. Its methods
// are safe for concurrent use.
type Provider interface {
	// Name is the provider's name in the configuration.
	Name() string
	Channel() message.Channel
	// ReplyLimit is how long Send may wait for the answer to the irrevocable
	// write. Nobody decides a doubt earlier than that.
	ReplyLimit() time.Duration
	Capabilities() Capabilities
	// Reserve waits for a slot in which a hand-over can begin at once: a free
	// place under the provider's concurrency and, where it has connections, an
	// authenticated one. No message is touched yet: an error means that the
	// provider can't be used now, and costs no message an attempt. It returns
	// ctx.Err() when ctx ends.
	Reserve(ctx context.Context) (Slot, error)
	// Close ends all connections. No slot may be in use.
	Close() error
}

// Capabilities is what a provider's vendor promises, by its documentation. The
// zero value promises nothing.
type Capabilities struct {
	// Repeats is what becomes of the same message handed over again.
	Repeats Repeats
	// RepeatWindow is for how long after the first hand-over a repeat is
	// absorbed or replaces; 0 with Repeats other than RepeatsDoubled means
	// without a documented end.
	RepeatWindow time.Duration
	// LookUp says that the vendor can be asked, by something that we chose,
	// whether it took a message.
	LookUp bool
	// MaxBytes is the largest request that the vendor takes, in bytes as it
	// counts them; 0 if it documents none.
	MaxBytes int
}

// Repeats is what becomes of a message that is handed over twice.
type Repeats uint8

// The kinds of Repeats.
const (
	// RepeatsDoubled: it is delivered twice, as far as anybody knows.
	RepeatsDoubled Repeats = iota
	// RepeatsAbsorbed: the same bytes, at the same account, are taken once.
	RepeatsAbsorbed
	// RepeatsReplaced: the second replaces the first where that isn't seen yet;
	// who has seen it may see it again.
	RepeatsReplaced
)

// ErrUnreachable is in an Authenticator's error when the service did not answer
// at all.
var ErrUnreachable = errors.New("can't be reached")

// Authenticator is a Provider that can show its credential without handing
// anything over.
type Authenticator interface {
	// Authenticate succeeds when the service lets us in now, with the credential
	// that a message would be handed over with.
	Authenticate(ctx context.Context) error
}

// Slot is the right to hand over one message, once.
type Slot interface {
	// Send hands env over and says how that ended.
	//
	// It calls last exactly once, immediately before the first write that can't
	// be taken back (the one that holds SMTP's final dot, an HTTP request's
	// first byte). When last fails nothing is handed over, and the outcome is
	// Returned. From the start of that write on, anything but a clear answer is
	// Unknown. Before it, anything that isn't the message's own fault is
	// Deferred; so is a step that lasts until env.Until. Send must not panic, but the caller survives it.
	//
	// ctx ends when the worker stops waiting; Send then returns at once, with
	// Unknown if the irrevocable write had begun, else with Returned.
	Send(ctx context.Context, env *message.Envelope, last func() error) message.Result
	// Release gives the slot back. It is called exactly once, whether Send was
	// called or not.
	Release()
}
