package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/protocol/produce"
)

// cluster is three nodes that lead the six partitions of each topic in turn, as a
// transport sees them.
type cluster struct {
	topics []string
	answer func(ctx context.Context, node, partition int32, topic string) error // nil: takes all

	mu       sync.Mutex
	requests []wrote
}

// wrote is what one request brought: how many records, by topic.
type wrote struct {
	node       int32
	partitions map[string]int32
	records    map[string]int
}

func (c *cluster) RoundTrip(ctx context.Context, _ net.Addr, req kafka.Request) (kafka.Response, error) {
	switch req := req.(type) {
	case *metadata.Request:
		resp := &metadata.Response{Brokers: []metadata.ResponseBroker{{NodeID: 0}, {NodeID: 1}, {NodeID: 2}}}
		for _, name := range req.TopicNames {
			t := metadata.ResponseTopic{Name: name, ErrorCode: int16(kafka.UnknownTopicOrPartition)}
			if slices.Contains(c.topics, name) {
				t.ErrorCode = 0
				for i := range int32(6) {
					t.Partitions = append(t.Partitions, metadata.ResponsePartition{PartitionIndex: i, LeaderID: i % 3})
				}
			}
			resp.Topics = append(resp.Topics, t)
		}
		return resp, nil
	case *produce.Request:
		return c.produce(ctx, req)
	}
	return nil, fmt.Errorf("a request %T", req)
}

func (c *cluster) produce(ctx context.Context, req *produce.Request) (*produce.Response, error) {
	w := wrote{node: -1, partitions: make(map[string]int32), records: make(map[string]int)}
	resp := &produce.Response{}
	for _, t := range req.Topics {
		for _, part := range t.Partitions {
			node := part.Partition % 3
			if w.node >= 0 && w.node != node {
				return nil, errors.New("mismatching leaders")
			}
			if _, twice := w.partitions[t.Topic]; twice {
				return nil, errors.New("a topic twice")
			}
			w.node, w.partitions[t.Topic] = node, part.Partition
			for size := 0; ; w.records[t.Topic]++ {
				r, err := part.RecordSet.Records.ReadRecord()
				if err == io.EOF {
					break
				}
				if size += r.Value.Len(); size > maxBatch {
					return nil, errors.New("more than Kafka takes at once")
				}
			}
			answered := produce.ResponsePartition{Partition: part.Partition}
			if c.answer != nil {
				switch err := c.answer(ctx, node, part.Partition, t.Topic); err := err.(type) {
				case nil:
				case kafka.Error:
					answered.ErrorCode = int16(err)
				default:
					return nil, err
				}
			}
			resp.Topics = append(resp.Topics, produce.ResponseTopic{Topic: t.Topic, Partitions: []produce.ResponsePartition{answered}})
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = append(c.requests, w)
	return resp, nil
}

func (c *cluster) all() []wrote {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.requests)
}

func messages(topic string, n, size int) []kafka.Message {
	all := make([]kafka.Message, n)
	for i := range all {
		all[i] = kafka.Message{Topic: topic, Key: []byte("12345678"), Value: make([]byte, size), Headers: []protocol.Header{{Key: "sp", Value: []byte("x")}}}
	}
	return all
}

// produces runs a test with a producer that writes to c. It is over within an hour
// that nobody waits for.
func produces(t *testing.T, c *cluster, test func(write func(topic string, n, size int) <-chan error)) {
	synctest.Test(t, func(t *testing.T) {
		p := newProducer(kafka.TCP("127.0.0.1:9"), c)
		defer p.close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		test(func(topic string, n, size int) <-chan error {
			done := make(chan error, 1)
			go func() { done <- p.WriteMessages(ctx, messages(topic, n, size)...) }()
			return done
		})
	})
}

// What several lanes write together is one request, and one lane's trouble its own.
func TestLanesShareARequest(t *testing.T) {
	c := &cluster{topics: []string{"a", "b", "c"}}
	c.answer = func(_ context.Context, _, _ int32, topic string) error {
		if topic == "b" {
			return kafka.NotEnoughReplicas
		}
		return nil
	}
	produces(t, c, func(write func(string, int, int) <-chan error) {
		a, b, c2, none := write("a", 3, 10), write("b", 2, 10), write("c", 1, 10), write("none", 1, 10)
		if err := <-a; err != nil {
			t.Errorf("a: %v", err)
		}
		if err := <-c2; err != nil {
			t.Errorf("c: %v", err)
		}
		if left := failed(messages("b", 2, 10), <-b); len(left) != 2 {
			t.Errorf("%d of b's 2 failed", len(left))
		}
		var each kafka.WriteErrors
		if err := <-none; !errors.As(err, &each) || !errors.Is(each[0], kafka.UnknownTopicOrPartition) {
			t.Errorf("a topic that isn't there: %v", err)
		}
	})
	if all := c.all(); len(all) != 1 || all[0].records["a"] != 3 || all[0].records["b"] != 2 || all[0].records["c"] != 1 {
		t.Errorf("requests: %v", all)
	}
}

// One after the other goes to each node, and to each partition that it leads.
func TestNodesAndPartitionsTakeTurns(t *testing.T) {
	c := &cluster{topics: []string{"a"}}
	produces(t, c, func(write func(string, int, int) <-chan error) {
		for range 60 {
			if err := <-write("a", 1, 10); err != nil {
				t.Fatal(err)
			}
		}
	})
	times := make(map[int32]int)
	for _, r := range c.all() {
		times[r.partitions["a"]]++
	}
	for i := range int32(6) {
		if times[i] != 10 {
			t.Errorf("of 60 batches the partitions got %v", times)
			break
		}
	}
}

// A node that doesn't answer, or answers at once that it can't, gets next to nothing
// while others do.
func TestNodeInTroubleIsPassedOver(t *testing.T) {
	for what, bad := range map[string]func(ctx context.Context) error{
		"hangs":     func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"refuses":   func(context.Context) error { return errors.New("connection refused") },
		"can't now": func(context.Context) error { return kafka.NotEnoughReplicas },
	} {
		var asked atomic.Int32
		c := &cluster{topics: []string{"a", "b"}}
		c.answer = func(ctx context.Context, node, _ int32, _ string) error {
			if node == 1 {
				asked.Add(1)
				return bad(ctx)
			}
			time.Sleep(30 * time.Millisecond)
			return nil
		}
		produces(t, c, func(write func(string, int, int) <-chan error) {
			var failures atomic.Int32
			var wg sync.WaitGroup
			for range 1200 { // for 12 s, by several at a time
				for _, topic := range []string{"a", "b"} {
					done := write(topic, 1, 10)
					wg.Go(func() {
						if <-done != nil {
							failures.Add(1)
						}
					})
				}
				time.Sleep(10 * time.Millisecond)
			}
			wg.Wait()
			if asked.Load() == 0 || asked.Load() > 12 || failures.Load() > 30 {
				t.Errorf("one node %s: asked %d times, %d of 2,400 failed", what, asked.Load(), failures.Load())
			}
		})
	}
}

// While a request is under way others wait for company, though not for long.
func TestRequestsGatherWhileOneIsUnderWay(t *testing.T) {
	for _, x := range []struct {
		took, most time.Duration // of a request; for which a message may wait
		requests   int           // of 200 messages in 200 ms, at most
	}{{0, 2 * time.Millisecond, 200}, {10 * time.Millisecond, 25 * time.Millisecond, 25}, {time.Second, 1020 * time.Millisecond, 20}} {
		c := &cluster{topics: []string{"a"}, answer: func(context.Context, int32, int32, string) error {
			time.Sleep(x.took)
			return nil
		}}
		produces(t, c, func(write func(string, int, int) <-chan error) {
			var wg sync.WaitGroup
			for range 200 {
				began, done := time.Now(), write("a", 1, 10)
				wg.Go(func() {
					if err := <-done; err != nil || time.Since(began) > x.most {
						t.Errorf("requests of %s: %v after %s", x.took, err, time.Since(began))
					}
				})
				time.Sleep(time.Millisecond)
			}
			wg.Wait()
		})
		if n := len(c.all()); n > x.requests {
			t.Errorf("requests of %s: %d, want %d at most", x.took, n, x.requests)
		}
	}
}

// Kafka bounds what goes to a partition at once: more is several requests.
func TestGreatBatchesAreParted(t *testing.T) {
	c := &cluster{topics: []string{"a", "b"}}
	produces(t, c, func(write func(string, int, int) <-chan error) {
		a, b := write("a", 10, maxContent/3), write("b", 1, 10)
		if err := errors.Join(<-a, <-b); err != nil {
			t.Error(err)
		}
	})
	n := 0
	for _, r := range c.all() {
		n += r.records["a"]
	}
	if n != 10 || len(c.all()) < 4 {
		t.Errorf("%d of 10 in %d requests", n, len(c.all()))
	}
}

func TestProducerEndsWhatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{topics: []string{"a"}, answer: func(ctx context.Context, _, _ int32, _ string) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		p := newProducer(kafka.TCP("127.0.0.1:9"), c)
		done := make(chan error, 1)
		go func() { done <- p.WriteMessages(t.Context(), messages("a", 1, 10)...) }()
		time.Sleep(time.Second)
		began := time.Now()
		p.close()
		if err := <-done; err == nil || time.Since(began) != 0 {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		if err := p.WriteMessages(t.Context(), messages("a", 1, 10)...); !errors.Is(err, errClosed) {
			t.Errorf("closed: %v", err)
		}
	})
}
