package broker

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// generation starts what runs until the group is rebalanced: a reader for each
// partition, which together with the committer and the auditor ends the
// generation when it fails.
func (c *member) generation(gen *kafka.Generation, s sub, h taker) {
	g := &generation{member: c, sub: s, gen: gen, taker: h, committed: make(map[*partition]int64)}
	for topic, assigned := range gen.Assignments {
		for _, a := range assigned {
			p := &partition{place: place{topic, a.ID}, tracker: newTracker(s.inflightRecords, s.inflightBytes), stuckAt: -1}
			p.position.Store(a.Offset)
			p.attrs = metric.WithAttributeSet(attribute.NewSet(attribute.String("messaging.system", "kafka"), attribute.String("messaging.destination.name", topic)))
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
	*member
	sub        sub
	gen        *kafka.Generation
	taker      taker
	partitions []*partition

	mu        sync.Mutex
	committed map[*partition]int64
}

type partition struct {
	place
	tracker  *tracker
	position atomic.Int64 // of the next record
	blocked  atomic.Bool  // by the handler
	attrs    metric.AddOption

	// The auditor's.
	end     int64     // seen last
	stuck   time.Time // since when there is more than comes
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
