package delivery

import (
	"time"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/plant"
)

const (
	feedPause    = 200 * time.Millisecond // while there is something
	feedMaxPause = time.Second            // grown to while there is nothing
	// feedShare is how many unclaimed messages the feed takes while Kafka brings
	// them: nearly all are those that Kafka is about to bring. When they turn out
	// to be lost ones it takes more and more.
	feedShare = 64
)

// feeder brings a lane what only the ledger knows: what is due, and the oldest
// that nobody claimed. It never waits for a sender, and takes no more from the
// ledger than half of the feed's queue has room for.
type feeder struct {
	*Worker
	lane  *lane
	share int
	wait  time.Duration
	full  bool // the round before found as many unclaimed ones as it wanted
	deep  bool // it found nothing but what is in hand: there may be others behind
	// crowded says that more is to go than the lane has in hand: then its tenants
	// take turns. With one message after the other there is nothing to share.
	crowded bool
	won     int64 // lane.won then
	vain    int64 // lane.vain then

	asked time.Duration // when the rate was looked at last, by the monotonic clock
	spare float64       // what the rate allows by now
}

func (f *feeder) run() {
	failures := newLedgerBackoff()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-f.soft.Done():
			return
		case <-f.lane.hungry:
		case <-timer.C:
		}
		err := f.round()
		if f.soft.Err() != nil {
			return
		}
		if f.note(opFeed, err); err != nil {
			f.wait = failures.NextBackOff()
		} else {
			failures.Reset()
		}
		timer.Reset(f.wait)
	}
}

// round asks the ledger once for each kind, and sets wait.
func (f *feeder) round() error {
	l := f.lane
	if err := f.fair(); err != nil {
		return err
	}
	room := cap(l.feed) - len(l.feed)
	if room < cap(l.feed)/2 {
		l.more.Store(true) // and go on when there is
		if f.wait = feedMaxPause; f.crowded {
			f.wait = feedPause
		}
		return nil
	}
	// What is in hand already is among the oldest that the ledger knows: it is
	// asked for, and left out.
	half := room / 2
	ask := half + int(l.fed.Load())
	due, err := f.cfg.Ledger.Due(f.soft, l.lane, ask)
	if err != nil {
		return err
	}
	dues := l.fill(l.feed, due, half, f.clock().Mono)

	if plant.Is(plant.NoCursor) {
		f.wait = feedPause
		return nil
	}
	away, age, pause := f.cfg.KafkaAway(l.lane), f.cfg.FeedAge, feedPause
	room -= dues
	want := min(room, f.adapt())
	limit := want
	if away {
		ready, _ := l.hand.counts()
		age, pause, want, limit = 0, feedPause/4, room, room+ready
	} else if f.deep {
		ready, _ := l.hand.counts()
		limit += ready
	}
	bounded := f.bound(&want)
	if bounded && want == 0 {
		f.full, f.crowded, f.wait = false, false, feedPause
		return nil
	}
	unclaimed, err := f.cfg.Ledger.Unclaimed(f.soft, l.lane, age, limit)
	if err != nil {
		return err
	}
	lost := l.fill(l.feed, unclaimed, want, f.clock().Mono)
	f.spare -= float64(lost)
	f.full = lost == want && !bounded
	f.deep = len(unclaimed) == limit && lost < want || f.deep && len(unclaimed) > want
	f.crowded = !bounded && (len(due) == ask || len(unclaimed) == limit)

	if dues+lost > 0 {
		f.wait = pause
	} else {
		f.wait = min(max(2*f.wait, pause), feedMaxPause)
	}
	if dues == half || f.full && (away || f.share > feedShare) {
		l.more.Store(true)
	}
	return nil
}

// bound keeps want to what the lane's rate allows, if it has one. It saves up a
// second's worth at most.
func (f *feeder) bound(want *int) bool {
	rate := f.cfg.FeedRate(f.lane.lane)
	now := f.clock().Mono
	f.spare = min(f.spare+rate*(now-f.asked).Seconds(), max(rate, 1))
	f.asked = now
	if rate <= 0 {
		f.spare = 0
		return false
	}
	*want = min(*want, max(0, int(f.spare)))
	return true
}

// adapt is how many unclaimed messages to take beside what Kafka brings: more
// and more as long as there are that many, and few of them turn out to be
// somebody else's.
func (f *feeder) adapt() int {
	won, vain := f.lane.won.Load(), f.lane.vain.Load()
	switch {
	case vain-f.vain > won-f.won:
		f.share = feedShare
	case f.full && won > f.won:
		f.share = min(2*f.share, cap(f.lane.feed))
	}
	f.won, f.vain = won, vain
	return f.share
}

// fair brings some of each tenant's oldest while the lane is crowded.
func (f *feeder) fair() error {
	l := f.lane
	room := cap(l.fair) - len(l.fair)
	if !f.crowded || room < cap(l.fair)/2 || plant.Is(plant.NoCursor) {
		return nil
	}
	items, err := f.cfg.Ledger.Fair(f.soft, l.lane, room+int(l.fed.Load()))
	if err != nil {
		return err
	}
	if l.fill(l.fair, items, room, f.clock().Mono) > 0 {
		l.turns.Store(true)
	}
	return nil
}

// fill puts at most most of items into queue, leaving out what is in hand.
func (l *lane) fill(queue chan<- offer, items []message.Item, most int, now time.Duration) (n int) {
	for i := range items {
		if n == most {
			break
		}
		o := offer{item: items[i], at: now}
		if !l.hand.take(o.key(), true) {
			continue
		}
		if o.great() {
			o.item.Content = nil
		}
		l.fed.Add(1)
		select {
		case queue <- o:
			n++
		default:
			l.giveBack(&o)
			return n
		}
	}
	return n
}
