package message

import (
	"fmt"
	"time"
)

// Outcome is how an attempt ended. Its numbers are those in the ledger.
type Outcome uint8

const (
	// Sent: the provider took it.
	Sent Outcome = iota + 1
	// Deferred: certainly not taken; to be tried again.
	Deferred
	// Rejected: certainly not taken, and never will be.
	Rejected
	// Unknown: the provider may have taken it.
	Unknown
	// Returned: certainly not handed over, for a reason of our own (the claim
	// was too old, the worker is stopping). The next attempt may come at once.
	Returned
)

var outcomeNames = [...]string{Sent: "sent", Deferred: "deferred", Rejected: "rejected", Unknown: "unknown", Returned: "returned"}

func (o Outcome) String() string {
	if o < Sent || o > Returned {
		return fmt.Sprintf("outcome(%d)", o)
	}
	return outcomeNames[o]
}

// RecipientGone is the Result.Code of a Rejected message whose recipient the
// provider says does not exist any more, and the reason why it failed.
const RecipientGone = "recipient_gone"

// NotTaken says whether after o the message may be handed over again.
func (o Outcome) NotTaken() bool { return o == Deferred || o == Returned }

// Result is a provider's answer to one hand-over.
type Result struct {
	Outcome    Outcome
	Code       string        // the provider's own: "250", "UNREGISTERED"
	Reply      string        // what it said, one line of at most 500 bytes, without secrets
	Reference  string        // the provider's name for the message, if it gave one
	RetryAfter time.Duration // how long it asked us to wait, or zero
	// NoRepeat, beside Unknown, says that repeating won't tell more, though the
	// provider absorbs repeats.
	NoRepeat bool
	// Fault says that it was not the message's or its recipient's doing: the
	// provider as a whole is in trouble, or asks for a pause. Unknown needs none.
	Fault bool
	// Unasked says that we refuse the message ourselves: the provider was not asked.
	Unasked bool
	// Poison sets the message aside as held instead of trying again: it made
	// the provider's code panic before anything was handed over.
	Poison bool
}

// Report is a Result on its way into the ledger.
type Report struct {
	Position Position
	ID       ID
	Attempt  int
	Provider string
	Result
	RetryIn time.Duration // after Deferred and Returned: when the next attempt is due
	Resend  string        // after Unknown: the policy that has it resent ("policy:NAME"), or empty to hold
}

// AttemptKey names one attempt.
type AttemptKey struct {
	Position Position
	Attempt  int
}

// ClaimVerdict is the ledger's answer to the wish to make an attempt.
type ClaimVerdict uint8

const (
	// Claimed: the attempt is the asker's, and nobody else's.
	Claimed ClaimVerdict = iota + 1
	// Taken: this attempt was made, ended or set aside by somebody.
	Taken
	// NotDue: it waits in the ledger, which will feed it when it is due.
	NotDue
	// Expired: it was past its life; it has just been ended as expired.
	Expired
	// Stranger: the ledger knows no such message, or another one in its place.
	Stranger
	// TooEarly: the attempt before this one has no outcome that allows it.
	TooEarly
	// HeldBack: a person holds its lane or provider. Nothing was done: it is to
	// be asked for again.
	HeldBack
)

// Claim is the ledger's answer to the wish to make an attempt. Everything but
// Verdict is set for Claimed only.
type Claim struct {
	Verdict   ClaimVerdict
	Tenant    int32
	Recipient string
	Test      bool          // never hand it to a real provider
	ExpiresAt time.Time     // by the ledger's clock
	Life      time.Duration // until then, measured by the ledger at the claim
	// Basis is who decided last that the message be handed over again, of
	// attempts after the first: a person, a policy, or nobody.
	Basis string
	// FirstAge is how long ago the message's first attempt was claimed; zero for
	// the first.
	FirstAge time.Duration
}

// RepeatPolicy begins the name of the policy by which a message whose answer was
// lost is handed over again, since its provider absorbs the repeat.
const RepeatPolicy = "policy:repeat@"

// State is what users see of a message.
type State string

// The states.
const (
	StateQueued     State = "queued"
	StateWaiting    State = "waiting" // scheduled, or between attempts
	StateSending    State = "sending"
	StateSent       State = "sent"
	StateFailed     State = "failed"
	StateExpired    State = "expired"
	StateSuperseded State = "superseded"
	StateCanceled   State = "canceled"
	StateInDoubt    State = "in_doubt"
	StateHeld       State = "held"
	StateJournaled  State = "journaled"
)

// States lists all of them.
func States() []State {
	return []State{StateQueued, StateWaiting, StateSending, StateSent, StateFailed, StateExpired, StateSuperseded, StateCanceled, StateInDoubt, StateHeld, StateJournaled}
}

// Decision is what a person, or a policy, made of a doubt.
type Decision string

// The decisions.
const (
	DecideSent   Decision = "sent"   // it was taken: ends as sent
	DecideResend Decision = "resend" // hand it over again
	DecideDrop   Decision = "drop"   // ends as failed
)
