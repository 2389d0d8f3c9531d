package broker

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/segmentio/kafka-go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// Of one partition, handed out and unfinished at a time.
	inflightRecords = 5_000
	inflightBytes   = 64 << 20

	commitEvery = 300 * time.Millisecond
	auditEvery  = 2 * time.Second
	// stuckAfter is how long a partition may have records beyond its position
	// without one coming, before its reader is given up.
	stuckAfter = 10 * time.Second
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
	Value     []byte
	Reason    string
}

// Consumer reads the lanes' topics as a member of the workers' group.
type Consumer struct {
	broker *Broker
	log    *slog.Logger
	lanes  map[string]message.Lane
	read   metric.Int64Counter
	failed atomic.Bool
	once   sync.Once
	joined chan struct{} // closed by the first generation
}

// NewConsumer makes a consumer.
func (b *Broker) NewConsumer() (*Consumer, error) {
	read, err := b.meter.Int64Counter("messaging.client.consumed.messages", metric.WithUnit("{message}"), metric.WithDescription("Records read."))
	if err != nil {
		return nil, fmt.Errorf("consumer: %w", err)
	}
	return &Consumer{broker: b, log: b.log, lanes: b.topics(), read: read, joined: make(chan struct{})}, nil
}

// Joined waits until the consumer has been given partitions for the first time.
func (c *Consumer) Joined(ctx context.Context) error {
	select {
	case <-c.joined:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("join: %w", ctx.Err())
	}
}

// Run reads until ctx ends, through rebalances, restarts and absences of
// brokers. It only returns ctx's end, as nil.
func (c *Consumer) Run(ctx context.Context, h Handler) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval, wait.MaxElapsedTime = 200*time.Millisecond, 3*time.Second, 0
	for ctx.Err() == nil {
		err := c.member(ctx, h, wait.Reset)
		if ctx.Err() != nil {
			break
		}
		if c.failed.CompareAndSwap(false, true) {
			c.log.Warn("not consuming; trying again", "error", err)
		}
		timer := time.NewTimer(wait.NextBackOff())
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	return nil
}

// member is one membership in the group: generation after generation.
func (c *Consumer) member(ctx context.Context, h Handler, joined func()) error {
	// A group that joins while a topic is missing is never told about it.
	tctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	err := c.broker.EnsureTopics(tctx)
	cancel()
	if err != nil {
		return err
	}
	cfg := c.broker.cfg
	group, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: c.broker.group(), Brokers: cfg.Brokers, Dialer: c.broker.dialer(), Topics: slices.Sorted(maps.Keys(c.lanes)),
		StartOffset: kafka.FirstOffset, SessionTimeout: cfg.Session, RebalanceTimeout: cfg.Session,
		HeartbeatInterval: cfg.Session / 5, JoinGroupBackoff: 200 * time.Millisecond, Timeout: 5 * time.Second,
	})
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	defer group.Close()
	for failures := 0; ; {
		gen, err := group.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			// Next has to be called on, or the group's goroutine blocks; but one
			// that doesn't recover is better left and joined again.
			if failures++; failures > 10 {
				return fmt.Errorf("next generation: %w", err)
			}
			continue
		}
		failures = 0
		joined()
		if c.failed.CompareAndSwap(true, false) {
			c.log.Info("consuming again", "generation", gen.ID)
		}
		c.generation(gen, h)
	}
}

// generation starts what runs until the group is rebalanced: a reader for each
// partition, which together with the committer and the auditor ends the
// generation when it fails.
func (c *Consumer) generation(gen *kafka.Generation, h Handler) {
	g := &generation{Consumer: c, gen: gen, handler: h, committed: make(map[*partition]int64)}
	for topic, assigned := range gen.Assignments {
		for _, a := range assigned {
			p := &partition{topic: topic, lane: c.lanes[topic], id: a.ID, tracker: newTracker(inflightRecords, inflightBytes)}
			p.position.Store(a.Offset)
			p.attrs = metric.WithAttributes(attribute.String("messaging.destination.name", topic))
			g.partitions = append(g.partitions, p)
		}
	}
	for _, p := range g.partitions {
		gen.Start(func(ctx context.Context) { g.consume(ctx, p) })
	}
	c.once.Do(func() { close(c.joined) })
	gen.Start(g.commitLoop)
	gen.Start(g.auditLoop)
}

type generation struct {
	*Consumer
	gen        *kafka.Generation
	handler    Handler
	partitions []*partition

	mu        sync.Mutex
	committed map[*partition]int64
}

type partition struct {
	topic    string
	lane     message.Lane
	id       int
	tracker  *tracker
	position atomic.Int64 // of the next record
	blocked  atomic.Bool  // by the handler
	attrs    metric.AddOption

	stuck   time.Time // since when there is more than comes; the auditor's
	stuckAt int64
}

func (g *generation) commitLoop(ctx context.Context) {
	tick := time.NewTicker(commitEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := g.commit(); err != nil && ctx.Err() == nil {
				g.log.Warn("offsets were not committed; joining again", "generation", g.gen.ID, "error", err)
				return
			}
		case <-ctx.Done():
			_ = g.commit() // what fails here is read again, harmlessly
			return
		}
	}
}

// commit commits what has moved on. Offsets are committed under the generation
// that read them: a later one would be refused.
func (g *generation) commit() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	offsets := make(map[string]map[int]int64)
	moved := make(map[*partition]int64)
	for _, p := range g.partitions {
		at := p.tracker.committable()
		if was, ok := g.committed[p]; at < 0 || ok && was == at {
			continue
		}
		if offsets[p.topic] == nil {
			offsets[p.topic] = make(map[int]int64)
		}
		offsets[p.topic][p.id] = at
		moved[p] = at
	}
	if len(moved) == 0 {
		return nil
	}
	if err := g.gen.CommitOffsets(offsets); err != nil {
		return err
	}
	maps.Copy(g.committed, moved)
	return nil
}

// auditLoop compares positions with what the partitions really hold. A reader
// whose position is beyond the end reads a topic that was made anew or cut off,
// and would skip what is written until the end has passed its position.
func (g *generation) auditLoop(ctx context.Context) {
	tick := time.NewTicker(auditEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		actx, cancel := context.WithTimeout(ctx, 5*time.Second)
		bounds, err := g.broker.bounds(actx, g.partitions)
		cancel()
		if err != nil {
			continue // the readers and the heartbeat find out for themselves
		}
		for _, p := range g.partitions {
			if err := p.audit(bounds[p], time.Now()); err != nil {
				g.log.Warn("reading a partition anew", "topic", p.topic, "partition", p.id, "error", err)
				return
			}
		}
	}
}

func (p *partition) audit(b bounds, now time.Time) error {
	at := p.position.Load()
	switch {
	case !b.known:
		return nil
	case at > b.last:
		return fmt.Errorf("its position %d is beyond its end %d", at, b.last)
	case at == b.last || at != p.stuckAt || p.blocked.Load():
		p.stuck, p.stuckAt = now, at
		return nil
	case now.Sub(p.stuck) > stuckAfter:
		return fmt.Errorf("nothing came for %s, from %d to %d", stuckAfter, at, b.last)
	}
	return nil
}

// bounds are a partition's first offset and its end.
type bounds struct {
	first, last int64
	known       bool
}

func (b *Broker) bounds(ctx context.Context, partitions []*partition) (map[*partition]bounds, error) {
	all := make(map[*partition]bounds, len(partitions))
	req := &kafka.ListOffsetsRequest{Topics: make(map[string][]kafka.OffsetRequest)}
	for _, p := range partitions {
		req.Topics[p.topic] = append(req.Topics[p.topic], kafka.FirstOffsetOf(p.id), kafka.LastOffsetOf(p.id))
	}
	err := b.withClient(func(c *kafka.Client) error {
		resp, err := c.ListOffsets(ctx, req)
		if err != nil {
			return err
		}
		for _, p := range partitions {
			for _, o := range resp.Topics[p.topic] {
				if o.Partition == p.id && o.Error == nil {
					all[p] = bounds{o.FirstOffset, o.LastOffset, true}
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list offsets: %w", err)
	}
	return all, nil
}
