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
	bufferRecords = 20_000
	bufferBytes   = 64 << 20
	flushRecords  = 500
	flushers      = 4
	// publishAge is how long a record is tried. Later the lane's cursor has it.
	publishAge = 10 * time.Second
)

// Publisher publishes items without ever blocking whoever accepts them. What
// its buffer has no room for, and what Kafka doesn't take for some seconds, it
// drops: the ledger's cursor finds it. It is safe for concurrent use.
type Publisher struct {
	broker *Broker
	topics map[message.Lane]string
	writer *kafka.Writer
	log    *slog.Logger
	in     chan kafka.Message
	bytes  atomic.Int64

	life context.Context // ends what is being tried
	end  context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.RWMutex
	closed bool

	warned    atomic.Int64 // unix nanoseconds
	published metric.Int64Counter
	dropped   metric.Int64Counter
}

// NewPublisher makes a publisher; one for a process.
func (b *Broker) NewPublisher() (*Publisher, error) {
	p := &Publisher{broker: b, topics: make(map[message.Lane]string), log: b.log, in: make(chan kafka.Message, bufferRecords)}
	for topic, lane := range b.topics() {
		p.topics[lane] = topic
	}
	var err1, err2 error
	p.published, err1 = b.meter.Int64Counter("messaging.client.sent.messages", metric.WithUnit("{message}"), metric.WithDescription("Records that Kafka took."))
	p.dropped, err2 = b.meter.Int64Counter("stormpost.publish.dropped", metric.WithUnit("{message}"), metric.WithDescription("Records left to the lanes' cursors."))
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("publisher: %w", err)
	}
	p.life, p.end = context.WithCancel(context.Background())
	p.writer = &kafka.Writer{
		Addr: b.address(), Balancer: kafka.BalancerFunc(balance), Transport: b.transport(),
		RequiredAcks: kafka.RequireAll, // the zero value asks for none
		BatchTimeout: 2 * time.Millisecond, BatchSize: flushRecords, BatchBytes: 4 << 20,
		MaxAttempts: 2, WriteBackoffMin: 20 * time.Millisecond, WriteBackoffMax: 100 * time.Millisecond,
		ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second,
	}
	for range flushers {
		p.wg.Go(p.run)
	}
	return p, nil
}

// balance spreads by submission; its last bits are the recipient's index.
func balance(m kafka.Message, partitions ...int) int {
	var n uint64
	for _, c := range m.Key {
		n = n<<8 | uint64(c)
	}
	return partitions[n>>6%uint64(len(partitions))]
}

// Publish implements ingest.Publisher.
func (p *Publisher) Publish(items []message.Item) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for i := range items {
		m := encode(p.topics[items[i].Position.Lane()], items[i])
		size := int64(len(m.Value)) + 256
		if p.closed || p.bytes.Add(size) > bufferBytes {
			if !p.closed {
				p.bytes.Add(-size)
			}
			p.drop(len(items)-i, errors.New("the buffer is full"))
			return
		}
		select {
		case p.in <- m:
		default:
			p.bytes.Add(-size)
			p.drop(len(items)-i, errors.New("the buffer is full"))
			return
		}
	}
}

func (p *Publisher) drop(n int, err error) {
	p.dropped.Add(context.Background(), int64(n))
	now, last := time.Now().UnixNano(), p.warned.Load()
	if now-last > int64(time.Second) && p.warned.CompareAndSwap(last, now) {
		p.log.Warn("not published; the lanes' cursors will find them", "count", n, "error", err)
	}
}

func (p *Publisher) run() {
	batch := make([]kafka.Message, 0, flushRecords)
	for first := range p.in {
		batch = append(batch[:0], first)
	fill:
		for len(batch) < flushRecords {
			select {
			case m, ok := <-p.in:
				if !ok {
					break fill
				}
				batch = append(batch, m)
			default:
				break fill
			}
		}
		p.flush(batch)
		var size int64
		for i := range batch {
			size += int64(len(batch[i].Value)) + 256
		}
		p.bytes.Add(-size)
		clear(batch)
	}
}

// flush tries until Kafka has taken the batch, for publishAge. A repeat is
// harmless: the second record's claim is refused.
func (p *Publisher) flush(batch []kafka.Message) {
	ctx, cancel := context.WithTimeout(p.life, publishAge)
	defer cancel()
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.MaxElapsedTime = 50*time.Millisecond, 2*time.Second, 0
	left := batch
	err := backoff.Retry(func() error {
		err := p.writer.WriteMessages(ctx, left...)
		var each kafka.WriteErrors
		if errors.As(err, &each) && len(each) == len(left) {
			rest := make([]kafka.Message, 0, each.Count())
			for i, e := range each {
				if e != nil {
					rest = append(rest, left[i])
				}
			}
			left = rest
		}
		return err
	}, backoff.WithContext(b, ctx))
	n := len(batch)
	if err != nil {
		n -= len(left)
		p.drop(len(left), err)
	}
	p.published.Add(context.Background(), int64(n), metric.WithAttributes(attribute.String("messaging.system", "kafka")))
}

// Close publishes what is in the buffer, until ctx ends.
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.in)
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
	err = errors.Join(err, p.writer.Close())
	p.writer.Transport.(*kafka.Transport).CloseIdleConnections()
	return err
}
