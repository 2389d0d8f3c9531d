package dedupe_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
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
	cause := eventually(t, func() (string, bool) { c, _ := l.RolledBack(); return c, c != "" })
	if _, err := l.Accept(t.Context(), ledgertest.Email(t, tenant, "new", "s", "b@example.com")); !errors.Is(err, message.ErrUnavailable) || !errors.Is(err, dedupe.ErrRolledBack) {
		t.Errorf("accept: %v", err)
	}
	if _, err := l.Message(t.Context(), 0, it.ID); !errors.Is(err, dedupe.ErrRolledBack) {
		t.Errorf("a message that it may have forgotten: %v", err)
	}
	unanswered(t, l, it, 2*time.Second) // some beats, each with a look
	return cause
}

// unanswered sees that no claim is answered for so long.
func unanswered(t *testing.T, l *dedupe.Ledger, it message.Item, patience time.Duration) {
	t.Helper()
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
	case <-time.After(patience):
	}
}

func eventually[T any](t *testing.T, so func() (T, bool)) T {
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
	lost := firstItem(t, saw, tenant, "lost")
	sentOnce(t, saw, lost)
	if err := pg.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Whoever asks first, by the connection that finds it out, is not told that
	// there is none.
	eventually(t, func() (any, bool) {
		_, err := saw.Message(t.Context(), 0, lost.ID)
		if !errors.Is(err, message.ErrUnavailable) {
			t.Fatalf("what became of a message that it has forgotten: %v", err)
		}
		return nil, errors.Is(err, dedupe.ErrRolledBack)
	})
	if cause := stopped(t, saw, tenant, old); !strings.Contains(cause, "its log ends") && !strings.Contains(cause, "its highest submission") {
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

// What is known of lost messages comes back as it was: the same id, position
// and number; what was sent is sent, what was claimed is in doubt until its worker
// tells, and the rest may be claimed. Positions and numbers go on beyond.
// Another ledger behind the DSN is no rollback of it: this process leaves it
// alone, and nobody else is stopped.
func TestAnotherLedgerIsLeftAlone(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "ledger.json")
	open := func(dsn, file string) (*dedupe.Ledger, func()) {
		l, err := dedupe.Open(dedupe.Config{DSN: dsn, StateFile: file, MaxConns: 4})
		if err != nil {
			t.Fatal(err)
		}
		return l, l.Close
	}
	l, end := open(ledgertest.DSN(t), file)
	tenant := ledgertest.Tenant(t, l, "acme")
	it := firstItem(t, l, tenant, "k")
	end()
	other := ledgertest.DSN(t)
	l, end = open(other, file)
	defer end()
	if err := l.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if cause := stopped(t, l, tenant, it); !strings.Contains(cause, file) {
		t.Errorf("cause: %q", cause)
	}
	l2 := ledgertest.Open(t, other)
	firstItem(t, l2, ledgertest.Tenant(t, l2, "acme"), "k")
}

// What a rolled-back ledger lost for good, and the trail tells of, is not sent
// again when it is submitted again: each recipient has what was told of it.
// keptOut sees that l claims nothing while another transaction keeps it from
// seeing or noting the rollback, and notes it once that has ended.
func keptOut(t *testing.T, dsn string, l *dedupe.Ledger, it message.Item, unlock func()) {
	t.Helper()
	unanswered(t, l, it, 3*time.Second) // some tries
	unlock()
	eventually(t, func() (int, bool) {
		n := count(t, dsn, `select count(*) from rollback where closed_at is null`)
		return n, n == 1
	})
}

const notingElsewhere = `insert into rollback (cause, back_to) values ('seen by another, who does not commit it', 'epoch')`

// A connection is not used before it was looked at, and before the rollback that
// it shows is noted.
func TestRollbackThatANewConnectionCannotNote(t *testing.T) {
	t.Parallel()
	for name, busy := range map[string]string{"see": `lock lineage in access exclusive mode`, "note": notingElsewhere} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn, file := ledgertest.DSN(t), filepath.Join(t.TempDir(), "ledger.json")
			before, err := dedupe.Open(dedupe.Config{DSN: dsn, StateFile: file, MaxConns: 4})
			if err != nil {
				t.Fatal(err)
			}
			it := firstItem(t, before, ledgertest.Tenant(t, before, "acme"), "old")
			before.Close()
			knew, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			ahead := regexp.MustCompile(`"flushed":\d+`).ReplaceAll(knew, []byte(`"flushed":1000000000000000000`))
			if err := os.WriteFile(file, ahead, 0o600); err != nil {
				t.Fatal(err)
			}
			unlock := lock(t, dsn, busy)
			keptOut(t, dsn, ledgertest.OpenWith(t, dedupe.Config{DSN: dsn, StateFile: file, MaxConns: 4, Deadline: 2 * time.Second}), it, unlock)
		})
	}
}

// A process whose house has seen a rollback stands still before that is noted.
func TestRollbackThatTheHouseCannotNote(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.OpenWith(t, dedupe.Config{DSN: dsn, MaxConns: 4, Deadline: 2 * time.Second})
	tenant := ledgertest.Tenant(t, l, "acme")
	it := firstItem(t, l, tenant, "old")
	firstItem(t, l, tenant, "lost")
	unlock := lock(t, dsn, notingElsewhere)
	exec(t, dsn, `with lost as (delete from message where seq = 2) select setval('position', 1)`)
	eventually(t, func() (string, bool) { c, _ := l.RolledBack(); return c, c != "" })
	keptOut(t, dsn, l, it, unlock)
}

// What was failed, in doubt or sent in the backup, and was sent again since by a
// replay or a decision, is as the trail tells it; the decision, which no topic
// has, comes back for it.

// A process that knew nothing has worked on the restored ledger before anybody
// noticed: the ledger's history still ends where the backup's did.
func TestTheHistoryEndsBeforeWhatWasNotNoticed(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	exec(t, dsn, `update pulse set at = now() - interval '2 hours'`)
	l := ledgertest.Open(t, dsn)
	it := firstItem(t, l, ledgertest.Tenant(t, l, "acme"), "old")
	eventually(t, func() (any, bool) {
		return nil, count(t, dsn, `select count(*) from pulse where at > now() - interval '1 minute'`) == 1
	})
	it.Position += 1 << 20 // what Kafka has of a message that is forgotten
	go func() { _, _ = l.Claim(context.Background(), it) }()
	eventually(t, func() (string, bool) { c, _ := l.RolledBack(); return c, c != "" })
	if ago := count(t, dsn, `select extract(epoch from now() - back_to)::int / 60 from rollback`); ago < 119 || ago > 121 {
		t.Errorf("its history is known up to %d minutes ago, want 120", ago)
	}
}

// What a rolled-back ledger has forgotten isn't missing in it: it says nothing of
// what is complete, in doubt or failed, and takes no events of what it may not know.
func TestARolledBackLedgerSaysNothing(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	it := firstItem(t, l, tenant, "old")
	exec(t, dsn, `insert into rollback (cause, back_to) values ('a restore', now())`)
	eventually(t, func() (string, bool) { c, _ := l.RolledBack(); return c, c != "" })
	ctx := t.Context()
	for name, ask := range map[string]func() error{
		"stream":         func() error { _, err := l.AuditPart(ctx, tenant, "s", message.Range{}); return err },
		"lanes":          func() error { _, err := l.AuditLanes(ctx, message.Lanes(), func(_, _ int64) {}); return err },
		"doubts":         func() error { _, err := l.Doubts(ctx, "", 10); return err },
		"count":          func() error { _, err := l.CountDoubts(ctx, message.DoubtFilter{}); return err },
		"look":           func() error { _, err := l.LookReplay(ctx, message.ReplayFilter{}, ""); return err },
		"replay":         func() error { _, err := l.AddReplay(ctx, message.Replay{Rate: 1, Reason: "r", By: "b"}); return err },
		"replay by name": func() error { _, err := l.ReplayMessage(ctx, it.ID, 1, "b", "r"); return err },
		"lease":          func() error { _, err := l.LeaseReplays(ctx, time.Second); return err },
		"step":           func() error { _, err := l.StepReplay(ctx, &message.Replay{}, 1, 1); return err },
		"event": func() error {
			return l.Tell(ctx, []message.ProviderEvent{{ID: it.ID, Kind: "delivered", Provider: "p", At: time.Now()}})
		},
	} {
		if err := ask(); !errors.Is(err, dedupe.ErrRolledBack) || !errors.Is(err, message.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
