package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"
)

// consume reads one partition until the generation ends. Returning earlier
// ends the generation.
func (g *generation) consume(ctx context.Context, p *partition) {
	err := g.fetch(ctx, p)
	if err != nil && ctx.Err() == nil {
		g.log.Warn("reading a partition failed; joining again", "topic", p.topic, "partition", p.id, "error", err)
	}
}

func (g *generation) fetch(ctx context.Context, p *partition) error {
	start, err := g.start(ctx, p)
	if err != nil {
		return err
	}
	r := kafka.NewReader(kafka.ReaderConfig{
		Brokers: g.broker.cfg.Brokers, Dialer: g.broker.dialer(), Topic: p.topic, Partition: p.id,
		MinBytes: 1, MaxBytes: g.sub.maxBytes,
		MaxWait:       500 * time.Millisecond, // Close waits for it, and so does a rebalance
		QueueCapacity: g.sub.readAhead, ReadLagInterval: -1, MaxAttempts: 3,
		ReadBackoffMin: 20 * time.Millisecond, ReadBackoffMax: 500 * time.Millisecond,
		OffsetOutOfRangeError: true,
	})
	defer r.Close()
	if err := r.SetOffset(start); err != nil {
		return fmt.Errorf("seek: %w", err)
	}
	for {
		m, err := r.FetchMessage(ctx)
		if errors.Is(err, kafka.OffsetOutOfRange) {
			p.tracker.forget()
		}
		if err != nil {
			return fmt.Errorf("fetch: %w", err)
		}
		p.blocked.Store(true)
		n, err := p.tracker.add(ctx, m.Offset, len(m.Value)+256)
		if err != nil {
			return err
		}
		g.read.Add(ctx, 1, p.attrs)
		if err := g.handle(ctx, p, &m, n); err != nil {
			return err
		}
		p.blocked.Store(false)
		p.position.Store(m.Offset + 1)
	}
}

// start is where to begin: at the committed offset if it is one of this log,
// else at the beginning. To read again is harmless.
func (g *generation) start(ctx context.Context, p *partition) (int64, error) {
	b, err := g.bounds(ctx, p)
	if err != nil {
		return 0, err
	}
	at := p.position.Load()
	if at >= b.first && at <= b.last {
		return at, nil
	}
	if at >= 0 {
		g.log.Warn("the committed offset is not of this log; reading from its beginning",
			"topic", p.topic, "partition", p.id, "committed", at, "first", b.first, "last", b.last)
		p.tracker.begin(b.first)
	}
	p.position.Store(b.first)
	return b.first, nil
}

// bounds asks until it is told: the leader of a topic that was just made, or of
// a node that just died, answers for a while that it isn't one.
func (g *generation) bounds(ctx context.Context, p *partition) (bounds, error) {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		var all map[place]bounds
		err := g.broker.withClient(func(c *kafka.Client) (err error) {
			bctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			all, err = listBounds(bctx, c, []place{p.place})
			return err
		})
		if err == nil {
			return all[p.place], nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return bounds{}, fmt.Errorf("list offsets: %w", ctx.Err())
		}
	}
}

// handle hands a record out, or parks it. Its position counts as read when it
// returns nil.
func (g *generation) handle(ctx context.Context, p *partition, m *kafka.Message, number uint64) error {
	bad := g.taker.take(ctx, p.topic, m, p.tracker, number)
	if bad == nil {
		return nil
	}
	headers := make(map[string][]byte, len(m.Headers))
	for _, h := range m.Headers {
		headers[h.Key] = h.Value
	}
	poison := Poison{Topic: p.topic, Partition: p.id, Offset: m.Offset, Key: m.Key, Headers: headers, Value: m.Value, Reason: bad.Error()}
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := g.taker.Park(ctx, poison)
		if err == nil {
			p.tracker.finish(number)
			return nil
		}
		g.log.Warn("a record could not be parked; trying again", "topic", p.topic, "partition", p.id, "offset", m.Offset, "error", err)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}
