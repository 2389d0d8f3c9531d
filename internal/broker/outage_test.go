package broker

import (
	"context"
	"log/slog"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/stormpost/stormpost/internal/devstack/teststack"
)

func probe(t *testing.T, b *Broker, limit time.Duration) (Cluster, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return b.Probe(ctx)
}

func TestKafkaFrozenKilledAndBack(t *testing.T) {
	k := teststack.NewKafka(t, 1)
	log := newLines()
	b := newBroker(t, k.Brokers(), func(c *Config) { c.Logger = slog.New(log) })
	if _, err := probe(t, b, 5*time.Second); err == nil {
		t.Error("Probe finds nothing wrong where topics are missing")
	}
	if err := b.EnsureTopics(patient(t)); err != nil {
		t.Fatal(err)
	}
	if c, err := probe(t, b, 10*time.Second); err != nil || c.ID != k.ClusterID() || c.Brokers != 1 {
		t.Fatalf("%+v %v", c, err)
	}
	in := newInbox(t)
	c, stop := consume(t, b, in)
	p := publisher(t, b)
	before := items(urgent, 1, 1000, 100)
	p.Publish(before)
	in.all(t, before)

	if err := k.Signal(0, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := probe(t, b, 2*time.Second); err == nil {
		t.Error("Probe believes in a frozen cluster")
	}
	if err := k.Signal(0, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	thawed := items(urgent, 10_000, 1000, 100)
	p.Publish(thawed)
	in.all(t, thawed)

	if err := k.Kill(0); err != nil {
		t.Fatal(err)
	}
	if _, err := probe(t, b, 5*time.Second); err == nil {
		t.Error("Probe believes in a dead cluster")
	}
	for c.Err() == nil {
		log.wait(t, "not consuming")
	}
	if err := k.Restart(patient(t), 0); err != nil {
		t.Fatal(err)
	}
	for c.Err() != nil {
		log.wait(t, "consuming again")
	}
	after := items(urgent, 20_000, 1000, 100)
	p.Publish(after)
	in.all(t, after)
	committed(t, b)
	stop()
}

func TestNodeOfThreeKilledUnderLoad(t *testing.T) {
	k := teststack.NewKafka(t, 3)
	b := newBroker(t, k.Brokers())
	if err := b.EnsureTopics(patient(t)); err != nil {
		t.Fatal(err)
	}
	if got := b.setting(t, "min.insync.replicas"); got != "2" {
		t.Errorf("min.insync.replicas is %q, want 2", got)
	}
	in := newInbox(t)
	_, stop := consume(t, b, in)
	p := publisher(t, b)
	before := items(urgent, 1, 2000, 100)
	p.Publish(before)
	in.all(t, before)

	// A leader that hangs is found though the other nodes speak well of it.
	if err := k.Signal(1, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := probe(t, b, 2*time.Second); err == nil {
		t.Error("Probe believes in a frozen leader")
	}
	if err := k.Kill(1); err != nil {
		t.Fatal(err)
	}
	if err := b.EnsureTopics(patient(t)); err != nil { // until all have leaders again
		t.Fatal(err)
	}
	after := items(urgent, 10_000, 5000, 100)
	p.Publish(after)
	in.all(t, after)
	committed(t, b)
	stop()
}

// setting is one of a lane's topic.
func (b *Broker) setting(t *testing.T, name string) (value string) {
	t.Helper()
	err := b.withClient(func(c *kafka.Client) error {
		resp, err := c.DescribeConfigs(patient(t), &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: b.Topic(urgent), ConfigNames: []string{name},
		}}})
		if err != nil {
			return err
		}
		for _, e := range resp.Resources[0].ConfigEntries {
			value = e.ConfigValue
		}
		return resp.Resources[0].Error
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestConsumerStartsWithKafkaAway(t *testing.T) {
	b := newBroker(t, []string{"127.0.0.1:9"})
	c, err := b.NewConsumer()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, newInbox(t)) }()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-patient(t).Done():
		t.Fatal("Run doesn't end")
	}
	ectx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := b.EnsureTopics(ectx); err == nil {
		t.Error("EnsureTopics without Kafka succeeded")
	}
}
