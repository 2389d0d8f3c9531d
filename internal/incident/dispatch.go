package incident

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

// Sink is where events go. Send is called by one goroutine at a time, again
// after an error, and must end with its ctx.
type Sink interface {
	// Name is unique among the sinks, for logs and metrics; it holds no secret.
	Name() string
	Send(ctx context.Context, e Event) error
}

// Repeater is a Sink that wants to be told again, now and then, what is open.
type Repeater interface {
	Sink
	Every() time.Duration
	Repeat(ctx context.Context, open []Incident) error
}

// DispatchConfig is how sinks are served. Zero fields get the default named.
type DispatchConfig struct {
	Engine  *Engine
	Sinks   []Sink
	Timeout time.Duration // of one try: 10 s
	GiveUp  time.Duration // after which an event that can't be delivered is dropped: 10 min
	Log     *slog.Logger
	Meters  metric.MeterProvider
}

// mostQueued is how many events wait for one sink.
const mostQueued = 128

// Dispatcher carries events to the sinks, each of which has its own goroutine.
type Dispatcher struct {
	cfg   DispatchConfig
	lanes []*queue
	count metric.Int64Counter
}

// queue is what one sink has still to be told.
type queue struct {
	sink Sink
	wake chan struct{}
	mu   sync.Mutex
	list []Event
}

// NewDispatcher makes a Dispatcher that is told by the engine.
func NewDispatcher(cfg DispatchConfig) (*Dispatcher, error) {
	cfg.Timeout = cmp.Or(cfg.Timeout, 10*time.Second)
	cfg.GiveUp = cmp.Or(cfg.GiveUp, 10*time.Minute)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Meters == nil {
		cfg.Meters = noop.NewMeterProvider()
	}
	d := &Dispatcher{cfg: cfg}
	var err error
	d.count, err = cfg.Meters.Meter(scope).Int64Counter("stormpost.incidents.notifications", metric.WithUnit("{event}"),
		metric.WithDescription("Events of incidents by sink and by how they ended: sent, failed or dropped."))
	if err != nil {
		return nil, err
	}
	for _, s := range cfg.Sinks {
		d.lanes = append(d.lanes, &queue{sink: s, wake: make(chan struct{}, 1)})
	}
	cfg.Engine.Tell(func(e Event) {
		for _, q := range d.lanes {
			if !q.push(e) {
				d.ended(q, "dropped")
				cfg.Log.Warn("a sink's queue is full; its oldest event is dropped", "sink", q.sink.Name())
			}
		}
	})
	return d, nil
}

// Run serves the sinks until ctx ends. What is queued then is left.
func (d *Dispatcher) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, q := range d.lanes {
		wg.Go(func() { d.serve(ctx, q) })
	}
	wg.Wait()
}

func (d *Dispatcher) serve(ctx context.Context, q *queue) {
	var again <-chan time.Time
	r, repeats := q.sink.(Repeater)
	if repeats {
		tick := time.NewTicker(r.Every())
		defer tick.Stop()
		again = tick.C
		d.repeat(ctx, r) // those of before a restart
	}
	for {
		if e, ok := q.pop(); ok {
			d.deliver(ctx, q, e)
			continue
		}
		select {
		case <-q.wake:
		case <-again:
			d.repeat(ctx, r)
		case <-ctx.Done():
			return
		}
	}
}

// repeat tells what is open. A failure is made good by the next time.
func (d *Dispatcher) repeat(ctx context.Context, r Repeater) {
	open := d.cfg.Engine.Open()
	if len(open) == 0 {
		return
	}
	rctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	if err := r.Repeat(rctx, open); err != nil && ctx.Err() == nil {
		d.cfg.Log.Warn("open incidents were not repeated", "sink", r.Name(), "error", err)
	}
}

// deliver tries until the sink takes e, or GiveUp has passed.
func (d *Dispatcher) deliver(ctx context.Context, q *queue, e Event) {
	dctx, cancel := context.WithTimeout(ctx, d.cfg.GiveUp)
	defer cancel()
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval, pause.MaxElapsedTime = 500*time.Millisecond, 30*time.Second, 0
	logged := false
	err := backoff.RetryNotify(func() error {
		sctx, done := context.WithTimeout(dctx, d.cfg.Timeout)
		defer done()
		return q.sink.Send(sctx, e)
	}, backoff.WithContext(pause, dctx), func(err error, _ time.Duration) {
		if !logged && ctx.Err() == nil {
			logged = true
			d.cfg.Log.Warn("a sink does not take an incident; trying again", "sink", q.sink.Name(), "cause", e.Incident.Cause, "error", err)
		}
	})
	switch {
	case err == nil:
		d.ended(q, "sent")
	case ctx.Err() == nil:
		d.ended(q, "failed")
		d.cfg.Log.Error("an incident was not delivered", "sink", q.sink.Name(), "cause", e.Incident.Cause, "change", e.Change, "error", err)
	}
}

func (d *Dispatcher) ended(q *queue, how string) {
	d.count.Add(context.Background(), 1, metric.WithAttributes(attribute.String("sink", q.sink.Name()), attribute.String("result", how)))
}

// push queues e. A newer update takes the place of one that still waits. It
// answers false when the oldest event had to go.
func (q *queue) push(e Event) (whole bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	defer func() {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}()
	for i := range q.list {
		if e.Change == Updated && q.list[i].Change == Updated && q.list[i].Incident.ID == e.Incident.ID {
			e.Was = cmp.Or(q.list[i].Was, e.Was)
			q.list[i] = e
			return true
		}
	}
	whole = len(q.list) < mostQueued
	if !whole {
		q.list = q.list[1:]
	}
	q.list = append(q.list, e)
	return whole
}

func (q *queue) pop() (Event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.list) == 0 {
		return Event{}, false
	}
	e := q.list[0]
	q.list = q.list[1:]
	return e, true
}

const scope = "github.com/stormpost/stormpost/internal/incident"

// Measure makes the gauge of open incidents, by kind.
func Measure(e *Engine, meters metric.MeterProvider) error {
	m := meters.Meter(scope)
	open, err1 := m.Int64ObservableGauge("stormpost.incidents.open", metric.WithUnit("{incident}"), metric.WithDescription("Open incidents, by kind of cause."))
	_, err2 := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		n := make(map[Kind]int64)
		for _, i := range e.Open() {
			n[i.Kind]++
		}
		for _, k := range Kinds() {
			o.ObserveInt64(open, n[k], metric.WithAttributes(attribute.String("kind", string(k))))
		}
		return nil
	}, open)
	return errors.Join(err1, err2)
}
