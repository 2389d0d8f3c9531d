package delivery

import (
	"context"
	"log/slog"
	"time"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/plant"
)

func (s *sender) newAttempt(o *offer, c claimed, content *message.Content) *attempt {
	a := &attempt{sender: s, begun: c.begun, life: c.Life, offered: o.at, domain: o.domain, test: c.Test, basis: c.Basis, firstAge: c.FirstAge}
	a.env = message.Envelope{
		Position: o.item.Position, ID: o.item.ID, Attempt: o.item.Attempt,
		Tenant: c.Tenant, Recipient: c.Recipient, Content: content, ExpiresAt: c.ExpiresAt,
	}
	a.span = s.watch.deliver(a, o.item.Trace)
	return a
}

// handOver sends a claimed message, gives its slot back and sees its end
// recorded.
func (a *attempt) handOver(held lease) {
	if held.slot == nil {
		// It was claimed to be ended as expired, and by the ledger's clock it
		// isn't.
		a.settle("", message.Result{Outcome: message.Returned, Code: "no_slot"})
		return
	}
	provider, slot := held.gate.provider, held.slot
	if a.test {
		box := sandbox{a.lane.lane.Channel}
		provider, slot = box, box
	}
	if plant.Is(plant.NeedlessDoubt) && a.env.Position>>6%16 == 0 {
		held.release()
		a.settle(provider.Name(), message.Result{Outcome: message.Unknown})
		return
	}
	if verdict, _ := a.judge(a.clock()); verdict != granted { // no need to begin
		held.release()
		a.verdict = verdict
		a.settle(provider.Name(), message.Result{Outcome: message.Returned, Code: refusals[verdict]})
		return
	}
	if !a.mayHandOver(provider, slot) {
		held.release()
		a.log.Warn("message is in doubt: a repeat of it is not known to be absorbed any more",
			"lane", a.lane.name, "position", a.env.Position, "policy", a.basis, "provider", provider.Name())
		a.settle("", message.Result{Outcome: message.Unknown, Code: "repeat_not_absorbed", NoRepeat: true, Reply: "not handed over: " +
			"an earlier answer was lost, and this is another provider or account, or too late, for the repeat to be absorbed"})
		return
	}
	// Half of it at least: what is less than that may be the ledger's doing.
	a.env.Until = time.Now().Add(max(a.cfg.ClaimValid-a.clock().Since(a.begun), a.cfg.ClaimValid/2))
	if !a.test {
		a.track.domains.begin(a.domain)
	}
	begun := time.Now()
	ctx, span := a.watch.send(a.leash.hold(), a.span, provider.Name())
	r := a.send(ctx, slot, provider.Name())
	span.End()
	a.leash.loose()
	if a.lane.policy != ResendDoubts {
		a.again = a.repeat(provider, slot, r, a.retryIn(r))
	}
	if !a.test {
		var good, own bool
		if !r.Poison {
			good, own = held.learn(r, a.domain, time.Since(begun))
		}
		a.track.domains.ended(a.domain, time.Since(begun), good, own)
	}
	held.release()
	if handed := time.Duration(a.checked.Load()); a.verdict == granted {
		a.lane.meter.handedOver(provider.Name(), handed-a.offered, a.clock().Mono-handed)
	}
	a.settle(provider.Name(), r)
}

// leashSlack is how much later than the provider's own limits a Send is cut.
const leashSlack = 5 * time.Second

// leash bounds a sender's calls of Send, one after the other. Their context is
// the same one until it had to be cut, since making one for each would cost
// more than the rest of the attempt.
type leash struct {
	parent context.Context
	limit  time.Duration
	log    *slog.Logger

	ctx   context.Context
	cut   context.CancelFunc
	timer *time.Timer
}

// hold is the context for one Send. It ends after the limit, or with parent.
func (l *leash) hold() context.Context {
	if l.ctx == nil {
		ctx, cut := context.WithCancel(l.parent)
		l.ctx, l.cut = ctx, cut
		l.timer = time.AfterFunc(l.limit, func() {
			l.log.Error("provider outlasts its own reply limit and is cut off", "limit", l.limit)
			cut()
		})
		return ctx
	}
	l.timer.Reset(l.limit)
	return l.ctx
}

// loose ends the time of one Send. When the timer fired just then, the context
// is not used again.
func (l *leash) loose() {
	if !l.timer.Stop() {
		l.cut()
		l.ctx = nil
	}
}

func (l *leash) end() {
	if l.ctx != nil {
		l.timer.Stop()
		l.cut()
	}
}
