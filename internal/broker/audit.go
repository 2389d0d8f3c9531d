package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"
)

// auditLoop ends the generation when what it reads isn't what there is.
func (g *generation) auditLoop(ctx context.Context) {
	tick := time.NewTicker(auditEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := g.audit(ctx); err != nil && ctx.Err() == nil {
			g.log.Warn("joining again", "generation", g.gen.ID, "error", err)
			return
		}
	}
}

// audit compares positions with what the partitions really hold, and all
// partitions with those that the group reads. What Kafka doesn't answer is no
// finding: the readers and the heartbeat find out for themselves.
func (g *generation) audit(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// Positions are read before the ends are asked for: records keep coming.
	places, at := make([]place, len(g.partitions)), make([]int64, len(g.partitions))
	for i, p := range g.partitions {
		places[i], at[i] = p.place, p.position.Load()
	}
	var ends map[place]bounds
	_ = g.broker.audits.with(ctx, g.broker, func(ctx context.Context, c *kafka.Client) (err error) {
		ends, err = listBounds(ctx, c, places)
		return err
	})
	now := time.Now()
	for i, p := range g.partitions {
		if b, ok := ends[p.place]; ok {
			if err := p.audit(at[i], b, now); err != nil {
				return fmt.Errorf("topic %s, partition %d: %w", p.topic, p.id, err)
			}
		}
	}
	found, err := g.broker.unowned(ctx, g.sub)
	switch {
	case found != nil:
		return fmt.Errorf("topic %s, partition %d: nobody reads it", found.topic, found.id)
	case errors.Is(err, kafka.UnknownTopicOrPartition):
		g.log.Warn("a topic is gone; making it anew", "error", err)
		_ = g.broker.ensure(ctx, g.sub) // else the next audit does
	}
	return nil
}

// audit judges one partition, whose position was at before its bounds were
// asked for. A log whose end went back, or lies before the
// position, is another one, made anew under the same name, or was cut off. Its
// reader would wait until the end has passed its position, and then skip all
// before; so the offset to commit goes back to the beginning.
func (p *partition) audit(at int64, b bounds, now time.Time) error {
	switch {
	case at > b.last || b.last < p.end:
		p.tracker.forget()
		return fmt.Errorf("its end went back to %d, from %d", b.last, max(at, p.end))
	case at == b.last || at != p.stuckAt || p.blocked.Load():
		p.stuck, p.stuckAt = now, at
	case now.Sub(p.stuck) > stuckAfter:
		return fmt.Errorf("nothing came for %s, at %d of %d", stuckAfter, at, b.last)
	}
	p.end = b.last
	return nil
}
