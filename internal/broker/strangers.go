package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/segmentio/kafka-go"

	"github.com/stormpost/stormpost/internal/message"
)

// sampled is how many records of a partition Strangers looks at, from its
// beginning on.
const sampled = 20

// Strangers names what the cluster holds under our topics' prefix and isn't ours,
// one line each: topics of other names, and in ours records that can't be read or
// that known, which is asked of a sample, doesn't know. It reads the beginning
// and the last record of each partition.
func (b *Broker) Strangers(ctx context.Context, known func(context.Context, []message.Item) ([]bool, error)) (found []string, err error) {
	lanes, journals := b.topics(), b.journals().topics
	err = b.withClient(func(c *kafka.Client) error {
		meta, err := c.Metadata(ctx, &kafka.MetadataRequest{})
		if err != nil {
			return err
		}
		var places []place
		for _, t := range meta.Topics {
			_, lane := lanes[t.Name]
			switch {
			case !strings.HasPrefix(t.Name, b.cfg.Prefix+"."):
			case lane || slices.Contains(journals, t.Name):
				for _, p := range t.Partitions {
					places = append(places, place{t.Name, p.ID})
				}
			case !slices.Contains([]string{b.cfg.Prefix + ".events", b.cfg.Prefix + ".keys"}, t.Name):
				found = append(found, "a topic "+t.Name)
			}
		}
		ends, err := listBounds(ctx, c, places)
		if err != nil {
			return err
		}
		for _, p := range places {
			records, err := sample(ctx, c, p, ends[p])
			if err != nil {
				return fmt.Errorf("%s: %w", p, err)
			}
			why, err := b.strange(ctx, p, records, known)
			if err != nil {
				return err
			}
			if why != "" {
				found = append(found, why)
			}
		}
		return nil
	})
	return found, err
}

// strange says why records of one partition aren't ours.
func (b *Broker) strange(ctx context.Context, p place, records []kafka.Message, known func(context.Context, []message.Item) ([]bool, error)) (string, error) {
	lane, carries := b.topics()[p.topic]
	var items []message.Item
	for i := range records {
		var err error
		if carries {
			var it message.Item
			it, err = decode(lane, &records[i])
			items = append(items, it)
		} else {
			_, _, err = head(records[i].Value)
		}
		if err != nil {
			return fmt.Sprintf("a record that isn't ours in %s, at offset %d: %v", p, records[i].Offset, err), nil
		}
	}
	if len(items) == 0 {
		return "", nil
	}
	ours, err := known(ctx, items)
	if err != nil {
		return "", err
	}
	if i := slices.Index(ours, false); i >= 0 {
		return fmt.Sprintf("a message that the ledger doesn't know in %s, at offset %d", p, records[i].Offset), nil
	}
	return "", nil
}

// sample reads the beginning of a partition and its last record.
func sample(ctx context.Context, c *kafka.Client, p place, b bounds) (all []kafka.Message, err error) {
	if b.last <= b.first {
		return nil, nil
	}
	for i, at := range []int64{b.first, max(b.first, b.last-1)} {
		resp, err := c.Fetch(ctx, &kafka.FetchRequest{Topic: p.topic, Partition: p.id, Offset: at, MinBytes: 1, MaxBytes: 4 << 20})
		if err == nil {
			err = resp.Error
		}
		if err != nil {
			return nil, err
		}
		for len(all) < sampled+i {
			r, err := resp.Records.ReadRecord()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, err
			}
			m := kafka.Message{Topic: p.topic, Partition: p.id, Offset: r.Offset, Headers: r.Headers}
			if m.Key, err = readAll(r.Key); err == nil {
				m.Value, err = readAll(r.Value)
			}
			if err != nil {
				return nil, err
			}
			if r.Offset >= at { // a batch begins before what was asked for
				all = append(all, m)
			}
		}
		if b.last-1 == b.first {
			break
		}
	}
	return all, nil
}

func readAll(b kafka.Bytes) ([]byte, error) {
	if b == nil {
		return nil, nil
	}
	defer b.Close()
	return kafka.ReadAll(b)
}
