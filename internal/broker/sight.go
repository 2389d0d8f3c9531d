package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/segmentio/kafka-go"
)

// Sight is what a process saw of a cluster: which one it is, and how far its
// partitions have come. The partitions' names are TOPIC/NUMBER.
type Sight struct {
	Cluster   string           `json:"cluster"`
	Brokers   int              `json:"brokers"`
	Ends      map[string]int64 `json:"ends"`
	Committed map[string]int64 `json:"committed"` // by the group that reads the topic; nil: the cluster didn't say
	Missing   []string         `json:"-"`         // topics of the lanes and journals that it hasn't got
	Trailless bool             `json:"-"`         // it has no topic for the trail of attempts
}

// Look asks the cluster for its id, and for the ends and committed offsets of the
// lanes' topics and the journals; each leader answers for itself. An error says
// that one is away, as a new connection saw it too. Missing topics are none; nor
// is it one that the group's coordinator doesn't answer.
func (b *Broker) Look(ctx context.Context) (s Sight, err error) {
	subs := []sub{b.lanes(), b.journals()}
	trail := b.trail().topics[0]
	err = b.sights.with(ctx, b, func(ctx context.Context, c *kafka.Client) error {
		meta, err := c.Metadata(ctx, &kafka.MetadataRequest{Topics: slices.Concat(subs[0].topics, subs[1].topics, []string{trail})})
		if err != nil {
			return err
		}
		s = Sight{Cluster: meta.ClusterID, Brokers: len(meta.Brokers), Ends: make(map[string]int64), Committed: make(map[string]int64)}
		places := make(map[string][]place)
		var faults []error
		for _, t := range meta.Topics {
			if t.Name == trail {
				s.Trailless = errors.Is(t.Error, kafka.UnknownTopicOrPartition)
				continue
			}
			if errors.Is(t.Error, kafka.UnknownTopicOrPartition) {
				s.Missing = append(s.Missing, t.Name)
				continue
			}
			err := t.Error
			for _, p := range t.Partitions {
				err = errors.Join(err, p.Error)
				places[t.Name] = append(places[t.Name], place{t.Name, p.ID})
			}
			if err != nil {
				faults = append(faults, fmt.Errorf("topic %s: %w", t.Name, err))
			}
		}
		if len(faults) > 0 {
			return errors.Join(faults...)
		}
		ends, err := listOffsets(ctx, c, slices.Concat(slices.Collect(maps.Values(places))...), kafka.LastOffset)
		if err != nil {
			return err
		}
		for p, end := range ends {
			s.Ends[p.String()] = end
		}
		for _, sub := range subs {
			var all []place
			for _, topic := range sub.topics {
				all = append(all, places[topic]...)
			}
			if len(all) == 0 || s.Committed == nil {
				continue
			}
			committed, err := sub.committed(ctx, c, all)
			if err != nil { // a coordinator that is just being chosen
				s.Committed = nil
				continue
			}
			for p, at := range committed {
				if at >= 0 {
					s.Committed[p.String()] = at
				}
			}
		}
		return nil
	})
	if err != nil {
		return s, fmt.Errorf("probe: %w", err)
	}
	if len(s.Missing) > 0 || s.Trailless || s.Committed == nil {
		b.sights.clear()
	}
	slices.Sort(s.Missing)
	return s, nil
}

func (p place) String() string { return fmt.Sprintf("%s/%d", p.topic, p.id) }

// Since says in what the cluster is another one than it was, in one line for
// people; empty if it only went on. Then it was wiped, rolled back or replaced,
// and what only it held is gone.
func (s *Sight) Since(was *Sight) string {
	if was.Cluster == "" {
		return ""
	}
	if s.Cluster != was.Cluster {
		return fmt.Sprintf("the brokers belong to another Kafka cluster than before: %s, was %s", s.Cluster, was.Cluster)
	}
	for _, p := range slices.Sorted(maps.Keys(was.Ends)) {
		end, there := s.Ends[p]
		switch {
		case !there:
			return fmt.Sprintf("Kafka's %s is gone", p)
		case end < was.Ends[p]:
			return fmt.Sprintf("Kafka's %s went back: it ends at %d, and ended at %d", p, end, was.Ends[p])
		}
	}
	if s.Committed == nil {
		return ""
	}
	for _, p := range slices.Sorted(maps.Keys(was.Committed)) {
		at, there := s.Committed[p]
		switch {
		case !there:
			return fmt.Sprintf("what was committed of Kafka's %s is gone: it was %d", p, was.Committed[p])
		case at < was.Committed[p]:
			return fmt.Sprintf("what was committed of Kafka's %s went back to %d, from %d", p, at, was.Committed[p])
		}
	}
	return ""
}

// With is s, where s knows nothing as was: what to compare the next sight with.
func (s Sight) With(was *Sight) Sight {
	if s.Committed == nil && s.Cluster == was.Cluster {
		s.Committed = was.Committed
	}
	return s
}
