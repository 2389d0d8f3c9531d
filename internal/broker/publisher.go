package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/segmentio/kafka-go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// Of one lane, waiting to be written or being written.
	bufferRecords = 16 << 10
	bufferBytes   = 16 << 20

	flushRecords = 128              // of a lane at once
	flushLinger  = time.Millisecond // how long the first record waits for others
	flushers     = 4                // of one lane: one gathers while others wait for Kafka
	// publishAge is how long a record is tried. Later the lane's cursor has it.
	publishAge = 10 * time.Second
)

var (
	errFull   = errors.New("the lane's buffer is full")
	errClosed = errors.New("the publisher is closed")
	errLane   = errors.New("not a lane's position")
)

// Publisher publishes items without ever blocking whoever accepts them. What
// its buffers have no room for, and what Kafka doesn't take for some seconds,
// it drops: the lane's cursor in the ledger finds it. Each lane has a buffer of
// its own, so that a flood in one costs the others nothing. It is safe for
// concurrent use.
type Publisher struct {
	writer writer
	queues map[message.Lane]*queue
	log    *slog.Logger
	shut   func() error // of what the writer uses

	life context.Context // ends what is being tried
	end  context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.RWMutex
	closed bool

	warned  atomic.Int64 // unix nanoseconds
	dropped metric.Int64Counter
}

// writer is a producer, or what a test has instead.
type writer interface {
	WriteMessages(ctx context.Context, msgs ...kafka.Message) error
}

// queue is one lane's buffer.
type queue struct {
	topic     string
	in        chan message.Item
	gather    chan struct{} // full while a batch is gathered
	bytes     atomic.Int64  // of content, until it is written or dropped
	published func(n int)
}

// NewPublisher makes a publisher; one for a process.
func (b *Broker) NewPublisher() (*Publisher, error) {
	t := b.transport()
	w := newProducer(b.address(), t)
	return b.newPublisher(w, func() error {
		defer t.CloseIdleConnections()
		w.close()
		return nil
	})
}

func (b *Broker) newPublisher(w writer, shut func() error) (*Publisher, error) {
	published, err1 := b.meter.Int64Counter("messaging.client.sent.messages", metric.WithUnit("{message}"), metric.WithDescription("Records that Kafka took."))
	dropped, err2 := b.meter.Int64Counter("stormpost.publish.dropped", metric.WithUnit("{message}"), metric.WithDescription("Records left to the lanes' cursors."))
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("publisher: %w", err)
	}
	p := &Publisher{writer: w, shut: shut, queues: make(map[message.Lane]*queue), log: b.log, dropped: dropped}
	p.life, p.end = context.WithCancel(context.Background())
	for topic, lane := range b.topics() {
		attrs := metric.WithAttributeSet(attribute.NewSet(attribute.String("messaging.system", "kafka"), attribute.String("messaging.destination.name", topic)))
		q := &queue{topic: topic, in: make(chan message.Item, bufferRecords), gather: make(chan struct{}, 1), published: func(n int) {
			published.Add(context.Background(), int64(n), attrs)
		}}
		p.queues[lane] = q
		for range flushers {
			p.wg.Go(func() { p.run(q) })
		}
	}
	return p, nil
}

// Publish implements ingest.Publisher.
func (p *Publisher) Publish(items []message.Item) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for i := range items {
		if err := p.enqueue(items[i]); err != nil {
			p.drop(1, err)
		}
	}
}

func (p *Publisher) enqueue(it message.Item) error {
	if p.closed {
		return errClosed
	}
	q := p.queues[it.Position.Lane()]
	if q == nil {
		return errLane
	}
	if len(it.Content) > maxContent {
		it.Content = nil // the record refers to it, and the buffer need not hold it
	}
	size := int64(len(it.Content))
	if q.bytes.Add(size) > bufferBytes {
		q.bytes.Add(-size)
		return errFull
	}
	select {
	case q.in <- it:
		return nil
	default:
		q.bytes.Add(-size)
		return errFull
	}
}

// drop counts what is left to the cursors, and says so once a second at most.
func (p *Publisher) drop(n int, err error) {
	p.dropped.Add(context.Background(), int64(n))
	now, last := time.Now().UnixNano(), p.warned.Load()
	if now-last > int64(time.Second) && p.warned.CompareAndSwap(last, now) {
		p.log.Warn("not published; the lanes' cursors will find them", "count", n, "error", err)
	}
}

// run writes what comes in batches.
func (p *Publisher) run(q *queue) {
	batch := make([]kafka.Message, 0, flushRecords)
	for {
		var size int64
		if batch, size = q.next(batch[:0]); len(batch) == 0 {
			return
		}
		p.flush(q, batch)
		q.bytes.Add(-size)
		clear(batch)
	}
}

// next appends the next batch's records to batch, and says how many bytes of
// content it has. None means that the publisher was closed.
func (q *queue) next(batch []kafka.Message) ([]kafka.Message, int64) {
	q.gather <- struct{}{}
	defer func() { <-q.gather }()
	first, ok := <-q.in
	if !ok {
		return batch, 0
	}
	batch = append(batch, encode(q.topic, first))
	size := int64(len(first.Content))
	if len(q.in) < flushRecords/2 {
		time.Sleep(flushLinger)
	}
	for len(batch) < flushRecords {
		select {
		case it, ok := <-q.in:
			if !ok {
				return batch, size
			}
			batch = append(batch, encode(q.topic, it))
			size += int64(len(it.Content))
		default:
			return batch, size
		}
	}
	return batch, size
}

// flush tries until Kafka has taken the batch, for publishAge. A repeat is harmless:
// the second record's claim is refused.
func (p *Publisher) flush(q *queue, batch []kafka.Message) {
	ctx, cancel := context.WithTimeout(p.life, publishAge)
	defer cancel()
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.MaxElapsedTime = 50*time.Millisecond, 2*time.Second, 0
	left := batch
	err := backoff.Retry(func() error {
		err := p.writer.WriteMessages(ctx, left...)
		if left = failed(left, err); len(left) == 0 {
			return nil
		}
		return err
	}, backoff.WithContext(b, ctx))
	if len(left) > 0 {
		p.drop(len(left), err)
	}
	q.published(len(batch) - len(left))
}

// failed are those of msgs that err says were not written, or all of them when
// it doesn't say. What a topic finds too large, made by someone else with a
// lower limit, shall go as references.
func failed(msgs []kafka.Message, err error) []kafka.Message {
	if err == nil {
		return nil
	}
	var each kafka.WriteErrors
	if !errors.As(err, &each) || len(each) != len(msgs) {
		return msgs
	}
	left := make([]kafka.Message, 0, each.Count())
	for i, e := range each {
		if e == nil {
			continue
		}
		if errors.Is(e, kafka.MessageSizeTooLarge) {
			refer(&msgs[i])
		}
		left = append(left, msgs[i])
	}
	return left
}

// Close publishes what is in the buffers, until ctx ends.
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		for _, q := range p.queues {
			close(q.in)
		}
	}
	p.mu.Unlock()
	done := make(chan struct{})
	go func() {
		p.wg.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = fmt.Errorf("publisher: %w", ctx.Err())
		p.end()
		<-done
	}
	p.end()
	return errors.Join(err, p.shut())
}
