package broker

import (
	"errors"
	"testing"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
)

// Each leader is asked once for all of its partitions, and one that doesn't answer
// takes nothing from what the others say.
func TestOffsetsAskEachLeaderOnce(t *testing.T) {
	cluster := protocol.Cluster{Brokers: make(map[int32]protocol.Broker), Topics: make(map[string]protocol.Topic)}
	req := &offsetsRequest{when: kafka.LastOffset}
	for id := range int32(3) {
		cluster.Brokers[id] = protocol.Broker{ID: id}
	}
	for _, topic := range []string{"a", "b", "c", "d"} {
		partitions := make(map[int32]protocol.Partition)
		for id := range int32(6) {
			partitions[id] = protocol.Partition{ID: id, Leader: id % 3}
			req.places = append(req.places, place{topic, int(id)})
		}
		cluster.Topics[topic] = protocol.Topic{Name: topic, Partitions: partitions}
	}
	parts, merger, err := req.Split(cluster)
	if err != nil || len(parts) != 3 {
		t.Fatalf("%d requests to 3 leaders, %v", len(parts), err)
	}
	silent := errors.New("silent")
	answers := make([]any, len(parts))
	for i, m := range parts {
		asked := m.(*listoffsets.Request)
		leader, err := asked.Broker(cluster)
		if err != nil {
			t.Fatal(err)
		}
		if leader.ID == 1 {
			answers[i] = silent
			continue
		}
		resp := new(listoffsets.Response)
		for _, topic := range asked.Topics {
			answered := listoffsets.ResponseTopic{Topic: topic.Topic}
			for _, p := range topic.Partitions {
				if cluster.Topics[topic.Topic].Partitions[p.Partition].Leader != leader.ID || p.Timestamp != kafka.LastOffset {
					t.Errorf("%+v of %s was asked of broker %d", p, topic.Topic, leader.ID)
				}
				answered.Partitions = append(answered.Partitions, listoffsets.ResponsePartition{Partition: p.Partition})
			}
			resp.Topics = append(resp.Topics, answered)
		}
		answers[i] = resp
	}
	merged, err := merger.Merge(parts, answers)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, topic := range merged.(*listoffsets.Response).Topics {
		count += len(topic.Partitions)
	}
	if count != 16 || !errors.Is(req.err, silent) {
		t.Errorf("%d of 16 partitions' offsets, and %v", count, req.err)
	}
}
