package dedupe

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// spacing is how far apart batches begin while calls come thick.
const spacing = 8 * time.Millisecond

// leastQueue is how many calls a batcher has room for in any case: more than a
// process has senders.
const leastQueue = 4096

var errClosed = errors.New("the ledger is closed")

// batcher gathers concurrent calls into batches: a flusher takes what is there,
// so a lone call goes at once. Where calls come thick, which is when another
// flush is under way or the last one had company, the next begins a spacing
// after the last: a commit for a handful of rows costs about as much as one for
// a hundred, and on a busy machine that cost is what calls wait for.
type batcher[T any] struct {
	in    chan T
	most  int
	flush func([]T) // answers every call
	busy  atomic.Int32

	flushing sync.WaitGroup // until stopped, and all is answered

	gather chan struct{} // full while a batch is gathered
	size   int           // of the last batch
	began  time.Time

	mu     sync.RWMutex
	closed bool
}

func newBatcher[T any](wg *sync.WaitGroup, most, flushers int, flush func([]T)) *batcher[T] {
	b := &batcher[T]{in: make(chan T, max(4*most, leastQueue)), most: most, flush: flush, gather: make(chan struct{}, 1)}
	for range flushers {
		b.flushing.Add(1)
		wg.Go(func() {
			defer b.flushing.Done()
			b.run()
		})
	}
	return b
}

func (b *batcher[T]) run() {
	batch := make([]T, 0, b.most)
	for {
		if batch = b.next(batch[:0]); len(batch) == 0 {
			return
		}
		b.flush(batch)
		b.busy.Add(-1)
		clear(batch)
	}
}

// next appends the calls of the next batch to batch, and counts it as busy. None
// means that the batcher was stopped.
func (b *batcher[T]) next(batch []T) []T {
	b.gather <- struct{}{}
	defer func() { <-b.gather }()
	first, ok := <-b.in
	if !ok {
		return batch
	}
	batch = append(batch, first)
	if thick := b.size > 1 || b.busy.Load() > 0; thick && len(b.in) < b.most/2 {
		time.Sleep(time.Until(b.began.Add(spacing)))
	}
	b.busy.Add(1)
	b.began = time.Now()
fill:
	for len(batch) < b.most {
		select {
		case v, ok := <-b.in:
			if !ok {
				break fill
			}
			batch = append(batch, v)
		default:
			break fill
		}
	}
	b.size = len(batch)
	return batch
}

// put hands v to a flusher, waiting for room. Once it returned nil, v will be
// answered.
func (b *batcher[T]) put(ctx context.Context, v T) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.closed {
		return errClosed
	}
	select {
	case b.in <- v:
		return nil
	default:
	}
	select {
	case b.in <- v:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stop takes no more calls; those taken are answered.
func (b *batcher[T]) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.closed = true
		close(b.in)
	}
}
