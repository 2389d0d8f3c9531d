package broker

import (
	"maps"
	"slices"
	"testing"

	"github.com/segmentio/kafka-go"

	"github.com/stormpost/stormpost/internal/message"
)

// A plain group reader skips most of what is written to a topic that was made
// anew while it read.
func TestTopicsMadeAnewAreReadFromTheirBeginning(t *testing.T) {
	for name, n := range map[string]int{"shorter": 300, "longer": 2500} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := sharedBroker(t)
			in := newInbox(t)
			_, stop := consume(t, b, in)
			p := publisher(t, b)
			old := items(urgent, 1, 1000, 100)
			p.Publish(old)
			in.all(t, old)

			if err := b.RemoveTopics(patient(t)); err != nil {
				t.Fatal(err)
			}
			gone(t, b, len(message.Lanes()))
			if err := b.EnsureTopics(patient(t)); err != nil {
				t.Fatal(err)
			}
			// Not at once, or the new log could be as long as the old one was
			// before anyone looks at it.
			fresh := items(urgent, 100_000, n, 100)
			p.Publish(fresh[:100])
			in.all(t, fresh[:100])
			p.Publish(fresh[100:])
			in.all(t, fresh)
			stop()
			if sum, each := backlog(t, b); sum != 0 {
				t.Errorf("a backlog of %v", each)
			}
		})
	}
}

func TestTopicThatNobodyMakesAnewIsMadeByTheConsumer(t *testing.T) {
	b := sharedBroker(t)
	in := newInbox(t)
	_, _ = consume(t, b, in)
	err := b.withClient(func(c *kafka.Client) error {
		resp, err := c.DeleteTopics(patient(t), &kafka.DeleteTopicsRequest{Topics: []string{b.Topic(urgent)}})
		if err == nil {
			err = resp.Errors[b.Topic(urgent)]
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	gone(t, b, 1)
	// The consumer's next audit finds out.
	ctx := patient(t)
	for len(absent(t, b)) > 0 {
		if ctx.Err() != nil {
			t.Fatal("the topic was not made anew")
		}
	}
	p := publisher(t, b)
	all := items(urgent, 1, 100, 100)
	p.Publish(all)
	in.all(t, all)
}

// absent asks once which topics are not there.
func absent(t *testing.T, b *Broker) []string {
	t.Helper()
	missing, err := b.missing(patient(t), slices.Sorted(maps.Keys(b.topics())))
	if err != nil {
		t.Fatal(err)
	}
	return missing
}

// gone waits until n topics have been removed, which takes a moment.
func gone(t *testing.T, b *Broker, n int) {
	t.Helper()
	ctx := patient(t)
	for len(absent(t, b)) < n {
		if ctx.Err() != nil {
			t.Fatal("the topics were not removed")
		}
	}
}

func TestPartitionsThatWereAddedAreRead(t *testing.T) {
	b := sharedBroker(t)
	in := newInbox(t)
	_, _ = consume(t, b, in)
	topic := b.Topic(urgent)
	err := b.withClient(func(c *kafka.Client) error {
		resp, err := c.CreatePartitions(patient(t), &kafka.CreatePartitionsRequest{Topics: []kafka.TopicPartitionsConfig{{Name: topic, Count: 6}}})
		if err == nil {
			err = resp.Errors[topic]
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// Straight into the last one, since a writer learns of it in its own time.
	all := items(urgent, 1, 10, 10)
	tr := b.transport()
	defer tr.CloseIdleConnections()
	w := &kafka.Writer{Addr: b.address(), Transport: tr, RequiredAcks: kafka.RequireAll, Balancer: kafka.BalancerFunc(func(_ kafka.Message, partitions ...int) int {
		return partitions[len(partitions)-1]
	})}
	defer w.Close()
	for _, it := range all {
		if err := w.WriteMessages(patient(t), encode(topic, it)); err != nil {
			t.Fatal(err)
		}
	}
	in.all(t, all)
}
