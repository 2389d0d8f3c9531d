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
	errTooOld  = errors.New("the claim is too old")
	errExpired = errors.New("the message has expired")
	errStopped = errors.New("the worker is stopping")
	errAsked   = errors.New("the last check was made already")
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
	env      message.Envelope
	begun    Instant       // before the claim was asked for
	life     time.Duration // of the message, from then on
	offered  time.Duration // when the worker got it, monotonic
	domain   string        // of the recipient, as its offer has it
	test     bool          // for the sandbox
	basis    string        // as in message.Claim
	firstAge time.Duration // likewise, when begun
	again    string        // the policy that repeats it, or empty
	span     trace.Span

	check   atomic.Uint32
	checked atomic.Int64 // when, monotonic
	verdict uint32       // what check was when Send returned
}

// judge says whether the message may be handed over now, or why not.
func (a *attempt) judge(now Instant) (uint32, error) {
	switch age := now.Since(a.begun); {
	case a.soft.Err() != nil:
		return stopped, errStopped
	case age > a.cfg.ClaimValid:
		return tooOld, errTooOld
	case age >= a.life:
		return expired, errExpired
	}
	return granted, nil
}

// last is the last check, as Slot.Send asks for it.
func (a *attempt) last() error {
	now := a.clock()
	verdict, err := a.judge(now)
	a.checked.CompareAndSwap(0, int64(now.Mono))
	if !a.check.CompareAndSwap(unasked, verdict) {
		a.log.Error("provider asked for the last check again", "lane", a.lane.name, "position", a.env.Position)
		return errAsked
	}
	return err
}

// send hands the message over and says how that ended, whatever the provider
// does.
func (a *attempt) send(ctx context.Context, slot Slot, provider string) message.Result {
	begun := time.Now()
	r, panicked, stack := a.call(ctx, slot)
	took := time.Since(begun)
	a.verdict = a.check.Swap(over)
	if panicked != nil {
		reason := fmt.Sprint("panic: ", panicked)
		a.log.Error("provider panicked", "provider", provider, "lane", a.lane.name, "position", a.env.Position,
			"handed_over", a.verdict == granted, "type", fmt.Sprintf("%T", panicked), "stack", stack)
		r = message.Result{Outcome: message.Returned, Code: "panic", Reply: reason, Poison: true}
	}
	if r.Outcome == message.Returned && r.Code == "" {
		r.Code = refusals[a.verdict]
	}
	switch {
	case r.Outcome < message.Sent || r.Outcome > message.Returned:
		a.broken(provider, "it said nothing")
		r.Outcome = message.Unknown
	case r.Poison && a.verdict == granted: // it may have been handed over before
		r.Outcome, r.Poison = message.Unknown, false
	case a.verdict != granted && (r.Outcome == message.Sent || r.Outcome == message.Unknown):
		a.broken(provider, "it handed over without the last check")
	case r.Outcome == message.Returned && !r.Poison && a.verdict == tooOld && 2*took > a.cfg.ClaimValid:
		// It was the provider that used the claim up, and it would the next one, too.
		r.Outcome, r.Fault = message.Deferred, true
	}
	return r
}

// refusals are the codes of what was given back.
var refusals = [...]string{unasked: "not_handed_over", granted: "not_handed_over", tooOld: "claim_too_old", expired: "expired", stopped: "stopping"}

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
