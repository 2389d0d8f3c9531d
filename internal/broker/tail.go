package broker

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// mostTailed bounds the index, in submissions: some 150 MB of memory.
	mostTailed = 2_000_000
	// A round comes every tailEvery, and sooner, but not before tailLeast, when asked for.
	tailEvery = 2 * time.Second
	tailLeast = 100 * time.Millisecond
	// mostScanned is among how many submissions one is looked for by its key: some 5 ms.
	mostScanned = 100_000
)

// Tail knows which submissions are in the journals and not in the ledger yet: it
// reads all of the journals, from what their workers have committed on, into an
// index in memory. It is safe for concurrent use.
type Tail struct {
	broker *Broker
	most   int

	rounds int // Run's
	goal   goal
	anew   atomic.Bool

	mu      sync.RWMutex
	index   map[submissionKey]tailed
	lanes   map[uint8]int64 // messages of the index, by their lane's code
	swept   time.Time       // the index had nothing then that was committed
	lost    map[place]int64 // beyond the bound: up to this offset
	below   map[int16]int64 // committed, by the last sweep
	caught  bool            // all was read by then
	own     int             // entries that this process wrote and has not read
	asOf    time.Time       // the index has all that the journals had then; zero: it never had
	further chan struct{}   // closed, and made anew, when asOf goes on

	asked chan struct{} // somebody waits for it
}

// goal is how far the journals went at a time. With mail coming in all the time
// the tail never is at their very ends.
type goal struct {
	at   time.Time
	ends map[place]int64 // nil: none
}

// Restart has the journals read anew: they are others than they were, also where
// they look alike. What they held is forgotten.
func (t *Tail) Restart() { t.anew.Store(true) }

// begin ends all reading, and forgets what it brought.
func (t *Tail) begin(open map[place]*reading) {
	for _, r := range open {
		r.end()
		<-r.done
	}
	clear(open)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asOf, t.below, t.goal = time.Time{}, nil, goal{}
	clear(t.lost)
	for key, e := range t.index {
		if e.place >= 0 {
			t.drop(key, e)
		}
	}
}

// submissionKey is the part that the ids of a submission have in common.
type submissionKey [24]byte

type tailed struct {
	accepted int64 // µs
	offset   int64 // -1: written by this process, and not read yet
	tenant   int32
	place    int16 // in places
	lane     uint8
	count    uint8
	seen     uint8 // rounds of own that were not read
}

// NewTail makes a tail; one for a process. Run fills it.
func (b *Broker) NewTail() *Tail {
	return &Tail{broker: b, most: mostTailed, index: make(map[submissionKey]tailed), lanes: make(map[uint8]int64), lost: make(map[place]int64), further: make(chan struct{}), asked: make(chan struct{}, 1)}
}

// Find says what the journals hold of a message. known is false while they may
// hold it and the tail can't tell. Of what is found, content and stream are not
// known, of its recipients only how many there are, and of its fingerprint what its
// id has of it.
func (t *Tail) Find(id message.ID) (j *message.Journaled, known bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	e, ok := t.index[submissionKey(id[:24])]
	if !ok || !id.IsSubmission() && id.Index() >= int(e.count) {
		return nil, ok || !t.asOf.IsZero() && len(t.lost) == 0
	}
	return e.journaled(submissionKey(id[:24])), true
}

// Under is Find by a key: all requests that came under it.
func (t *Tail) Under(key message.KeyHash) (all []*message.Journaled, known bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if len(t.index) > mostScanned {
		return nil, false
	}
	for k, e := range t.index {
		if message.KeyHash(k[:16]) == key {
			all = append(all, e.journaled(k))
		}
	}
	return all, len(all) > 0 || !t.asOf.IsZero() && len(t.lost) == 0
}

func (e tailed) journaled(k submissionKey) *message.Journaled {
	s := &message.Submission{Tenant: e.tenant, Key: message.KeyHash(k[:16]), Lane: message.LaneOf(int64(e.lane)), Recipients: make([]string, e.count)}
	copy(s.Print[:], k[16:])
	return &message.Journaled{Submission: s, AcceptedAt: time.UnixMicro(e.accepted)}
}

// AsOf is until when the tail knows all that the journals held; zero: it never did.
func (t *Tail) AsOf() time.Time {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.asOf
}

// Current waits until the tail knows all that the journals held at a time.
func (t *Tail) Current(ctx context.Context, at time.Time) error {
	again := time.NewTicker(tailLeast)
	defer again.Stop()
	for {
		t.mu.RLock()
		asOf, further := t.asOf, t.further
		t.mu.RUnlock()
		if !asOf.Before(at) {
			return nil
		}
		select {
		case t.asked <- struct{}{}:
		default:
		}
		select {
		case <-further:
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("tail: %w", ctx.Err())
		}
	}
}

// knows notes that the index has all that the journals had at a time.
func (t *Tail) knows(at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if at.After(t.asOf) {
		t.asOf = at
		close(t.further)
		t.further = make(chan struct{})
	}
}

// wrote adds what this process wrote, so that its answers are true at once.
func (t *Tail) wrote(j message.Journaled) {
	id := j.ID()
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.index[submissionKey(id[:24])]; !ok && len(t.index) < t.most {
		t.put(submissionKey(id[:24]), tailed{j.AcceptedAt.UnixMicro(), -1, j.Tenant, -1, uint8(j.Lane.Code()), uint8(len(j.Recipients)), 0})
		t.own++
	}
}

// reading is one partition as it is read.
type reading struct {
	number   int16
	end      context.CancelFunc
	position atomic.Int64
	done     chan struct{}
}

// Run tails until ctx ends, through absences of brokers.
func (t *Tail) Run(ctx context.Context) error {
	open := make(map[place]*reading)
	tick := time.NewTicker(tailEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		t.round(ctx, open)
		rest := time.NewTimer(tailLeast)
		select {
		case <-rest.C:
		case <-ctx.Done():
		}
		select {
		case <-tick.C:
		case <-t.asked:
		case <-ctx.Done():
		}
	}
	for _, r := range open {
		r.end()
		<-r.done
	}
	return nil
}

// round starts readers where there are none, or where theirs has failed or its log
// is another one; and forgets what the ledger has.
func (t *Tail) round(ctx context.Context, open map[place]*reading) {
	rctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	at := make(map[place]int64, len(open)) // before the ends are asked for
	for p, r := range open {
		at[p] = r.position.Load()
	}
	began := time.Now()
	ends, committed, err := t.broker.progress(rctx, t.broker.journals())
	if err != nil {
		return // what is known stays known
	}
	if t.anew.Swap(false) {
		t.begin(open)
		clear(at)
	}
	caught := true
	for p, b := range ends {
		r := open[p]
		if r != nil {
			select {
			case <-r.done:
				r = nil
			default:
			}
		}
		if r != nil && at[p] > b.last { // another log under the same name
			r.end()
			<-r.done
			r = nil
		}
		if r == nil {
			from := max(committed[p], b.first)
			if from > b.last {
				from = b.first
			}
			open[p] = t.start(ctx, p, from, open[p], len(open))
			at[p] = from
			t.goal = goal{} // it may have been beyond a log that is another one now
		}
		caught = caught && at[p] >= b.last
	}
	t.forget(open, committed, began, caught)
	switch {
	case caught:
		t.goal = goal{}
		t.knows(began)
		return
	case t.goal.ends != nil && !t.goal.reached(at, ends):
		return
	case t.goal.ends != nil:
		t.knows(t.goal.at)
	}
	t.goal = goal{began, make(map[place]int64, len(ends))}
	for p, b := range ends {
		t.goal.ends[p] = b.last
	}
}

func (g *goal) reached(at map[place]int64, ends map[place]bounds) bool {
	for p, end := range g.ends {
		if _, there := ends[p]; there && at[p] < end {
			return false
		}
	}
	return true
}

func (t *Tail) start(ctx context.Context, p place, from int64, was *reading, count int) *reading {
	r := &reading{number: int16(count), done: make(chan struct{})}
	if was != nil {
		r.number = was.number
	}
	r.position.Store(from)
	ctx, r.end = context.WithCancel(ctx)
	go func() {
		defer close(r.done)
		defer r.end()
		t.read(ctx, p, r, from)
	}()
	return r
}

// read reads a partition until something fails; the next round begins again.
func (t *Tail) read(ctx context.Context, p place, r *reading, from int64) {
	s := t.broker.journals()
	k := kafka.NewReader(kafka.ReaderConfig{
		Brokers: t.broker.cfg.Brokers, Dialer: t.broker.dialer(), Topic: p.topic, Partition: p.id,
		MinBytes: 1, MaxBytes: s.maxBytes, MaxWait: time.Second, QueueCapacity: s.readAhead,
		ReadLagInterval: -1, MaxAttempts: 3, ReadBackoffMin: 20 * time.Millisecond, ReadBackoffMax: 500 * time.Millisecond,
		OffsetOutOfRangeError: true,
	})
	defer k.Close()
	if err := k.SetOffset(from); err != nil {
		return
	}
	for {
		m, err := k.FetchMessage(ctx)
		if err != nil {
			return
		}
		// What is no record of ours is the workers' to park.
		if j, recipients, err := head(m.Value); err == nil {
			t.add(p, r.number, m.Offset, j, recipients)
		}
		r.position.Store(m.Offset + 1)
	}
}

func (t *Tail) add(p place, number int16, offset int64, j message.Journaled, recipients int) {
	id := j.ID()
	key := submissionKey(id[:24])
	t.mu.Lock()
	defer t.mu.Unlock()
	was, ok := t.index[key]
	if !ok && len(t.index) >= t.most {
		t.lost[p] = offset
		return
	}
	if ok && was.place < 0 {
		t.own--
	}
	accepted := j.AcceptedAt.UnixMicro()
	if ok { // of two that came in at once, or out of sight of each other, the first is its time
		accepted = min(accepted, was.accepted)
	}
	t.put(key, tailed{accepted, offset, j.Tenant, number, uint8(j.Lane.Code()), uint8(recipients), 0})
}
