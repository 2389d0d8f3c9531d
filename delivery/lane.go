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

// maxQueuedContent is how many bytes of content a queue keeps with its item.
// Greater content is read from the ledger when its turn has come.
const maxQueuedContent = 64 << 10

// offer is an item on its way to a sender.
type offer struct {
	item   message.Item
	finish func() // nil for the feed's
	at     time.Duration
}

func (o *offer) key() message.AttemptKey {
	return message.AttemptKey{Position: o.item.Position, Attempt: o.item.Attempt}
}

func (o *offer) fed() bool { return o.finish == nil }

// strip leaves great content to be read from the ledger.
func (o *offer) strip() {
	if len(o.item.Content) > maxQueuedContent {
		o.item.Content = nil
	}
}

// lane is everything that one lane has for itself.
type lane struct {
	lane    message.Lane
	name    string
	senders int
	gate    *gate // of the channel's provider, shared with the channel's lanes
	policy  DoubtPolicy
	meter   *laneMeter

	kafka chan offer
	feed  chan offer
	hand  *hand

	hungry chan struct{} // wakes the feed
	more   atomic.Bool   // the ledger has more than was taken: wake it when there is room
	fed    atomic.Int64  // the feed's items that no verdict has come for
	won    atomic.Int64  // the feed's items that were claimed
	vain   atomic.Int64  // the feed's items that others had claimed
}

func newLane(l message.Lane, senders int, g *gate, policy DoubtPolicy) *lane {
	queue := max(64, senders)
	return &lane{
		lane: l, name: l.String(), senders: senders, gate: g, policy: policy,
		kafka: make(chan offer, queue), feed: make(chan offer, queue), hand: newHand(), hungry: make(chan struct{}, 1),
	}
}

// offer queues o, waiting for room until ctx or the worker ends.
func (l *lane) offer(ctx context.Context, o offer, stopping <-chan struct{}) error {
	key := o.key()
	l.hand.take(key, false)
	select {
	case l.kafka <- o:
		return nil
	default:
	}
	select {
	case l.kafka <- o:
		return nil
	case <-stopping:
		l.hand.drop(key)
		return ErrStopping
	case <-ctx.Done():
		l.hand.drop(key)
		return fmt.Errorf("offer: %w", ctx.Err())
	}
}

// next puts into o what comes first, or of what is there Kafka's, or with
// feedFirst the feed's. It is false when the worker is stopping.
func (l *lane) next(o *offer, stopping <-chan struct{}, feedFirst bool) bool {
	first := l.kafka
	if feedFirst {
		first = l.feed
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
		case *o = <-l.kafka:
		case *o = <-l.feed:
		case <-stopping:
			return false
		}
	}
	if o.fed() && len(l.feed) <= cap(l.feed)/2 && l.more.CompareAndSwap(true, false) {
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
