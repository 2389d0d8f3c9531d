package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/segmentio/kafka-go"

	"github.com/stormpost/stormpost/internal/message"
)

// Cluster is what Probe found.
type Cluster struct {
	ID      string
	Brokers int
}

// place is one partition of a topic.
type place struct {
	topic string
	id    int
}

// Probe asks the cluster how it is, by connections of its own: a client that is
// connected already believes in a dead cluster for seconds. Each partition's
// leader is asked, since the others speak well of one that hangs. An error
// means that a lane's topic is missing, or a leader away.
func (b *Broker) Probe(ctx context.Context) (c Cluster, err error) { return b.probe(ctx, b.lanes()) }

func (b *Broker) probe(ctx context.Context, s sub) (c Cluster, err error) {
	err = b.withClient(func(client *kafka.Client) error {
		meta, places, err := s.places(ctx, client)
		if err != nil {
			return err
		}
		c = Cluster{ID: meta.ClusterID, Brokers: len(meta.Brokers)}
		_, err = listBounds(ctx, client, places)
		return err
	})
	if err != nil {
		return c, fmt.Errorf("probe: %w", err)
	}
	return c, nil
}

// Backlog counts each lane's records that are not committed yet, as Kafka has
// it now. Those that are gone by retention don't count.
func (b *Broker) Backlog(ctx context.Context) (map[message.Lane]int64, error) {
	lanes := b.topics()
	backlog := make(map[message.Lane]int64, len(lanes))
	ends, committed, err := b.progress(ctx, b.lanes())
	if err != nil {
		return nil, fmt.Errorf("backlog: %w", err)
	}
	for p, end := range ends {
		backlog[lanes[p.topic]] += max(0, end.last-max(committed[p], end.first))
	}
	return backlog, nil
}

// progress is each partition's bounds, and what the group has committed: -1
// where that is nothing.
func (b *Broker) progress(ctx context.Context, s sub) (ends map[place]bounds, committed map[place]int64, err error) {
	err = b.audits.with(ctx, b, func(ctx context.Context, client *kafka.Client) error {
		_, places, err := s.places(ctx, client)
		if err != nil {
			return err
		}
		if ends, err = listBounds(ctx, client, places); err != nil {
			return err
		}
		committed, err = s.committed(ctx, client, places)
		return err
	})
	return ends, committed, err
}

// places are all partitions of the topics, each with a leader.
func (s sub) places(ctx context.Context, c *kafka.Client) (*kafka.MetadataResponse, []place, error) {
	meta, err := c.Metadata(ctx, &kafka.MetadataRequest{Topics: s.topics})
	if err != nil {
		return nil, nil, err
	}
	var places []place
	for _, t := range meta.Topics {
		if t.Error != nil {
			return nil, nil, fmt.Errorf("topic %s: %w", t.Name, t.Error)
		}
		for _, p := range t.Partitions {
			if p.Error != nil {
				return nil, nil, fmt.Errorf("topic %s, partition %d: %w", t.Name, p.ID, p.Error)
			}
			places = append(places, place{t.Name, p.ID})
		}
	}
	return meta, places, nil
}

// committed are the group's offsets, -1 where there is none.
func (s sub) committed(ctx context.Context, c *kafka.Client, places []place) (map[place]int64, error) {
	req := &kafka.OffsetFetchRequest{GroupID: s.group, Topics: make(map[string][]int)}
	for _, p := range places {
		req.Topics[p.topic] = append(req.Topics[p.topic], p.id)
	}
	resp, err := c.OffsetFetch(ctx, req)
	if err == nil {
		err = resp.Error
	}
	all := make(map[place]int64, len(places))
	if errors.Is(err, kafka.GroupIdNotFound) { // nobody has joined it yet
		for _, p := range places {
			all[p] = -1
		}
		return all, nil
	}
	if err != nil {
		return nil, fmt.Errorf("fetch offsets: %w", err)
	}
	for topic, partitions := range resp.Topics {
		for _, o := range partitions {
			if o.Error != nil {
				return nil, fmt.Errorf("fetch offsets: topic %s, partition %d: %w", topic, o.Partition, o.Error)
			}
			all[place{topic, o.Partition}] = o.CommittedOffset
		}
	}
	return all, nil
}

// unowned finds a partition that no member of the group reads, although the
// group has settled: one that was added, or whose topic was made anew, after
// the members had joined. A missing topic is an error.
func (b *Broker) unowned(ctx context.Context, s sub) (found *place, err error) {
	err = b.audits.with(ctx, b, func(ctx context.Context, c *kafka.Client) error {
		_, places, err := s.places(ctx, c)
		if err != nil {
			return err
		}
		resp, err := c.DescribeGroups(ctx, &kafka.DescribeGroupsRequest{GroupIDs: []string{s.group}})
		if err != nil {
			return fmt.Errorf("describe group: %w", err)
		}
		owned := make(map[place]bool)
		for _, g := range resp.Groups {
			if g.Error != nil || g.GroupState != "Stable" {
				return g.Error
			}
			for _, m := range g.Members {
				for _, t := range m.MemberAssignments.Topics {
					for _, id := range t.Partitions {
						owned[place{t.Topic, id}] = true
					}
				}
			}
		}
		if i := slices.IndexFunc(places, func(p place) bool { return !owned[p] }); i >= 0 {
			found = &places[i]
		}
		return nil
	})
	return found, err
}
