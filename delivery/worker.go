package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// ErrStopping is what Offer returns from a worker that takes no more items.
// Such an item was not touched.
var ErrStopping = errors.New("the delivery worker is stopping")

// Worker delivers the messages of all lanes. Its methods are safe for
// concurrent use.
type Worker struct {
	cfg    Config
	log    *slog.Logger
	clock  func() Instant
	watch  *observer
	lanes  [message.Campaign + 1][message.ChannelPush + 1]*lane
	all    []*lane
	gates  []*gate
	giveUp time.Duration

	// The ends of the worker's life. soft ends first: nothing is claimed or
	// handed over any more. hard ends what providers have not answered, final
	// what the ledger has not recorded.
	soft, hard, final          context.Context
	endSoft, endHard, endFinal context.CancelFunc
	running                    atomic.Bool
	senders, helpers           sync.WaitGroup
	ledgerDown                 [operations]atomic.Bool
}

// New makes a worker. It starts with Run.
func New(cfg Config) (*Worker, error) {
	if cfg.Ledger == nil {
		return nil, errors.New("delivery: no ledger")
	}
	cfg.setDefaults()
	w := &Worker{cfg: cfg, log: cfg.Log, clock: cfg.Clock}
	w.soft, w.endSoft = context.WithCancel(context.Background())
	w.hard, w.endHard = context.WithCancel(context.Background())
	w.final, w.endFinal = context.WithCancel(context.Background())
	var reply time.Duration
	for channel := message.ChannelEmail; channel <= message.ChannelPush; channel++ {
		gates, err := newGates(channel, cfg.Routes[channel], cfg.Orders, w.log)
		if err != nil {
			return nil, err
		}
		reply = max(reply, gates.replyLimit())
		w.gates = append(w.gates, gates.all...)
		for class := message.Transactional; class <= message.Campaign; class++ {
			l := message.Lane{Class: class, Channel: channel}
			lane := newLane(l, cfg.sendersOf(l), gates, cfg.Doubts[l])
			if err := lane.setOrders(cfg.Orders); err != nil {
				return nil, err
			}
			w.lanes[class][channel] = lane
		}
	}
	for l, policy := range cfg.Doubts {
		if policy != HoldDoubts && policy != ResendDoubts {
			return nil, fmt.Errorf("delivery: lane %s: no such policy for doubts: %q", l, policy)
		}
	}
	for _, l := range message.Lanes() {
		w.all = append(w.all, w.lanes[l.Class][l.Channel])
	}
	w.giveUp = cfg.ClaimValid + reply
	var err error
	if w.watch, err = newObserver(w); err != nil {
		return nil, fmt.Errorf("delivery: %w", err)
	}
	return w, nil
}

// Offer queues an item for a sender of lane, and waits for room in the queue
// as long as ctx and the worker live. With an error the item was not taken.
//
// finish is called at most once, from another goroutine: as soon as the ledger
// holds what becomes of the item, be it an attempt, the message's end, a
// waiting row or a parked record, and without waiting for the provider's answer.
// It must not block. An item that the worker couldn't claim before it stopped
// is never finished, and has to be offered again, to this or another worker.
// Offering the same attempt twice is harmless.
func (w *Worker) Offer(ctx context.Context, l message.Lane, it message.Item, finish func()) error {
	if l.Class < message.Transactional || l.Class > message.Campaign || l.Channel < message.ChannelEmail || l.Channel > message.ChannelPush {
		return fmt.Errorf("offer: no such lane: %s", l)
	}
	if w.soft.Err() != nil {
		return ErrStopping
	}
	if finish == nil {
		finish = func() {}
	}
	o := offer{item: it, finish: finish, at: w.clock().Mono}
	return w.lanes[l.Class][l.Channel].offer(ctx, o, w.soft.Done())
}
