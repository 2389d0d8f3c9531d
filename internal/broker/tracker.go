package broker

import (
	"context"
	"sync"
)

// tracker knows, for one partition in one generation, which records are
// finished, and up to where all of them are. Records are added in the order of
// their offsets, and finished in any.
type tracker struct {
	mostRecords int
	mostBytes   int

	mu    sync.Mutex
	first uint64 // number of window[0]; records are numbered from 0 as they come
	// window is the records from the first that is not finished on.
	window []tracked
	bytes  int
	commit int64 // the offset to commit, or -1
	void   bool
	room   chan struct{}
}

type tracked struct {
	offset int64
	bytes  int
	done   bool
}

func newTracker(mostRecords, mostBytes int) *tracker {
	return &tracker{mostRecords: mostRecords, mostBytes: mostBytes, commit: -1, room: make(chan struct{}, 1)}
}

// add waits for room, and numbers a record. It fails with ctx's error.
func (t *tracker) add(ctx context.Context, offset int64, bytes int) (uint64, error) {
	for {
		t.mu.Lock()
		if len(t.window) == 0 || len(t.window) < t.mostRecords && t.bytes+bytes <= t.mostBytes {
			t.window = append(t.window, tracked{offset: offset, bytes: bytes})
			t.bytes += bytes
			n := t.first + uint64(len(t.window)) - 1
			t.mu.Unlock()
			return n, nil
		}
		t.mu.Unlock()
		select {
		case <-t.room:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// finish notes that record n is finished. Again does nothing.
func (t *tracker) finish(n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n < t.first || t.window[n-t.first].done {
		return
	}
	w := &t.window[n-t.first]
	w.done = true
	t.bytes -= w.bytes
	passed := 0
	for passed < len(t.window) && t.window[passed].done {
		if !t.void {
			t.commit = t.window[passed].offset + 1
		}
		passed++
	}
	if passed > 0 {
		t.first += uint64(passed)
		t.window = t.window[passed:] // append moves it to the front when it is out of room
		if len(t.window) == 0 {
			t.window = nil
		}
	}
	select {
	case t.room <- struct{}{}:
	default:
	}
}

// committable is the offset below which everything is finished, or -1 when
// nothing is yet.
func (t *tracker) committable() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.commit
}

// begin says that records come from offset on, whatever was committed before:
// that was of another log.
func (t *tracker) begin(offset int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.commit = offset
}

// forget makes 0 the offset to commit, for good: the offsets that were added
// are of a log that is gone, and the one that took its name is to be read from
// its beginning.
func (t *tracker) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.commit, t.void = 0, true
}
