package dedupe

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// linger is how long a second flush waits for company.
const linger = 2 * time.Millisecond

var errClosed = errors.New("the ledger is closed")

// batcher gathers concurrent calls into batches: a flusher takes what is there,
// so a lone call goes at once. Only while another flush is under way it lingers
// for what comes within the next moment: a commit for a handful of rows costs
// about as much as one for hundreds.
type batcher[T any] struct {
	in    chan T
	most  int
	flush func([]T) // answers every call
	busy  atomic.Int32

	mu     sync.RWMutex
	closed bool
}

func newBatcher[T any](wg *sync.WaitGroup, most, flushers int, flush func([]T)) *batcher[T] {
	b := &batcher[T]{in: make(chan T, 4*most), most: most, flush: flush}
	for range flushers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			b.run()
		}()
	}
	return b
}

func (b *batcher[T]) run() {
	batch := make([]T, 0, b.most)
	for first := range b.in {
		batch = append(batch[:0], first)
		if b.busy.Add(1) > 1 && len(b.in) < b.most/2 {
			time.Sleep(linger)
		}
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
		b.flush(batch)
		b.busy.Add(-1)
		clear(batch)
	}
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
