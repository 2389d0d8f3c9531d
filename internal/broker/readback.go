package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/segmentio/kafka-go"

	"github.com/stormpost/stormpost/internal/message"
)

// readLimit is how long a partition may give nothing, with records left.
const readLimit = 30 * time.Second

// LaneRecord is a record of a lane, as one reads it who does not consume it.
type LaneRecord struct {
	message.Item
	Handled bool   // its offset is committed: the ledger once had what became of it
	Source  string // topic/partition/offset
	Raw     []byte
	Bad     error // why it is no message of ours; Item is empty then
}

// ReadLanes reads the lanes' records from a time on, by Kafka's timestamps, up
// to where the topics ended when it was called. It ends with use's first error.
func (b *Broker) ReadLanes(ctx context.Context, from time.Time, use func(LaneRecord) error) error {
	lanes := b.topics()
	return b.readBack(ctx, b.lanes(), from, func(m *kafka.Message, committed int64) error {
		r := LaneRecord{Handled: m.Offset < committed, Source: fmt.Sprintf("%s/%d/%d", m.Topic, m.Partition, m.Offset), Raw: m.Value}
		r.Item, r.Bad = decode(lanes[m.Topic], m)
		r.Origin = origin(m)
		return use(r)
	})
}

// ReadJournals is ReadLanes for what was in the journals, and is committed: it
// once was in the ledger. What is not committed comes into it by itself.
func (b *Broker) ReadJournals(ctx context.Context, from time.Time, use func(JournalRecord) error) error {
	classes := make(map[string]message.Class)
	for k := message.Transactional; k <= message.Campaign; k++ {
		classes[b.journalTopic(k)] = k
	}
	return b.readBack(ctx, b.journals(), from, func(m *kafka.Message, committed int64) error {
		if m.Offset >= committed {
			return nil
		}
		j, err := decodeJournaled(classes[m.Topic], m)
		if err != nil {
			return nil // it was parked
		}
		return use(JournalRecord{j, fmt.Sprintf("%s/%d/%d", m.Topic, m.Partition, m.Offset), m.Value})
	})
}

// ReadTrail is ReadLanes for the trail.
func (b *Broker) ReadTrail(ctx context.Context, from time.Time, use func(message.Step) error) error {
	return b.readBack(ctx, b.trail(), from, func(m *kafka.Message, _ int64) error {
		steps, err := decodeTrail(m)
		if err != nil {
			b.log.Warn("a record of the trail is none", "topic", m.Topic, "partition", m.Partition, "offset", m.Offset, "error", err)
			return nil
		}
		for _, s := range steps {
			if err := use(s); err != nil {
				return err
			}
		}
		return nil
	})
}

// readBack reads each partition from a time on, with what the group has
// committed of it. A topic that was never made has nothing.
func (b *Broker) readBack(ctx context.Context, s sub, from time.Time, use func(m *kafka.Message, committed int64) error) error {
	var missing []string
	err := patiently(ctx, func() (err error) {
		missing, err = b.missing(ctx, s.topics)
		return err
	})
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if len(missing) == len(s.topics) {
		return nil
	}
	committed := make(map[place]int64)
	var starts map[place]int64
	var ends map[place]bounds
	var places []place
	look := func(c *kafka.Client) (err error) {
		if _, places, err = s.places(ctx, c); err != nil {
			return err
		}
		if s.group != "" { // before the ends: what is committed later counts as not handled
			if committed, err = s.committed(ctx, c, places); err != nil {
				return err
			}
		}
		if ends, err = listBounds(ctx, c, places); err != nil {
			return err
		}
		starts, err = listOffsets(ctx, c, places, from.UnixMilli())
		return err
	}
	err = patiently(ctx, func() error { return b.withClient(look) })
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	for _, p := range places {
		start := starts[p]
		if start < 0 || start >= ends[p].last {
			continue
		}
		if err := b.readPlace(ctx, p, max(start, ends[p].first), ends[p].last, func(m *kafka.Message) error { return use(m, committed[p]) }); err != nil {
			return fmt.Errorf("read back topic %s, partition %d: %w", p.topic, p.id, err)
		}
	}
	return nil
}

// patiently tries do some times: a cluster under load answers late.
func patiently(ctx context.Context, do func() error) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxElapsedTime = 200*time.Millisecond, time.Minute
	return backoff.Retry(do, backoff.WithContext(wait, ctx))
}

func (b *Broker) readPlace(ctx context.Context, p place, from, to int64, use func(*kafka.Message) error) error {
	r := kafka.NewReader(kafka.ReaderConfig{
		Brokers: b.cfg.Brokers, Dialer: b.dialer(), Topic: p.topic, Partition: p.id, MinBytes: 1, MaxBytes: maxJournal,
		MaxWait: 250 * time.Millisecond, ReadLagInterval: -1, MaxAttempts: 3, QueueCapacity: 100, OffsetOutOfRangeError: true,
	})
	defer r.Close()
	if err := r.SetOffset(from); err != nil {
		return err
	}
	for at := from; at < to; {
		rctx, cancel := context.WithTimeout(ctx, readLimit)
		m, err := r.FetchMessage(rctx)
		cancel()
		if err != nil {
			if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("nothing came for %s, at %d of %d", readLimit, at, to)
			}
			return err
		}
		if at = m.Offset + 1; m.Offset >= to {
			return nil
		}
		if err := use(&m); err != nil {
			return err
		}
	}
	return nil
}
