package delivery

import (
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// routers is how many of a lane's items are looked at, at once, for where
	// they go.
	routers = 8
	// patience is how long an item waits for a sender of its provider while
	// another provider of its lane has senders to spare.
	patience = 100 * time.Millisecond
	// stuckAfter is how long a provider has taken nothing when it counts as stuck;
	// and sharedFor, for how long its lane counts as having messages for another
	// provider after that one took one.
	stuckAfter = 500 * time.Millisecond
	sharedFor  = 10 * time.Second
	// An item that found none is set aside for as long as its provider has had
	// none by then, within these bounds.
	leastAside = 2 * time.Second
	mostAside  = 5 * time.Minute
	// heldBackFor is how long after a claim was held back its provider, or its
	// lane, counts as held.
	heldBackFor = 3 * time.Second
)

// track is the senders that a lane has for one provider, and for no other: so
// one that hangs has its own senders hang, and nobody else's.
type track struct {
	gate    *gate
	domains *domains
	to      chan offer   // to whoever is idle
	idle    atomic.Int32 // senders that wait for an item
	full    atomic.Int64 // since when nobody was idle for long, monotonic; 0: somebody was
	held    atomic.Int64 // when a claim was held back last, monotonic
	took    atomic.Int64 // when a sender took an item last, monotonic
}

func newTracks(g *gates, senders int, class message.Class) (all []*track) {
	for _, gate := range g.all {
		all = append(all, &track{gate: gate, domains: newDomains(senders, gate.most(class)), to: make(chan offer)})
	}
	return all
}

// next puts into o what a router brings. It is false when the worker is stopping.
func (t *track) next(o *offer, stopping <-chan struct{}) bool {
	t.idle.Add(1)
	defer t.idle.Add(-1)
	select {
	case *o = <-t.to:
		return true
	case <-stopping:
		return false
	}
}

// give hands o to a sender of t. Nobody of the lane waits for that longer than
// patience: what finds no sender is set aside in the ledger, which feeds it
// again later. But while no other provider could use the time, or this one is
// just busy in a lane of its own, or held by a person, o waits as long as it takes.
//
// What finds no room for its domain waits for it likewise, or is set aside at
// once while the domain is in trouble.
func (s *sender) give(o *offer, t *track) {
	entered, freed, full := s.enter(o, t)
	if entered {
		select {
		case t.to <- *o:
			s.took(t)
			if (t.idle.Load() > 1 || s.lane.senders == 1) && t.full.Load() != 0 && t.full.Swap(0) != 0 {
				s.log.Info("provider has senders to spare again", "lane", s.lane.name, "provider", t.gate.provider.Name())
			}
			return
		default:
		}
	}
	aside := func() {
		if entered {
			t.domains.leave(o.domain)
			if since := t.full.Load(); since != 0 {
				full = s.clock().Mono - time.Duration(since)
			}
		}
		s.setAside(o, t, full, !entered)
	}
	if !entered && freed == nil || s.track != nil { // senders don't wait for each other
		aside()
		return
	}
	var late <-chan time.Time
	if entered && len(s.lane.tracks) > 1 && t.full.Load() != 0 && s.mayPass(t) {
		aside()
		return
	}
	if len(s.lane.tracks) > 1 || !entered {
		timer := time.NewTicker(patience)
		defer timer.Stop()
		late = timer.C
	}
	for {
		to := t.to
		if !entered {
			to = nil
		}
		select {
		case to <- *o:
			s.took(t)
			return
		case <-s.soft.Done():
			if entered {
				t.domains.leave(o.domain)
			}
			s.lane.giveBack(o)
			return
		case <-freed:
			if entered, freed, full = s.enter(o, t); !entered && freed == nil {
				aside()
				return
			}
		case <-late:
			if !entered {
				if entered, freed, full = s.enter(o, t); !entered && freed == nil {
					aside()
					return
				}
				continue // whatever lacks is not senders
			}
			switch {
			case !s.mayPass(t):
				continue
			case t.full.CompareAndSwap(0, max(1, int64(s.clock().Mono))):
				s.log.Warn("provider has no sender to spare; its messages are set aside", "lane", s.lane.name, "provider", t.gate.provider.Name())
			}
			aside()
			return
		}
	}
}

// enter is domains.enter for o. While a person holds the lane or the provider,
// nobody makes way for others.
func (s *sender) enter(o *offer, t *track) (ok bool, freed <-chan struct{}, full time.Duration) {
	if s.heldBack(t) {
		t.domains.push(o.domain)
		return true, nil, 0
	}
	return t.domains.enter(o.domain)
}

// heldBack says whether a person holds the lane or the provider.
func (s *sender) heldBack(t *track) bool {
	at := t.held.Load()
	return at != 0 && s.clock().Mono-time.Duration(at) < heldBackFor
}

// mayPass says whether others of the lane have something from not waiting for t:
// one has senders to spare, and may well have messages behind, which is known if
// it took some lately and is found out if t is stuck.
func (s *sender) mayPass(t *track) bool {
	now := s.clock().Mono
	since := func(at *atomic.Int64) time.Duration { return now - time.Duration(at.Load()) }
	if s.heldBack(t) {
		return false
	}
	stuck := since(&t.took) > stuckAfter
	for _, other := range s.lane.tracks {
		if other != t && other.idle.Load() > 0 && (stuck || other.took.Load() != 0 && since(&other.took) < sharedFor) {
			return true
		}
	}
	return false
}

// took has t know that a sender of it has an item again.
func (s *sender) took(t *track) { t.took.Store(max(1, int64(s.clock().Mono))) }

// setAside leaves o to the ledger, to be fed when it is due again: the later, the
// longer there has been no room. What can't be set aside has an attempt already, or
// has expired, or is no message: its claim tells.
func (s *sender) setAside(o *offer, t *track, full time.Duration, domain bool) {
	wait := min(max(leastAside, full), mostAside)
	wait -= rand.N(wait / 2)
	var aside bool
	err := s.insist(s.soft, opPostpone, func() (err error) {
		aside, err = s.cfg.Ledger.Postpone(s.soft, o.item, wait)
		return err
	})
	switch {
	case err != nil:
		s.lane.giveBack(o)
	case aside:
		s.lane.meter.setAside(t.gate.provider.Name(), domain)
		s.lane.hand.drop(o.key())
		s.lane.finish(o)
	default:
		o.content = nil
		s.attempt(o)
	}
}
