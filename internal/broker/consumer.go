package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/segmentio/kafka-go"
	"go.opentelemetry.io/otel/metric"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// Of one partition, handed out and unfinished at a time.
	inflightRecords = 5_000
	inflightBytes   = 16 << 20

	commitEvery = 300 * time.Millisecond
	auditEvery  = 2 * time.Second
	// stuckAfter is how long a partition may have records beyond its position
	// without one coming, before its reader is given up.
	stuckAfter = 10 * time.Second
	// failuresShown is after how many failures in a row to join the group the
	// consumer counts as failing. One or two are usual in a rebalance.
	failuresShown = 3
	// mostFailures is after how many the group is left, and its topics are looked
	// after.
	mostFailures = 5
)

// Handler gets what a Consumer reads.
type Handler interface {
	// Handle takes a record. It may block, which holds up its partition alone,
	// until ctx ends with the partition's ownership. The record is finished
	// when its Finish is called, from anywhere; a record that isn't comes again,
	// to this or another consumer.
	Handle(ctx context.Context, lane message.Lane, r *Record)
	// Park keeps a record that is no message of ours. It is tried again until
	// it returns nil.
	Park(ctx context.Context, p Poison) error
}

// Record is a record of a lane's topic.
type Record struct {
	message.Item
	tracker *tracker
	number  uint64
}

// Finish says that the record need not come again. It may be called from any
// goroutine, more than once, and after the partition went to another consumer.
func (r *Record) Finish() { r.tracker.finish(r.number) }

// Poison is a record that can't be read.
type Poison struct {
	Topic     string
	Partition int
	Offset    int64
	Key       []byte
	Headers   map[string][]byte // the last one of each name
	Value     []byte
	Reason    string
	Journaled *message.Journaled // what a journal's record tells all the same, without content and recipients' names
}

// Consumer reads the lanes' topics as a member of the workers' group.
type Consumer struct{ *member }

// taker decodes what a member reads and hands it out.
type taker interface {
	// take hands out a record, which is finished in t as number n, or says why
	// it is none.
	take(ctx context.Context, topic string, m *kafka.Message, t *tracker, n uint64) (bad error)
	Park(ctx context.Context, p Poison) error
}

type lanesTaker struct {
	Handler
	lanes map[string]message.Lane
}

func (l lanesTaker) take(ctx context.Context, topic string, m *kafka.Message, t *tracker, n uint64) error {
	it, err := decode(l.lanes[topic], m)
	if err != nil {
		return err
	}
	l.Handle(ctx, l.lanes[topic], &Record{Item: it, tracker: t, number: n})
	return nil
}

// member reads topics as a member of their group.
type member struct {
	broker *Broker
	log    *slog.Logger
	mu     sync.Mutex
	sub    sub // of the next membership
	read   metric.Int64Counter
	failed atomic.Pointer[error] // nil while all is well
	once   sync.Once
	joined chan struct{} // closed by the first generation
	again  chan struct{} // leave the group, and join it anew
	left   sync.WaitGroup
}

// NewConsumer makes a consumer.
func (b *Broker) NewConsumer() (*Consumer, error) {
	read, err := b.meter.Int64Counter("messaging.client.consumed.messages", metric.WithUnit("{message}"), metric.WithDescription("Records read."))
	if err != nil {
		return nil, fmt.Errorf("consumer: %w", err)
	}
	return &Consumer{b.newMember(b.lanes(), read)}, nil
}

func (b *Broker) newMember(s sub, read metric.Int64Counter) *member {
	return &member{broker: b, log: b.log, sub: s, read: read, joined: make(chan struct{}), again: make(chan struct{}, 1)}
}

// Assign has the consumer read these lanes' topics, and no others, from now on.
// With none it leaves the group.
func (c *Consumer) Assign(lanes []message.Lane) {
	var topics []string
	for _, l := range lanes {
		topics = append(topics, c.broker.Topic(l))
	}
	slices.Sort(topics)
	c.mu.Lock()
	same := slices.Equal(topics, c.sub.topics)
	c.sub.topics = topics
	c.mu.Unlock()
	if !same {
		c.Rejoin()
	}
}

func (c *member) subscription() sub {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sub
}

// Rejoin has the consumer leave its group and join it anew, at once: the cluster
// that it reads is another one than it was.
func (c *member) Rejoin() {
	select {
	case c.again <- struct{}{}:
	default:
	}
}

// Run reads until ctx ends, through rebalances, restarts and absences of
// brokers. It only returns ctx's end, as nil.
func (c *Consumer) Run(ctx context.Context, h Handler) error {
	return c.run(ctx, lanesTaker{h, c.broker.topics()})
}

// Joined waits until the consumer has been given partitions for the first time.
func (c *member) Joined(ctx context.Context) error {
	select {
	case <-c.joined:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("join: %w", ctx.Err())
	}
}

// Err is why nothing is consumed just now, or nil. Before the first partitions
// are assigned it is nil, too: see Joined.
func (c *member) Err() error {
	if err := c.failed.Load(); err != nil {
		return *err
	}
	return nil
}

func (c *member) fails(err error) {
	if was := c.failed.Swap(&err); was == nil {
		c.log.Warn("not consuming; trying again", "error", err)
	}
}

func (c *member) run(ctx context.Context, h taker) error {
	defer c.left.Wait()
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval, wait.MaxElapsedTime = 200*time.Millisecond, 2*time.Second, 0
	for ctx.Err() == nil {
		err := c.join(ctx, h, wait.Reset)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errAgain):
			wait.Reset()
			continue
		}
		c.fails(err)
		timer := time.NewTimer(wait.NextBackOff())
		select {
		case <-timer.C:
		case <-c.again:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
		}
	}
	return nil
}

// errAgain ends a membership that Rejoin was called in.
var errAgain = errors.New("joining anew")

// join is one membership in the group: generation after generation.
func (c *member) join(outer context.Context, h taker, joined func()) (err error) {
	ctx, leave := context.WithCancel(outer)
	defer leave()
	told := make(chan struct{})
	go func() {
		defer close(told)
		select {
		case <-c.again:
			leave()
		case <-ctx.Done():
		}
	}()
	defer func() {
		over := ctx.Err() != nil
		leave()
		<-told
		if over && outer.Err() == nil {
			err = errAgain
		}
	}()
	// A group that joins while a topic is missing is never told about it.
	sub := c.subscription()
	if len(sub.topics) == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	tctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	err = c.broker.ensure(tctx, sub)
	cancel()
	if err != nil {
		return err
	}
	cfg := c.broker.cfg
	group, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: sub.group, Brokers: cfg.Brokers, Dialer: c.broker.dialer(), Topics: sub.topics,
		StartOffset: kafka.FirstOffset, SessionTimeout: cfg.Session, RebalanceTimeout: cfg.Session,
		HeartbeatInterval: cfg.Session / 5, JoinGroupBackoff: 200 * time.Millisecond, Timeout: 5 * time.Second,
	})
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	// To leave takes as long as a coordinator that hangs: the next membership
	// doesn't wait for it. What both read is claimed once.
	defer c.left.Go(func() { _ = group.Close() })
	for failures := 0; ; {
		gen, err := group.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			// Next has to be called on, or the group's goroutine blocks; but one
			// that doesn't recover is better left and joined again.
			err = fmt.Errorf("next generation: %w", err)
			switch failures++; {
			case failures > mostFailures:
				return err
			case failures >= failuresShown:
				c.fails(err)
			}
			continue
		}
		failures = 0
		joined()
		if c.failed.Swap(nil) != nil {
			c.log.Info("consuming again", "generation", gen.ID)
		}
		c.generation(gen, sub, h)
	}
}
