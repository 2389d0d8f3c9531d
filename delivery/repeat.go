package delivery

import (
	"strings"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Accounted is what the slots of a provider are that absorbs repeats.
type Accounted interface {
	// Account names, without showing a secret, the account at the vendor within
	// which a repeat is absorbed, as the slot would hand over, or has. Nothing
	// but that account has that name.
	Account() string
}

// repeatPolicy is the policy by which a message whose answer was lost is handed
// over again because its provider absorbs the repeat, after the prefix by
// PROVIDER:ACCOUNT.
//
// It stands in the ledger as the decision's author, so whoever makes the next
// attempts knows what they rest on: every one of them must go to that provider
// and account, with the same idempotency key and bytes, while the window since
// the message's first attempt lasts. One that can't is not made. Nobody knows
// then whether the message was taken, and it is in doubt.
const repeatPolicy = message.RepeatPolicy

// repeatBy is the policy for a hand-over by slot, or nothing if p doesn't absorb
// repeats.
func repeatBy(p Provider, slot Slot) string {
	s, ok := slot.(Accounted)
	if c := p.Capabilities(); !ok || c.Repeats != RepeatsAbsorbed || c.RepeatWindow <= 0 {
		return ""
	}
	return repeatPolicy + p.Name() + ":" + s.Account()
}

// repeatWindow is how much of the window is used: the vendor's clock is another
// one, and a request under way takes its time.
func repeatWindow(p Provider) time.Duration {
	w := p.Capabilities().RepeatWindow
	return w - w/8
}

// age is how long ago the message's first attempt was claimed, as far as the
// ledger told.
func (a *attempt) age(now Instant) time.Duration { return a.firstAge + now.Since(a.begun) }

// mayHandOver says whether an attempt that rests on a repeat's policy may be
// handed over by slot, and ties it to the account.
func (a *attempt) mayHandOver(p Provider, slot Slot) bool {
	if !strings.HasPrefix(a.basis, repeatPolicy) {
		return true
	}
	a.env.Account = strings.TrimPrefix(a.basis, repeatPolicy+p.Name()+":")
	return repeatBy(p, slot) == a.basis && a.age(a.clock()) < repeatWindow(p)
}

// repeat is the policy by which the message may be handed over again in wait,
// after an answer was lost, or nothing.
func (a *attempt) repeat(p Provider, slot Slot, r message.Result, wait time.Duration) string {
	if r.Outcome != message.Unknown || r.NoRepeat || a.age(a.clock())+wait >= repeatWindow(p) {
		return ""
	}
	return repeatBy(p, slot)
}
