package smtp

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// letter is one file in the maildir.
type letter struct {
	id    string // Message-ID, without angle brackets
	trace []byte // what the servers put before it
	text  []byte // the message as it was sent, with CRLF
	queue string // Postfix's id of the hand-over
}

var (
	messageIDField = regexp.MustCompile(`(?mi)^Message-ID: <([^>]+)>`)
	queueID        = regexp.MustCompile(`\(Postfix\)\s+with \w+ id (\w+)`)
)

// arrived waits until Postfix has delivered all that it took, and reads it, by
// Message-ID.
func (s *peers) arrived(t *testing.T) map[string][]letter {
	t.Helper()
	await(t, "Postfix's queue is empty", func() bool {
		// In the order in which a message moves (qmgr(8)).
		for _, queue := range []string{"maildrop", "incoming", "active", "deferred"} {
			if holdsFiles(t, filepath.Join(s.dir, "q", queue)) {
				return false
			}
		}
		return true
	})
	names, err := filepath.Glob(filepath.Join(s.dir, "mail", "all", "new", "*"))
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]letter)
	for _, name := range names {
		l, ok := s.seen[name]
		if !ok {
			l = readLetter(t, name)
			s.seen[name] = l
		}
		all[l.id] = append(all[l.id], l)
	}
	return all
}

func holdsFiles(t *testing.T, dir string) (held bool) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // moved on meanwhile
			return nil
		case err != nil:
			return err
		case e.Type().IsRegular():
			// Without execute permission it is one that Postfix has not taken, left by a
			// client that went, or a kill (MAIL_QUEUE_STAT_READY in mail_queue.h).
			st, err := e.Info()
			if held = err == nil && st.Mode()&0o100 != 0; held {
				return fs.SkipAll
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return held
}

func readLetter(t *testing.T, name string) letter {
	t.Helper()
	b, err := os.ReadFile(name) //nolint:gosec // below the test's own folder
	if err != nil {
		t.Fatal(err)
	}
	// Stormpost's first field is From; those of the servers come before it.
	at := bytes.Index(b, []byte("\nFrom: "))
	id, queue := messageIDField.FindSubmatch(b), queueID.FindSubmatch(b)
	if at < 0 || id == nil || queue == nil {
		t.Fatalf("what arrived is no message of Stormpost's by way of Postfix:\n%.2000s", b)
	}
	return letter{
		id: string(id[1]), trace: b[:at+1], text: bytes.ReplaceAll(b[at+1:], []byte("\n"), []byte("\r\n")),
		queue: string(queue[1]),
	}
}

func (l letter) String() string { return fmt.Sprintf("%s, queued as %s", l.id, l.queue) }
