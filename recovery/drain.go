package recovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/plant"
)

const (
	// atOnce bounds how many submissions of one process are with the ledger.
	atOnce = 500
	// publishLate is how old what the ledger has already may be to be published once
	// more: later its lane's cursor has long found it.
	publishLate = time.Hour
	// restFor is how long a ledger that is away is left alone.
	restFor = 500 * time.Millisecond
	// backlogEvery is how often the backlog is asked for.
	backlogEvery = 500 * time.Millisecond
	// yieldAtMost is how long a class waits for a more urgent one whose backlog
	// doesn't shrink: what holds that up shall not hold up the others.
	yieldAtMost = 10 * time.Second
)

// Ledger is what a drained journal goes into.
type Ledger interface {
	// Enter keeps and numbers j, once however often it is entered. A Receipt that
	// is Held was under another request's key. message.ErrUnavailable means that
	// it may be in or not, and may be entered again; any other error is about j.
	Enter(ctx context.Context, j message.Journaled) (message.Receipt, error)
	// ParkWhole sets bytes aside that are no submission, or one that is refused. Of
	// that it goes on to tell, until a person has seen to it.
	ParkWhole(ctx context.Context, p message.Parked) error
}

// Publisher spreads entered messages over the workers, without ever blocking.
type Publisher interface {
	Publish(items []message.Item)
}

// Backlog tells, for each class, how many records its journal still has, and how
// many were ever finished.
type Backlog func(ctx context.Context) (left, done map[message.Class]int64, err error)

// DrainConfig is what a Drain is made of. The first three are required.
type DrainConfig struct {
	Ledger    Ledger
	Publisher Publisher
	Backlog   Backlog
	Log       *slog.Logger
	Meters    metric.MeterProvider
}

// Drain enters into the ledger what the journals kept while it was away. Each
// record is finished once the ledger has committed it, so one that a crash leaves
// in between comes again, and is known by its key. The most urgent class goes first: a
// lower one waits while a higher one has a backlog that moves.
type Drain struct {
	cfg   DrainConfig
	slots chan struct{}
	rest  atomic.Int64 // until when the ledger is left alone, in Unix nanoseconds
	wg    sync.WaitGroup
	left  [message.Campaign + 1]atomic.Int64 // as asked last

	mu    sync.Mutex
	turns chan struct{} // closed and replaced when backlogs were asked for
	busy  [message.Campaign + 1]time.Time

	entered, parked, conflicts metric.Int64Counter
}

// NewDrain makes a drain. Run must run for it to work.
func NewDrain(cfg DrainConfig) (*Drain, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Meters == nil {
		cfg.Meters = noop.NewMeterProvider()
	}
	d := &Drain{cfg: cfg, slots: make(chan struct{}, atOnce), turns: make(chan struct{})}
	m := cfg.Meters.Meter("github.com/stormpost/stormpost/recovery")
	var errs [4]error
	d.entered, errs[0] = m.Int64Counter("stormpost.journal.entered", metric.WithUnit("{submission}"), metric.WithDescription("Submissions that went from the journal into the ledger."))
	d.parked, errs[1] = m.Int64Counter("stormpost.journal.parked", metric.WithUnit("{submission}"), metric.WithDescription("Records of the journal that the ledger refused."))
	d.conflicts, errs[2] = m.Int64Counter("stormpost.journal.conflicts", metric.WithUnit("{submission}"), metric.WithDescription("Submissions held because another request came first under their key."))
	_, errs[3] = m.Int64ObservableGauge("stormpost.journal.backlog", metric.WithUnit("{submission}"), metric.WithDescription("Records of the journal that are not in the ledger yet."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			for c := message.Transactional; c <= message.Campaign; c++ {
				o.Observe(d.left[c].Load(), metric.WithAttributes(attribute.String("class", c.String())))
			}
			return nil
		}))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("drain: %w", err)
	}
	return d, nil
}

// Run watches the backlogs until ctx ends.
func (d *Drain) Run(ctx context.Context) error {
	tick := time.NewTicker(backlogEvery)
	defer tick.Stop()
	var before map[message.Class]int64
	for {
		bctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		left, done, err := d.cfg.Backlog(bctx)
		cancel()
		// What Kafka can't tell is no reason to wait.
		d.see(left, done, before, time.Now())
		if err == nil {
			before = done
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// see notes which classes have a backlog that moves, and lets those look again
// who wait. What a class gets all the time, and is gone within a second, is none.
func (d *Drain) see(left, done, before map[message.Class]int64, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := message.Transactional; c <= message.Campaign; c++ {
		var moved int64
		if before != nil {
			moved = done[c] - before[c]
		}
		switch was := d.left[c].Swap(left[c]); {
		case left[c] <= 2*moved, left[c] == 0:
			d.busy[c] = time.Time{}
		case was == 0 || done[c] != before[c]:
			d.busy[c] = now
		}
	}
	close(d.turns)
	d.turns = make(chan struct{})
}

// turn waits while a more urgent class than c is being drained.
func (d *Drain) turn(ctx context.Context, c message.Class) error {
	for {
		d.mu.Lock()
		next, wait := d.turns, false
		for above := message.Transactional; above < c; above++ {
			wait = wait || time.Since(d.busy[above]) < yieldAtMost
		}
		d.mu.Unlock()
		if !wait {
			return ctx.Err()
		}
		select {
		case <-next:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Enter takes one record of a journal: source says where it stands, raw is its
// bytes. It waits for its class's turn and for a slot, and returns; finish is
// called once the ledger has the record. When ctx ends, it is left to come again.
func (d *Drain) Enter(ctx context.Context, j message.Journaled, source string, raw []byte, finish func()) {
	if d.turn(ctx, j.Lane.Class) != nil {
		return
	}
	select {
	case d.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	if plant.Is(plant.FinishEarly) {
		finish()
	}
	d.wg.Go(func() {
		if d.insist(ctx, j, source, raw) == nil {
			finish()
		}
	})
}

// Wait waits for what Enter began, which ends with the contexts that it was given.
func (d *Drain) Wait() { d.wg.Wait() }

// insist tries until the ledger has j, or has parked it. A stream that can't be
// numbered gives its slot back between two tries, so that it doesn't hold up the
// others; a ledger that is away has all wait together.
func (d *Drain) insist(ctx context.Context, j message.Journaled, source string, raw []byte) error {
	defer func() { <-d.slots }()
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval, wait.MaxElapsedTime = 100*time.Millisecond, 3*time.Second, 0
	for {
		if err := sleep(ctx, time.Until(time.Unix(0, d.rest.Load()))); err != nil {
			return err
		}
		err := d.try(ctx, j, source, raw)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, message.ErrNumbering):
			<-d.slots
			err = sleep(ctx, wait.NextBackOff())
			d.slots <- struct{}{} // also when it ends: a slot comes free soon then
			if err != nil {
				return err
			}
		default:
			d.rest.Store(time.Now().Add(restFor).UnixNano())
		}
	}
}

// sleep waits for d, if that is positive, and fails with ctx's error.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *Drain) try(ctx context.Context, j message.Journaled, source string, raw []byte) error {
	class := metric.WithAttributes(attribute.String("class", j.Lane.Class.String()))
	r, err := d.cfg.Ledger.Enter(ctx, j)
	switch {
	case errors.Is(err, message.ErrUnavailable), err != nil && ctx.Err() != nil:
		return err
	case err != nil:
		if perr := d.cfg.Ledger.ParkWhole(ctx, j.Parked(source, raw, err.Error())); perr != nil {
			return perr
		}
		d.parked.Add(ctx, 1, class)
		return nil
	}
	if !r.Replayed {
		d.entered.Add(ctx, 1, class)
		if r.Held {
			d.conflicts.Add(ctx, 1, class)
			d.cfg.Log.WarnContext(ctx, "another request came first under the key of a journaled one, which is held", "submission", j.ID())
		}
	}
	// What was there already the ledger may have taken after the door had given it up:
	// then nobody has published it, and Kafka is to know its number.
	if recent := time.Since(j.AcceptedAt) < publishLate; (recent || !r.Replayed) && !r.Held && !r.Ended && !r.Waiting {
		d.cfg.Publisher.Publish(j.Items(r))
	}
	return nil
}
