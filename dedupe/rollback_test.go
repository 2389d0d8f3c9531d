package dedupe_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/devstack"
	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/message"
)

// noticeLimit is how soon a rollback must be noticed.
const noticeLimit = 10 * time.Second

// server is a PostgreSQL of the test's own with a migrated ledger.
func server(t *testing.T) *devstack.Postgres {
	t.Helper()
	pg := teststack.NewPostgres(t)
	if _, err := dedupe.Migrate(t.Context(), pg.DSN()); err != nil {
		t.Fatal(err)
	}
	return pg
}

func firstItem(t *testing.T, l *dedupe.Ledger, tenant int32, key string) message.Item {
	t.Helper()
	s := ledgertest.Email(t, tenant, key, "s", "a@example.com")
	return ledgertest.Items(s, accept(t, l, s))[0]
}

// sentOnce makes an attempt of it, which a provider takes.
func sentOnce(t *testing.T, l *dedupe.Ledger, it message.Item) {
	t.Helper()
	claim(t, l, it, message.Claimed)
	record(t, l, it, message.Sent, 0)
}

// stopped waits until l knows, and sees that nothing is accepted or claimed.
func stopped(t *testing.T, l *dedupe.Ledger, tenant int32, it message.Item) string {
	t.Helper()
	cause := until(t, func() (string, bool) { c, _ := l.RolledBack(); return c, c != "" })
	if _, err := l.Accept(t.Context(), ledgertest.Email(t, tenant, "new", "s", "b@example.com")); !errors.Is(err, message.ErrUnavailable) || !errors.Is(err, dedupe.ErrRolledBack) {
		t.Errorf("accept: %v", err)
	}
	if _, err := l.Message(t.Context(), 0, it.ID); !errors.Is(err, dedupe.ErrRolledBack) {
		t.Errorf("a message that it may have forgotten: %v", err)
	}
	answered := make(chan message.ClaimVerdict, 1)
	go func() {
		c, err := l.Claim(context.Background(), it)
		if err == nil {
			answered <- c.Verdict
		}
	}()
	select {
	case v := <-answered:
		t.Errorf("a claim was answered: %v", v)
	case <-time.After(2 * time.Second): // some beats, each with a look
	}
	return cause
}

func until[T any](t *testing.T, so func() (T, bool)) T {
	t.Helper()
	for end := time.Now().Add(noticeLimit); ; {
		if v, ok := so(); ok {
			return v
		}
		if time.Now().After(end) {
			t.Fatalf("not within %s", noticeLimit)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// A base backup that is restored stops every process: the one that saw more, the
// one that starts with its file, and one that knows nothing.
func TestRollbackStopsEverybody(t *testing.T) {
	t.Parallel()
	pg := server(t)
	file := filepath.Join(t.TempDir(), "ledger.json")
	saw := ledgertest.OpenWith(t, dedupe.Config{DSN: pg.DSN(), StateFile: file, MaxConns: 6})
	tenant := ledgertest.Tenant(t, saw, "acme")
	old := firstItem(t, saw, tenant, "old")
	if err := pg.Backup(t.Context()); err != nil {
		t.Fatal(err)
	}
	sentOnce(t, saw, old)
	sentOnce(t, saw, firstItem(t, saw, tenant, "lost"))
	if err := pg.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if cause := stopped(t, saw, tenant, old); !strings.Contains(cause, "its log ends") {
		t.Errorf("cause: %q", cause)
	}
	stopped(t, ledgertest.OpenWith(t, dedupe.Config{DSN: pg.DSN(), MaxConns: 6}), tenant, old)
}

// What a process knew outlives it: the first connection of the next one stops
// the ledger, although nobody else was there when it was restored.
func TestRollbackIsSeenAfterARestart(t *testing.T) {
	t.Parallel()
	pg := server(t)
	file := filepath.Join(t.TempDir(), "ledger.json")
	open := func() (*dedupe.Ledger, func()) {
		l, err := dedupe.Open(dedupe.Config{DSN: pg.DSN(), StateFile: file, MaxConns: 4, BeatEvery: 200 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = l.Run(ctx, true) }()
		return l, func() { cancel(); <-done; l.Close() }
	}
	l, end := open()
	tenant := ledgertest.Tenant(t, l, "acme")
	old := firstItem(t, l, tenant, "old")
	if err := pg.Backup(t.Context()); err != nil {
		t.Fatal(err)
	}
	lost := firstItem(t, l, tenant, "lost")
	sentOnce(t, l, lost)
	<-time.After(1500 * time.Millisecond) // it is kept once a second
	end()

	// A crash of the server alone is none.
	if err := pg.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := pg.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, end = open()
	if _, err := l.Message(t.Context(), 0, lost.ID); err != nil {
		t.Fatalf("after a crash: %v", err)
	}
	claim(t, l, firstItem(t, l, tenant, "more"), message.Claimed)
	end()

	if err := pg.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, end = open()
	defer end()
	stopped(t, l, tenant, old)
}

// Who never knew the ledger hears it from Kafka: a record above all that was
// given out stops it, and isn't taken for a stranger's.
func TestRollbackIsProvenByARecord(t *testing.T) {
	t.Parallel()
	pg := server(t)
	l := ledgertest.OpenWith(t, dedupe.Config{DSN: pg.DSN(), MaxConns: 6})
	tenant := ledgertest.Tenant(t, l, "acme")
	it := firstItem(t, l, tenant, "old")
	beyond := it
	beyond.Position += 64 * 1000
	stoppedBy := make(chan struct{})
	go func() {
		defer close(stoppedBy)
		if c, err := l.Claim(context.Background(), beyond); err == nil {
			t.Errorf("it was answered: %v", c.Verdict)
		}
	}()
	if cause := stopped(t, l, tenant, it); !strings.Contains(cause, "Kafka has a record") {
		t.Errorf("cause: %q", cause)
	}
	l.Close()
	<-stoppedBy
}
