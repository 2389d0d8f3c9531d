package delivery

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/stormpost/stormpost/internal/message"
)

// Why the last check gives a message back. A provider passes none of them on.
var (
	errTooOld   = errors.New("the claim is too old")
	errExpired  = errors.New("the message has expired")
	errStopping = errors.New("the worker is stopping")
	errAsked    = errors.New("the last check was made already")
)

// The states of an attempt's last check.
const (
	unasked uint32 = iota
	granted
	tooOld
	expired
	stopped
	over // Send has returned: whoever asks now asks too late
)

// attempt is one claimed attempt. It is never used for another one, since a
// provider may keep what Send was given and ask again much later.
type attempt struct {
	*sender
	env     message.Envelope
	begun   Instant       // before the claim was asked for
	life    time.Duration // of the message, from then on
	test    bool          // for the sandbox
	offered time.Duration // when the worker got it, monotonic
	span    trace.Span

	check   atomic.Uint32
	at      atomic.Int64 // when the check was made, monotonic
	refused uint32       // why it was refused, if it was; set when Send has returned
}

// last is the last check, as Slot.Send asks for it.
func (a *attempt) last() error {
	verdict, err := granted, error(nil)
	now := a.clock()
	switch age := now.Since(a.begun); {
	case a.soft.Err() != nil:
		verdict, err = stopped, errStopping
	case age > a.cfg.ClaimValid:
		verdict, err = tooOld, errTooOld
	case age >= a.life:
		verdict, err = expired, errExpired
	}
	a.at.CompareAndSwap(0, int64(now.Mono))
	if !a.check.CompareAndSwap(unasked, verdict) {
		a.log.Error("provider asked for the last check again", "lane", a.lane.name, "position", a.env.Position)
		return errAsked
	}
	return err
}

// send hands the message over and says how that ended, whatever the provider
// does. handed is when the last check was granted, or zero.
func (a *attempt) send(ctx context.Context, slot Slot, provider string) (r message.Result, handed time.Duration) {
	r, panicked, stack := a.call(ctx, slot)
	check := a.check.Swap(over)
	switch check {
	case granted:
		handed = time.Duration(a.at.Load())
	case tooOld, expired, stopped:
		a.refused = check
	}
	if panicked != nil {
		reason := fmt.Sprint("panic: ", panicked)
		a.log.Error("provider panicked", "provider", provider, "lane", a.lane.name, "position", a.env.Position,
			"handed_over", check == granted, "type", fmt.Sprintf("%T", panicked), "stack", stack)
		r = message.Result{Outcome: message.Returned, Code: "panic", Reply: reason, Poison: true}
	}
	switch {
	case r.Outcome < message.Sent || r.Outcome > message.Returned:
		a.broken(provider, "it said nothing")
		r.Outcome = message.Unknown
	case r.Poison && check == granted: // it may have been handed over before
		r.Outcome, r.Poison = message.Unknown, false
	case check != granted && (r.Outcome == message.Sent || r.Outcome == message.Unknown):
		a.broken(provider, "it handed over without the last check")
	}
	if r.Outcome == message.Returned && r.Code == "" {
		r.Code = refusals[check]
	}
	return r, handed
}

// refusals are the codes of what was given back.
var refusals = [...]string{unasked: "not_handed_over", granted: "not_handed_over", tooOld: "claim_too_old", expired: "expired", stopped: "stopping", over: ""}

func (a *attempt) broken(provider, how string) {
	a.log.Error("provider breaks its contract", "provider", provider, "lane", a.lane.name, "position", a.env.Position, "how", how)
}

// call is Send, surviving it.
func (a *attempt) call(ctx context.Context, slot Slot) (r message.Result, panicked any, stack string) {
	defer func() {
		if panicked = recover(); panicked != nil {
			stack = string(debug.Stack())
		}
	}()
	return slot.Send(ctx, &a.env, a.last), nil, ""
}
