package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

const (
	// TakenFile is the name of a Store's file in its folder.
	TakenFile = "taken.jsonl"
	// TailLimit is how many of the newest messages List knows.
	TailLimit = 10_000
	// lineLimit bounds one line of the file: Raw as base64, and room for the
	// rest, which servers bound by their line limits.
	lineLimit = 1 << 20
)

// ErrStoreClosed is wrapped by what a closed Store's Append and Wait return.
var ErrStoreClosed = errors.New("store is closed")

// Store keeps what the simulators took in an append-only file of JSON lines.
// Appends of many goroutines share one fsync.
type Store struct {
	file   file
	noSync bool
	kick   chan struct{} // holds one signal when open has become non-empty
	done   chan struct{} // closed when the committer has ended

	mu      sync.Mutex
	closed  bool
	open    *batch        // gathers until the committer takes it
	changed chan struct{} // closed and replaced at each commit
	broken  error         // the file can't be trusted any more

	// What is committed; changed under mu by the committer alone.
	end   int64 // length of the file
	count int
	tail  []entry // ring of the newest, at most TailLimit; number n is at (n-1)%TailLimit
}

// file is what a Store needs of an *os.File.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
	Truncate(size int64) error
}

// entry is a committed line without its raw message.
type entry struct {
	taken  Taken
	offset int64
	length int
}

// batch is a group of lines that share one write and one fsync.
type batch struct {
	buf     []byte
	entries []entry // offsets count from the batch's start
	done    chan struct{}
	err     error // readable after done
}

// StoreOptions are the exceptions from how a Store usually works.
type StoreOptions struct {
	// NoSync leaves out the fsync, for benchmarks of something else: what was
	// answered still survives any kill of the process, but not the machine's.
	NoSync bool
}

// OpenStore opens dir's store, and creates both as needed. A last line that was
// torn by a kill is cut off: it was never answered. Only one process may have a
// folder's store open; others can follow its file with ReadTaken.
func OpenStore(dir string, o StoreOptions) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, TakenFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{
		file:    f,
		noSync:  o.NoSync,
		kick:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		open:    newBatch(),
		changed: make(chan struct{}),
	}
	if err := errors.Join(s.load(), syncDir(dir)); err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), f.Close())
	}
	go s.commitLoop()
	return s, nil
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Append stores ts together and returns once they are on disk. After an error
// none of them is in the file, unless the error says that the file is broken.
func (s *Store) Append(ts ...Taken) error {
	if len(ts) == 0 {
		return nil
	}
	lines := make([][]byte, len(ts))
	entries := make([]entry, len(ts))
	for i, t := range ts {
		t.ReceivedAt = t.ReceivedAt.UTC().Round(0) // as it will be read again
		line, err := json.Marshal(&t)
		if err != nil {
			return fmt.Errorf("store: encode: %w", err)
		}
		if len(line) >= lineLimit {
			return fmt.Errorf("store: a line of %d bytes, over the limit of %d", len(line), lineLimit)
		}
		lines[i] = append(line, '\n')
		t.Raw = nil
		entries[i] = entry{taken: t, length: len(lines[i])}
	}

	s.mu.Lock()
	if s.closed || s.broken != nil {
		defer s.mu.Unlock()
		return fmt.Errorf("store: append: %w", errors.Join(s.broken, closedError(s.closed)))
	}
	b := s.open
	for i, line := range lines {
		entries[i].offset = int64(len(b.buf))
		b.entries = append(b.entries, entries[i])
		b.buf = append(b.buf, line...)
	}
	select {
	case s.kick <- struct{}{}:
	default:
	}
	s.mu.Unlock()

	<-b.done
	return b.err
}

func closedError(closed bool) error {
	if closed {
		return ErrStoreClosed
	}
	return nil
}

// commitLoop makes batches durable, one after the other, until Close.
func (s *Store) commitLoop() {
	defer close(s.done)
	for range s.kick {
		s.mu.Lock()
		b := s.open
		s.open = newBatch()
		s.mu.Unlock()
		s.commit(b)
	}
}

func (s *Store) commit(b *batch) {
	defer close(b.done)
	if len(b.buf) == 0 {
		return
	}
	broken := s.write(b)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = broken
	if b.err != nil {
		return
	}
	for _, e := range b.entries {
		e.offset += s.end
		s.remember(e)
	}
	s.end += int64(len(b.buf))
	close(s.changed)
	s.changed = make(chan struct{})
}

// write puts b at the file's end and syncs it. If that fails it sets b.err and
// cuts the file back to where it was; broken says that it couldn't.
func (s *Store) write(b *batch) (broken error) {
	_, err := s.file.WriteAt(b.buf, s.end)
	if err == nil && !s.noSync {
		err = s.file.Sync()
	}
	if err == nil {
		return nil
	}
	b.err = fmt.Errorf("store: append: %w", err)
	if err := s.file.Truncate(s.end); err != nil {
		broken = fmt.Errorf("the file is broken: %w", err)
		b.err = errors.Join(b.err, broken)
	}
	return broken
}

// remember adds the next committed line. Its caller holds mu.
func (s *Store) remember(e entry) {
	if i := s.count % TailLimit; i < len(s.tail) {
		s.tail[i] = e
	} else {
		s.tail = append(s.tail, e)
	}
	s.count++
}

// Count is how many messages are stored.
func (s *Store) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// Watch returns a channel that is closed at the next commit. Take it before
// reading what you compare, and nothing is missed.
func (s *Store) Watch() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Wait returns once at least n messages are stored, or with ctx's error.
func (s *Store) Wait(ctx context.Context, n int) error {
	for {
		changed := s.Watch()
		got := s.Count()
		if got >= n {
			return nil
		}
		select {
		case <-changed:
		case <-s.done:
			return fmt.Errorf("store: wait: %w", ErrStoreClosed)
		case <-ctx.Done():
			return fmt.Errorf("store: have %d of %d: %w", got, n, ctx.Err())
		}
	}
}

// Close makes everything appended so far durable and closes the file.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		<-s.done
		return nil
	}
	s.closed = true
	close(s.kick) // appends send under mu, and no more once closed
	s.mu.Unlock()
	<-s.done
	return s.file.Close()
}
