package broker

import (
	"context"
	"strings"
	"testing"

	"github.com/segmentio/kafka-go"

	"github.com/stormpost/stormpost/internal/message"
)

func TestStrangers(t *testing.T) {
	b := sharedBroker(t)
	if err := b.EnsureJournals(patient(t)); err != nil {
		t.Fatal(err)
	}
	ours := true
	known := func(_ context.Context, items []message.Item) ([]bool, error) {
		all := make([]bool, len(items))
		for i := range all {
			all[i] = ours
		}
		return all, nil
	}
	want := func(part string) {
		t.Helper()
		found, err := b.Strangers(patient(t), known)
		if err != nil {
			t.Fatal(err)
		}
		if part == "" && len(found) > 0 || part != "" && (len(found) == 0 || !strings.Contains(strings.Join(found, "; "), part)) {
			t.Errorf("%q, want %q", found, part)
		}
	}
	want("")
	p := publisher(t, b)
	all := items(urgent, 1, 100, 100)
	p.Publish(all)
	in := newInbox(t)
	_, _ = consume(t, b, in)
	in.all(t, all)
	j := journaled(t, "transactional", "k", "hello")
	write(t, b, encodeJournaled(b.journalTopic(j.Lane.Class), j))
	want("")

	ours = false // another installation's
	want("a message that the ledger doesn't know in " + b.Topic(urgent))
	ours = true
	write(t, b, kafka.Message{Topic: b.Topic(later), Key: []byte("k"), Value: []byte("somebody's")})
	want("a record that isn't ours in " + b.Topic(later))
	name := b.cfg.Prefix + ".orders"
	err := b.withClient(func(c *kafka.Client) error {
		_, err := c.CreateTopics(patient(t), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: name, NumPartitions: 1, ReplicationFactor: 1}}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = b.withClient(func(c *kafka.Client) error {
			_, err := c.DeleteTopics(context.Background(), &kafka.DeleteTopicsRequest{Topics: []string{name}})
			return err
		})
	}()
	ctx := patient(t)
	for found, err := b.Strangers(ctx, known); len(found) < 2; found, err = b.Strangers(ctx, known) {
		if ctx.Err() != nil {
			t.Fatal(found, err)
		}
	}
	want("a topic " + name)
}

// A consumer reads the lanes that it is told to, and nothing while there are none.
func TestAssign(t *testing.T) {
	b := sharedBroker(t)
	in := newInbox(t)
	c, stop := consume(t, b, in)
	p := publisher(t, b)
	first := items(urgent, 1, 50, 10)
	p.Publish(first)
	in.all(t, first)

	c.Assign(nil)
	none := items(urgent, 1000, 50, 10)
	p.Publish(none)
	c.Assign([]message.Lane{later})
	second := items(later, 1, 50, 10)
	p.Publish(second)
	in.all(t, second)
	in.mu.Lock()
	for _, it := range none {
		if in.seen[it.Position] > 0 {
			t.Errorf("%v was read", it.Position)
			break
		}
	}
	in.mu.Unlock()

	c.Assign([]message.Lane{urgent, later})
	in.all(t, none)
	stop()
}
