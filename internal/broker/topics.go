package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
)

// maxBatch bounds the records that are written to one partition at once, in
// bytes. Kafka holds a topic's max.message.bytes against all of them together.
const (
	maxBatch        = maxContent + 32<<10
	maxMessageBytes = maxContent + 64<<10
)

// EnsureTopics makes the lanes' topics where they are missing, and returns once
// each of their partitions has a leader that answers as such. It tries until ctx ends, and may be
// called by many processes at once. Topics are never left to be made by
// themselves: those would have the cluster's defaults.
func (b *Broker) EnsureTopics(ctx context.Context) error { return b.ensure(ctx, b.lanes()) }

func (b *Broker) ensure(ctx context.Context, s sub) error {
	for {
		missing, err := b.missing(ctx, s.topics)
		switch {
		case err != nil:
		case len(missing) > 0:
			err = b.create(ctx, s, missing)
		default:
			if _, err = b.probe(ctx, s); err == nil {
				return nil
			}
		}
		timer := time.NewTimer(200 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if err == nil {
				err = fmt.Errorf("no leader yet for %v", missing)
			}
			return fmt.Errorf("topics: %w", errors.Join(ctx.Err(), err))
		}
	}
}

// MissingTopics lists the lanes' topics that don't exist, or have a partition
// without leader.
func (b *Broker) MissingTopics(ctx context.Context) ([]string, error) {
	return b.missing(ctx, slices.Sorted(maps.Keys(b.topics())))
}

// missing lists the topics that don't exist, or have a partition without leader.
func (b *Broker) missing(ctx context.Context, want []string) (missing []string, err error) {
	err = b.withClient(func(c *kafka.Client) error {
		meta, err := c.Metadata(ctx, &kafka.MetadataRequest{Topics: want})
		if err != nil {
			return err
		}
		found := make(map[string]bool)
		for _, t := range meta.Topics {
			led := t.Error == nil && len(t.Partitions) > 0
			for _, p := range t.Partitions {
				led = led && p.Error == nil && p.Leader.Host != ""
			}
			found[t.Name] = led
		}
		for _, name := range want {
			if !found[name] {
				missing = append(missing, name)
			}
		}
		return nil
	})
	return missing, err
}

// laneConfig is how a lane's topic is made.
func (b *Broker) laneConfig(context.Context, *kafka.Client) (replicas int, entries []kafka.ConfigEntry, err error) {
	entries = []kafka.ConfigEntry{{ConfigName: "max.message.bytes", ConfigValue: strconv.Itoa(maxMessageBytes)}}
	if b.cfg.Replication >= 3 {
		entries = append(entries, kafka.ConfigEntry{ConfigName: "min.insync.replicas", ConfigValue: "2"})
	}
	return b.cfg.Replication, entries, nil
}

func (b *Broker) create(ctx context.Context, s sub, names []string) error {
	return b.withClient(func(c *kafka.Client) error {
		replicas, entries, err := s.config(ctx, c)
		if err != nil {
			return err
		}
		configs := make([]kafka.TopicConfig, len(names))
		for i, name := range names {
			configs[i] = kafka.TopicConfig{Topic: name, NumPartitions: s.partitions, ReplicationFactor: replicas, ConfigEntries: entries}
		}
		resp, err := c.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: configs})
		if err != nil {
			return err
		}
		for name, err := range resp.Errors {
			if err != nil && !errors.Is(err, kafka.TopicAlreadyExists) {
				return fmt.Errorf("create %s: %w", name, err)
			}
		}
		return nil
	})
}

// RemoveTopics removes the lanes' topics, and the journals', with all that is in them.
func (b *Broker) RemoveTopics(ctx context.Context) error {
	return b.withClient(func(c *kafka.Client) error {
		resp, err := c.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: append(b.lanes().topics, b.journals().topics...)})
		if err != nil {
			return fmt.Errorf("remove topics: %w", err)
		}
		for name, err := range resp.Errors {
			if err != nil && !errors.Is(err, kafka.UnknownTopicOrPartition) {
				return fmt.Errorf("remove topic %s: %w", name, err)
			}
		}
		return nil
	})
}
