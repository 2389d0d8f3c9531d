package delivery

import (
	"errors"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/stormpost/stormpost/internal/message"
)

// heldPause is after how long an attempt that was held back is asked for again.
const heldPause = time.Second

// sender makes one attempt at a time.
type sender struct {
	*Worker
	lane  *lane
	track *track // nil for a router
	leash leash
}

func newSender(w *Worker, l *lane, t *track) *sender {
	s := &sender{Worker: w, lane: l, track: t}
	s.leash = leash{parent: w.hard, limit: w.cfg.ClaimValid + l.gates.replyLimit() + leashSlack, log: w.log.With("lane", l.name)}
	return s
}

// run makes the attempts that routers bring.
func (s *sender) run() {
	defer s.leash.end()
	o := new(offer)
	for s.track.next(o, s.soft.Done()) {
		s.attempt(o)
		s.track.domains.leave(o.domain)
		*o = offer{}
	}
}

// attempt claims an item and hands it over. What is claimed without content ends
// without a hand-over.
func (s *sender) attempt(o *offer) {
	c, ok := s.claim(o, o.content)
	switch {
	case !ok:
	case o.flaw != "":
		a := s.newAttempt(o, c, nil)
		a.settle("", message.Result{Outcome: message.Returned, Code: "unreadable", Reply: o.flaw, Poison: true})
	default:
		s.newAttempt(o, c, o.content).handOver(c.lease)
	}
}

// route gives a lane's items, in their turn, to senders of the providers that
// they go to.
func (s *sender) route(turn int) {
	o := new(offer)
	for ; s.lane.next(o, s.soft.Done(), turn); turn++ {
		s.direct(o)
		*o = offer{}
	}
}

// direct finds out where one item goes.
func (s *sender) direct(o *offer) {
	if why := s.lane.misfit(&o.item); why != "" {
		s.lane.hand.drop(o.key())
		s.park(o, why)
		return
	}
	found, err := s.read(o)
	switch {
	case err != nil:
		s.lane.giveBack(o)
	case found.stray != "":
		s.lane.hand.drop(o.key())
		s.park(o, found.stray)
	case found.flaw != "":
		o.flaw = found.flaw
		s.attempt(o)
	default:
		o.content = found.content
		o.domain = domainOf(o.content, o.item.Position.Index())
		s.assign(o)
	}
}

// claimed is an attempt that is ours, and what it was claimed with.
type claimed struct {
	message.Claim
	begun Instant // before it was asked for
	lease lease   // none if there is nothing to send
}

// claim asks for the attempt, until the ledger answers or the worker stops. What
// is held back stays with the sender, as with a provider that can't be used.
// Content that is to be sent has a slot reserved before: of another provider, by
// another sender, if this one's can't be used and that one's can. Unless its life ends
// while it waits for one: then the claim will end it as expired. Unless the
// attempt is ours, nothing is left to do for the item.
func (s *sender) claim(o *offer, content *message.Content) (c claimed, ok bool) {
	var pauses *backoff.ExponentialBackOff
	gate := s.lane.gates.rest
	if s.track != nil {
		gate = s.track.gate
	}
	var elsewhere func() bool
	if len(o.rest) > 0 {
		elsewhere = o.elsewhere
	}
	for {
		if content != nil {
			var err error
			c.lease, err = gate.reserve(s.soft, s.lane.lane.Class, content.Options().ExpiresAt, elsewhere)
			if errors.Is(err, errShut) {
				s.assign(o)
				return claimed{}, false
			}
			if err != nil && !errors.Is(err, errPastLife) {
				s.lane.giveBack(o)
				return claimed{}, false
			}
		}
		s.lane.hand.ask(o.key())
		o.item.Provider = gate.provider.Name()
		c.begun = s.clock()
		answer, err := s.cfg.Ledger.Claim(s.soft, o.item)
		if err == nil && answer.Verdict != message.HeldBack {
			c.Claim = answer
			break
		}
		s.lane.hand.unask(o.key())
		c.lease.release()
		if err == nil {
			s.note(opClaim, nil)
			if s.track != nil {
				s.track.held.Store(int64(s.clock().Mono))
			}
			if pause(s.soft, heldPause) != nil {
				s.lane.giveBack(o)
				return claimed{}, false
			}
			continue
		}
		if s.soft.Err() == nil {
			s.note(opClaim, err)
		}
		if pauses == nil {
			pauses = newLedgerBackoff()
		}
		if pause(s.soft, pauses.NextBackOff()) != nil {
			s.lane.giveBack(o)
			return claimed{}, false
		}
	}
	s.note(opClaim, nil)
	s.lane.meter.claimed(c.Verdict, s.clock().Mono-c.begun.Mono)
	if c.Verdict == message.Claimed {
		if o.fed() {
			s.lane.won.Add(1)
		}
		s.lane.finish(o)
		return c, true
	}
	c.lease.release()
	s.lane.hand.end(o.key())
	if o.fed() && c.Verdict == message.Taken {
		s.lane.vain.Add(1)
	}
	if c.Verdict == message.Stranger {
		s.park(o, "the ledger knows no such message")
		return claimed{}, false
	}
	s.lane.finish(o)
	return claimed{}, false
}

// park keeps a record that is no message of ours and finishes it. What the feed
// brought is in the ledger as it is, and only reported.
func (s *sender) park(o *offer, why string) {
	source := "lane " + s.lane.name + ", position " + o.item.Position.String() + ", " + o.item.ID.String()
	if o.fed() {
		s.log.Error("the ledger fed what it doesn't know", "source", source, "reason", why)
		s.lane.finish(o)
		return
	}
	s.log.Warn("record is no message of ours; it is parked", "source", source, "reason", why)
	if s.insist(s.soft, opPark, func() error { return s.cfg.Ledger.Park(s.soft, source, o.item.Content, why) }) == nil {
		s.lane.finish(o)
	}
}
