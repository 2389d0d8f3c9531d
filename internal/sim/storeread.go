package sim

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// ErrCorrupt is wrapped by errors about a line, other than a torn last one,
// that is not a Taken.
var ErrCorrupt = errors.New("corrupt line")

// Numbered is a Taken with its number: 1 for the file's first line. It never
// changes.
type Numbered struct {
	N int
	Taken
}

// List is the newest messages, newest first, without their Raw: of the last
// TailLimit those that keep accepts (all if it is nil), at most limit (all if
// it is 0).
func (s *Store) List(limit int, keep func(*Taken) bool) []Numbered {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []Numbered{}
	for n := s.count; n > s.count-len(s.tail); n-- {
		t := &s.tail[(n-1)%TailLimit].taken
		if keep != nil && !keep(t) {
			continue
		}
		list = append(list, Numbered{n, *t})
		if len(list) == limit {
			break
		}
	}
	return list
}

// Get reads message n with its Raw; ok is false if it isn't one of the last
// TailLimit.
func (s *Store) Get(n int) (t Taken, ok bool, err error) {
	s.mu.Lock()
	if n < 1 || n > s.count || n <= s.count-len(s.tail) {
		s.mu.Unlock()
		return t, false, nil
	}
	e := s.tail[(n-1)%TailLimit]
	s.mu.Unlock()

	line := make([]byte, e.length)
	if _, err := s.file.ReadAt(line, e.offset); err != nil {
		return t, false, fmt.Errorf("store: read %d: %w", n, err)
	}
	if err := json.Unmarshal(line, &t); err != nil {
		return t, false, fmt.Errorf("store: read %d: %w: %w", n, ErrCorrupt, err)
	}
	return t, true, nil
}

// Newest streams what is stored now, newest first and without Raw, until f
// returns an error, which Newest returns: the last TailLimit from memory, what
// is older from the file, of which it holds a block at a time. f mustn't change
// or keep its argument.
func (s *Store) Newest(f func(*Taken) error) error {
	s.mu.Lock()
	tail, begun := make([]Taken, 0, len(s.tail)), int64(0)
	for n := s.count; n > s.count-len(s.tail); n-- {
		e := &s.tail[(n-1)%TailLimit]
		tail, begun = append(tail, e.taken), e.offset
	}
	s.mu.Unlock()
	for i := range tail {
		if err := f(&tail[i]); err != nil {
			return err
		}
	}
	return eachLineBack(s.file, begun, func(offset int64, line []byte) error {
		var t Taken
		if err := json.Unmarshal(line, &t); err != nil {
			return fmt.Errorf("%w at byte %d: %w", ErrCorrupt, offset, err)
		}
		t.Raw = nil
		return f(&t)
	})
}

// All streams what is stored now from the file, oldest first, until f returns
// an error, which All returns.
func (s *Store) All(f func(Taken) error) error {
	s.mu.Lock()
	end := s.end
	s.mu.Unlock()
	return eachTaken(io.NewSectionReader(s.file, 0, end), f)
}

// allOf is All of one provider's, without parsing others.
func (s *Store) allOf(provider string, f func(Taken) error) error {
	s.mu.Lock()
	end := s.end
	s.mu.Unlock()
	mark := []byte(`"provider":"` + provider + `"`)
	return eachLine(io.NewSectionReader(s.file, 0, end), func(offset int64, line []byte) error {
		if !bytes.Contains(line, mark) {
			return nil
		}
		var t Taken
		if err := json.Unmarshal(line, &t); err != nil {
			return fmt.Errorf("%w at byte %d: %w", ErrCorrupt, offset, err)
		}
		return f(t)
	})
}

// ReadTaken streams the Store's file at path, oldest first, until f returns an
// error, which ReadTaken returns. The file may be in use by another process;
// a last line without its end is left out.
func ReadTaken(path string, f func(Taken) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return eachTaken(file, f)
}

func eachTaken(r io.Reader, f func(Taken) error) error {
	return eachLine(r, func(offset int64, line []byte) error {
		var t Taken
		if err := json.Unmarshal(line, &t); err != nil {
			return fmt.Errorf("%w at byte %d: %w", ErrCorrupt, offset, err)
		}
		return f(t)
	})
}

// eachLine calls f with each whole line, its end included, and where it begins.
func eachLine(r io.Reader, f func(offset int64, line []byte) error) error {
	br := bufio.NewReaderSize(r, lineLimit)
	for offset := int64(0); ; {
		line, err := br.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("%w at byte %d: over %d bytes", ErrCorrupt, offset, lineLimit)
		case err != nil:
			return fmt.Errorf("read at byte %d: %w", offset, err)
		}
		if err := f(offset, line); err != nil {
			return err
		}
		offset += int64(len(line))
	}
}

// eachLineBack is eachLine from the last to the first of the lines that end
// bytes are made of.
func eachLineBack(r io.ReaderAt, end int64, f func(offset int64, line []byte) error) error {
	buf := make([]byte, min(end, lineLimit+1)) // a line, and the end of the one before it
	for end > 0 {
		block := buf[:min(end, lineLimit+1)]
		start := end - int64(len(block))
		if n, err := r.ReadAt(block, start); n < len(block) {
			return fmt.Errorf("read at byte %d: %w", start, err)
		}
		before := end
		for len(block) > 0 {
			from := bytes.LastIndexByte(block[:len(block)-1], '\n') + 1
			if from == 0 && start > 0 {
				break // it may begin before the block
			}
			if err := f(start+int64(from), block[from:]); err != nil {
				return err
			}
			block = block[:from]
			end = start + int64(from)
		}
		if end == before {
			return fmt.Errorf("%w before byte %d: over %d bytes", ErrCorrupt, end, lineLimit)
		}
	}
	return nil
}

// load reads the file at start and cuts off what follows its last whole line.
// It counts all lines, but parses the newest ones only, so that it stays quick
// with millions.
func (s *Store) load() error {
	err := eachLine(io.NewSectionReader(s.file, 0, 1<<62), func(offset int64, line []byte) error {
		s.remember(entry{offset: offset, length: len(line)})
		s.end = offset + int64(len(line))
		return nil
	})
	if err != nil {
		return err
	}
	for i := range s.tail {
		if err := s.parse(&s.tail[i]); err != nil {
			return err
		}
	}
	return s.file.Truncate(s.end)
}

func (s *Store) parse(e *entry) error {
	line := make([]byte, e.length)
	if _, err := s.file.ReadAt(line, e.offset); err != nil {
		return err
	}
	if err := json.Unmarshal(line, &e.taken); err != nil {
		return fmt.Errorf("%w at byte %d: %w", ErrCorrupt, e.offset, err)
	}
	e.taken.Raw = nil
	return nil
}
