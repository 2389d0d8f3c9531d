package delivery

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// feedTurn is how often a sender looks to the feed first: every 16th item. So
// what only the ledger knows has its share while Kafka has more than enough.
const feedTurn = 16

// fairTurn is how often a sender looks to Kafka before what comes for the sake of
// fairness: every fourth item, so that Kafka's records go on being finished.
const fairTurn = 4

// Content of more than great bytes is kept in a queue for maxGreat of Kafka's
// items, which the ledger might not know, and for none of the feed's, which is
// read from the ledger again when its turn has come.
const (
	great    = 64 << 10
	maxGreat = 16
)

// offer is an item on its way to a sender.
type offer struct {
	item   message.Item
	finish func() // nil for the feed's
	at     time.Duration

	content *message.Content // once it is read
	flaw    string           // why it can't be sent
	rest    []*track         // to whom it may go as well
	domain  string           // of its recipient, as domainOf has it
}

func (o *offer) key() message.AttemptKey {
	return message.AttemptKey{Position: o.item.Position, Attempt: o.item.Attempt}
}

func (o *offer) fed() bool { return o.finish == nil }

func (o *offer) great() bool { return len(o.item.Content) > great }

// lane is everything that one lane has for itself.
type lane struct {
	lane    message.Lane
	name    string
	senders int    // for each provider
	gates   *gates // of the channel's providers, shared with the channel's lanes
	tracks  []*track
	orders  []order
	tenants bool // orders name some
	policy  DoubtPolicy
	meter   *laneMeter

	kafka chan offer
	great chan struct{} // one for each great item in kafka
	feed  chan offer
	fair  chan offer // each tenant's oldest, while the lane is crowded
	hand  *hand

	hungry chan struct{} // wakes the feed
	more   atomic.Bool   // the ledger has more than was taken: wake it when there is room
	turns  atomic.Bool   // the fair queue was filled: wake the feed when it is empty
	fed    atomic.Int64  // the feed's items that no verdict has come for
	won    atomic.Int64  // the feed's items that were claimed
	vain   atomic.Int64  // the feed's items that others had claimed
}

func newLane(l message.Lane, senders int, gates *gates, policy DoubtPolicy) *lane {
	queue := max(64, senders)
	return &lane{
		lane: l, name: l.String(), senders: senders, gates: gates, tracks: newTracks(gates, senders, l.Class), policy: policy,
		kafka: make(chan offer, queue), great: make(chan struct{}, maxGreat), feed: make(chan offer, queue),
		fair: make(chan offer, max(8, senders/2)),
		hand: newHand(), hungry: make(chan struct{}, 1),
	}
}

// offer queues o, waiting for room until ctx or the worker ends.
func (l *lane) offer(ctx context.Context, o offer, stopping <-chan struct{}) error {
	l.hand.take(o.key(), false)
	if o.great() {
		select {
		case l.great <- struct{}{}:
		case <-stopping:
			return l.refuse(&o, ErrStopping)
		case <-ctx.Done():
			return l.refuse(&o, ctx.Err())
		}
	}
	select {
	case l.kafka <- o:
		return nil
	default:
	}
	var err error
	select {
	case l.kafka <- o:
		return nil
	case <-stopping:
		err = ErrStopping
	case <-ctx.Done():
		err = ctx.Err()
	}
	if o.great() {
		<-l.great
	}
	return l.refuse(&o, err)
}

func (l *lane) refuse(o *offer, err error) error {
	l.hand.drop(o.key())
	return fmt.Errorf("offer: %w", err)
}

// next puts into o what comes first: the fair queue's, or Kafka's or the feed's
// when it is their turn, or else what is there. It is false when the worker is
// stopping.
func (l *lane) next(o *offer, stopping <-chan struct{}, turn int) bool {
	first, second := l.fair, l.kafka
	switch {
	case turn%feedTurn == 0:
		first, second = l.feed, l.fair
	case turn%fairTurn == 2:
		first, second = l.kafka, l.fair
	}
	select {
	case <-stopping:
		return false
	default:
	}
	select {
	case *o = <-first:
	default:
		select {
		case *o = <-second:
		default:
			select {
			case *o = <-l.fair:
			case *o = <-l.kafka:
			case *o = <-l.feed:
			case <-stopping:
				return false
			}
		}
	}
	if o.great() && !o.fed() {
		<-l.great
	}
	if o.fed() && (len(l.feed) <= cap(l.feed)/2 && l.more.CompareAndSwap(true, false) || len(l.fair) == 0 && l.turns.CompareAndSwap(true, false)) {
		l.wake()
	}
	return true
}

// wake has the feed look at the ledger now.
func (l *lane) wake() {
	select {
	case l.hungry <- struct{}{}:
	default:
	}
}

// finish tells whoever brought o that the ledger knows about it.
func (l *lane) finish(o *offer) {
	if o.fed() {
		l.fed.Add(-1)
		return
	}
	o.finish()
}

// giveBack lets go of an item that was not claimed: it comes again.
func (l *lane) giveBack(o *offer) {
	l.hand.drop(o.key())
	if o.fed() {
		l.fed.Add(-1)
	}
}
