package judge

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Accepted is one answer of 202 or 200: a line of the client's file. The same
// key may have several, of the first submission and of repeats.
type Accepted struct {
	Key       string    `json:"key"`
	ID        string    `json:"id"` // the message's
	Class     string    `json:"class"`
	Stream    string    `json:"stream"`
	Sequence  int64     `json:"sequence,omitempty"`     // 0: not numbered yet
	Tried     time.Time `json:"tried"`                  // just before the request that was answered
	At        time.Time `json:"at"`                     // when it was answered
	ExpiresAt time.Time `json:"expires_at,omitzero"`    // as the client asked for
	Supersede string    `json:"supersede_key,omitzero"` // as the client asked for
	First     time.Time `json:"first,omitzero"`         // just before the first request under the key
	Last      bool      `json:"last,omitzero"`          // of the submissions at the end, when all faults are over
	Known     bool      `json:"-"`                      // its first answer had a number
	Fresh     bool      `json:"fresh,omitzero"`         // the ledger had not known it
	Keyless   bool      `json:"keyless,omitzero"`       // without an idempotency key
}

// File is the client's file. What Append has returned is on disk. It is safe
// for concurrent use; appends share syncs.
type File struct {
	f *os.File

	mu     sync.Mutex
	batch  *appends
	busy   bool
	closed bool
}

type appends struct {
	lines []byte
	done  chan struct{}
	err   error
}

// Create makes a new file.
func Create(path string) (*File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the client's file: %w", err)
	}
	return &File{f: f}, nil
}

// Append adds a line and returns once it is synced.
func (f *File) Append(a Accepted) error {
	line, err := json.Marshal(a)
	if err != nil {
		return err
	}
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return errors.New("the client's file is closed")
	}
	if f.batch == nil {
		f.batch = &appends{done: make(chan struct{})}
	}
	b := f.batch
	b.lines = append(append(b.lines, line...), '\n')
	if f.busy {
		f.mu.Unlock()
		<-b.done
		return b.err
	}
	f.busy = true
	for f.batch != nil {
		now := f.batch
		f.batch = nil
		f.mu.Unlock()
		_, err := f.f.Write(now.lines)
		if err == nil {
			err = f.f.Sync()
		}
		now.err = err
		close(now.done)
		f.mu.Lock()
	}
	f.busy = false
	f.mu.Unlock()
	return b.err
}

// Close ends the file, once no Append is under way.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return f.f.Close()
}

// read streams a client's file, oldest first.
func read(path string, each func(Accepted)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	scan := bufio.NewScanner(f)
	scan.Buffer(nil, 1<<20)
	for n := 1; scan.Scan(); n++ {
		var a Accepted
		if err := json.Unmarshal(scan.Bytes(), &a); err != nil {
			return fmt.Errorf("%s, line %d: %w", path, n, err)
		}
		each(a)
	}
	return scan.Err()
}
