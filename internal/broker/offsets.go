package broker

import (
	"context"
	"errors"
	"fmt"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
)

// bounds are a partition's first offset and its end.
type bounds struct{ first, last int64 }

// listBounds asks the leaders. Where some don't answer, it returns an error
// beside what the others say.
func listBounds(ctx context.Context, c *kafka.Client, places []place) (map[place]bounds, error) {
	firsts, err1 := listOffsets(ctx, c, places, kafka.FirstOffset)
	lasts, err2 := listOffsets(ctx, c, places, kafka.LastOffset)
	all, err := make(map[place]bounds, len(places)), errors.Join(err1, err2)
	for p, first := range firsts {
		last, ok := lasts[p]
		switch {
		case !ok:
		case first < 0 || last < first:
			err = errors.Join(err, fmt.Errorf("list offsets: %s: no answer", p))
		default:
			all[p] = bounds{first, last}
		}
	}
	return all, err
}

// listOffsets is each partition's offset at a time: kafka.FirstOffset,
// kafka.LastOffset, or milliseconds since 1970; then it is -1 where nothing came
// since. Where some leaders don't answer, it returns an error beside what the
// others say.
func listOffsets(ctx context.Context, c *kafka.Client, places []place, when int64) (map[place]int64, error) {
	all := make(map[place]int64, len(places))
	if len(places) == 0 {
		return all, nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	req := &offsetsRequest{places: places, when: when}
	resp, err := c.Transport.RoundTrip(ctx, c.Addr, req)
	if err != nil {
		return all, fmt.Errorf("list offsets: %w", err)
	}
	for _, t := range resp.(*listoffsets.Response).Topics {
		for _, o := range t.Partitions {
			p := place{t.Topic, int(o.Partition)}
			if o.ErrorCode != 0 {
				err = fmt.Errorf("list offsets: %s: %w", p, kafka.Error(o.ErrorCode))
				continue
			}
			all[p] = o.Offset
		}
	}
	switch {
	case req.err != nil:
		err = fmt.Errorf("list offsets: %w", req.err)
	case err == nil && len(all) < len(places):
		err = errors.New("list offsets: a leader did not answer for all of its partitions")
	}
	return all, err
}

// offsetsRequest asks each leader once, for all of its partitions. The library's
// own call asks for each partition by a request, each on a connection, which was
// most of what a cluster did that had nothing to do.
type offsetsRequest struct {
	places []place
	when   int64
	err    error // why a leader didn't answer
}

var _ protocol.Splitter = (*offsetsRequest)(nil)

// ApiKey implements protocol.Message: ListOffsets
// (https://kafka.apache.org/protocol#The_Messages_ListOffsets).
//
//lint:ignore ST1003 the library's name
func (*offsetsRequest) ApiKey() protocol.ApiKey { return protocol.ListOffsets }

// Split implements protocol.Splitter. The library sends each part to the leader of
// its first partition.
func (r *offsetsRequest) Split(c protocol.Cluster) ([]protocol.Message, protocol.Merger, error) {
	leaders := make(map[int32]map[string][]listoffsets.RequestPartition)
	for _, p := range r.places {
		leader := int32(-1)
		if known, ok := c.Topics[p.topic].Partitions[int32(p.id)]; ok {
			leader = known.Leader
		}
		if leaders[leader] == nil {
			leaders[leader] = make(map[string][]listoffsets.RequestPartition)
		}
		leaders[leader][p.topic] = append(leaders[leader][p.topic], listoffsets.RequestPartition{Partition: int32(p.id), CurrentLeaderEpoch: -1, Timestamp: r.when})
	}
	var parts []protocol.Message
	for _, topics := range leaders {
		part := &listoffsets.Request{ReplicaID: -1}
		for topic, partitions := range topics {
			part.Topics = append(part.Topics, listoffsets.RequestTopic{Topic: topic, Partitions: partitions})
		}
		parts = append(parts, part)
	}
	return parts, r, nil
}

// Merge implements protocol.Merger.
func (r *offsetsRequest) Merge(_ []protocol.Message, answers []any) (protocol.Message, error) {
	all := new(listoffsets.Response)
	for _, a := range answers {
		m, err := protocol.Result(a)
		if err != nil {
			r.err = errors.Join(r.err, err)
			continue
		}
		all.Topics = append(all.Topics, m.(*listoffsets.Response).Topics...)
	}
	return all, nil
}
