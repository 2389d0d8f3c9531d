package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/segmentio/kafka-go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// appendPatience is how long Kafka may take to keep a submission. The
	// request's own limit comes first, when the ledger's patience was spent, too.
	appendPatience = 8 * time.Second
	// journalFlushers write at once, for each class.
	journalFlushers = 2
	journalRecords  = 500 // of one write
	// journalFlush is how many bytes of content one write has, at about most.
	journalFlush = 4 << 20
)

// Journal writes to the journals, in micro-batches: while one is written, which
// waits for disks, the next one gathers. It is safe for concurrent use.
type Journal struct {
	broker *Broker
	writer *kafka.Writer
	trans  *kafka.Transport
	taken  metric.Int64Counter
	failed metric.Int64Counter
	tail   *Tail // told of each that Kafka took
	queues map[message.Class]chan *keeping
	wg     sync.WaitGroup
	life   context.Context
	end    context.CancelFunc
}

// keeping is a submission on its way into its journal.
type keeping struct {
	ctx  context.Context // of whoever waits
	m    kafka.Message
	done chan error // has room for the one answer
}

// balance spreads evenly, since keys are hashes.
func balance(m kafka.Message, partitions ...int) int {
	var n uint64
	for _, c := range m.Key {
		n = n<<8 | uint64(c)
	}
	return partitions[n>>6%uint64(len(partitions))]
}

// NewJournal makes a journal's writer; one for a process. tail learns of what
// is written at once.
func (b *Broker) NewJournal(tail *Tail) (*Journal, error) {
	taken, err1 := b.meter.Int64Counter("stormpost.journal.appended", metric.WithUnit("{submission}"), metric.WithDescription("Submissions that the journal took while the ledger was away."))
	failed, err2 := b.meter.Int64Counter("stormpost.journal.refused", metric.WithUnit("{submission}"), metric.WithDescription("Submissions that no store took."))
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	t := b.transport()
	j := &Journal{broker: b, trans: t, taken: taken, failed: failed, tail: tail, queues: make(map[message.Class]chan *keeping), writer: &kafka.Writer{
		Addr: b.address(), Balancer: kafka.BalancerFunc(balance), Transport: t,
		RequiredAcks: kafka.RequireAll, // the zero value asks for none
		BatchTimeout: 2 * time.Millisecond, BatchSize: journalRecords, BatchBytes: maxJournalBatch,
		MaxAttempts: 3, WriteBackoffMin: 50 * time.Millisecond, WriteBackoffMax: 250 * time.Millisecond,
		ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second,
	}}
	j.life, j.end = context.WithCancel(context.Background())
	for c := message.Transactional; c <= message.Campaign; c++ {
		queue := make(chan *keeping, journalRecords)
		j.queues[c] = queue
		for range journalFlushers {
			j.wg.Go(func() { j.flush(queue) })
		}
	}
	return j, nil
}

// Append implements ingest.Journal: it returns nil once every in-sync replica
// has the record on disk.
func (j *Journal) Append(ctx context.Context, sub message.Journaled) error {
	class := sub.Lane.Class
	limit, cancel := context.WithTimeout(ctx, appendPatience)
	defer cancel()
	k := &keeping{limit, encodeJournaled(j.broker.journalTopic(class), sub), make(chan error, 1)}
	var err error
	select {
	case j.queues[class] <- k:
		select {
		case err = <-k.done:
		case <-limit.Done():
			err = limit.Err()
		}
	case <-limit.Done():
		err = limit.Err()
	}
	attrs := metric.WithAttributeSet(attribute.NewSet(attribute.String("class", class.String())))
	if err != nil {
		j.failed.Add(ctx, 1, attrs)
		return fmt.Errorf("journal: %w: %w", message.ErrUnavailable, err)
	}
	j.taken.Add(ctx, 1, attrs)
	j.tail.wrote(sub)
	return nil
}

// flush writes what comes, as much at once as has gathered.
func (j *Journal) flush(queue <-chan *keeping) {
	for {
		var batch []*keeping
		select {
		case k := <-queue:
			batch = append(batch, k)
		case <-j.life.Done():
			return
		}
		for size, more := len(batch[0].m.Value), true; more && len(batch) < journalRecords && size < journalFlush; {
			select {
			case k := <-queue:
				batch, size = append(batch, k), size+len(k.m.Value)
			default:
				more = false
			}
		}
		j.write(batch)
	}
}

// write writes a batch. A leader that just died, or a topic that is just being
// made, is there in a moment, so what fails is tried again while anybody waits.
func (j *Journal) write(batch []*keeping) {
	limit, cancel := context.WithTimeout(j.life, appendPatience)
	defer cancel()
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval, wait.MaxElapsedTime = 50*time.Millisecond, 500*time.Millisecond, 0
	for {
		messages := make([]kafka.Message, 0, len(batch))
		waiting := batch[:0]
		for _, k := range batch {
			if err := k.ctx.Err(); err != nil {
				k.done <- err
				continue
			}
			waiting, messages = append(waiting, k), append(messages, k.m)
		}
		batch = waiting
		if len(batch) == 0 {
			return
		}
		err := j.writer.WriteMessages(limit, messages...)
		var each kafka.WriteErrors
		several := errors.As(err, &each) && len(each) == len(batch)
		left := batch[:0]
		for i, k := range batch {
			failed := err
			if several {
				failed = each[i]
			}
			switch {
			case failed == nil:
				k.done <- nil
			case limit.Err() != nil:
				k.done <- failed
			default:
				left = append(left, k)
			}
		}
		if batch = left; len(batch) == 0 {
			return
		}
		pause := time.NewTimer(wait.NextBackOff())
		select {
		case <-pause.C:
		case <-limit.Done():
			pause.Stop()
		}
	}
}

// Close ends the writer, after what is being written. Nobody may append any more.
func (j *Journal) Close() error {
	defer j.trans.CloseIdleConnections()
	j.end()
	j.wg.Wait()
	return j.writer.Close()
}
