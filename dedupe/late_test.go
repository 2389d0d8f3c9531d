package dedupe_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// These tests have a server of their own, on which nothing but what they do
// takes a transaction id: the newest transaction is one that still runs.

// stoppedInserts keeps inserts into a table from going on until release, which takes no
// transaction id.
func stoppedInserts(t *testing.T, dsn, table string) (release func()) {
	t.Helper()
	exec(t, dsn, `create function stop_here() returns trigger language plpgsql as $$ begin perform pg_advisory_xact_lock_shared(1); return null; end $$`)
	exec(t, dsn, `create trigger stop_here before insert on `+table+` for each statement execute function stop_here()`)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	if _, err := conn.Exec(t.Context(), `select pg_advisory_lock(1)`); err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := conn.Exec(context.Background(), `select pg_advisory_unlock(1)`); err != nil {
			t.Error(err)
		}
	}
}

// waitsForLock waits until somebody waits for a lock of a kind.
func waitsForLock(t *testing.T, dsn, kind string) {
	t.Helper()
	eventually(t, func() (int, bool) {
		n := count(t, dsn, `select count(*) from pg_locks where not granted and locktype = $1 and database = (select oid from pg_database where datname = current_database())`, kind)
		return n, n > 0
	})
}

// quiet opens a ledger that does nothing by itself.
func quiet(t *testing.T, dsn string) *dedupe.Ledger {
	t.Helper()
	l, err := dedupe.Open(dedupe.Config{DSN: dsn, BeatEvery: 100 * time.Millisecond, GiveUp: 100 * time.Millisecond, Deadline: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// The cursor does not pass what the newest of all transactions is about to
// commit.
func TestCursorWaitsForTheNewestTransaction(t *testing.T) {
	t.Parallel()
	dsn := server(t).DSN()
	l := quiet(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	first := ledgertest.Email(t, tenant, "first", "s", "a@example.com")
	claim(t, l, ledgertest.Items(first, accept(t, l, first))[0], message.Claimed)

	release := stoppedInserts(t, dsn, "message")
	late := ledgertest.Email(t, tenant, "late", "s", "a@example.com")
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept(context.Background(), late)
		accepted <- err
	}()
	waitsForLock(t, dsn, "advisory")
	feed := func() []message.Item {
		t.Helper()
		if err := l.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		items, err := l.Unclaimed(t.Context(), late.Lane, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		return items
	}
	for range 3 {
		if items := feed(); len(items) > 0 {
			t.Fatalf("fed %v", items)
		}
	}
	release()
	if err := <-accepted; err != nil {
		t.Fatal(err)
	}
	if items := feed(); len(items) != 1 || items[0].ID != late.ID().Message(0) {
		t.Fatalf("fed %v", items)
	}
}

// A claim that was begun just before its process was given up, and commits long
// after, is found.
func TestSweepWaitsForTheNewestTransaction(t *testing.T) {
	t.Parallel()
	dsn := server(t).DSN()
	l, gone := quiet(t, dsn), quiet(t, dsn)
	it := firstItem(t, l, ledgertest.Tenant(t, l, "acme"), "k")
	if err := gone.Beat(t.Context(), nil, 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() (int, bool) {
		n := count(t, dsn, `select count(*) from process where beat_at < clock_timestamp() - interval '300 ms'`)
		return n, n == 1
	})

	release := stoppedInserts(t, dsn, "attempt")
	givesUp, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer givesUp.Close(context.Background())
	if _, err := givesUp.Exec(t.Context(), `begin; select sweep_doubts('300 ms', '30 s', '{}', '{}')`); err != nil {
		t.Fatal(err)
	}
	claimed := make(chan error, 1)
	go func() {
		_, err := gone.Claim(context.Background(), it)
		claimed <- err
	}()
	waitsForLock(t, dsn, "advisory")
	if _, err := givesUp.Exec(t.Context(), `commit`); err != nil {
		t.Fatal(err)
	}
	sweep := func() {
		t.Helper()
		if err := l.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		sweep()
	}
	release()
	if err := <-claimed; err != nil {
		t.Fatal(err)
	}
	eventually(t, func() (int, bool) {
		sweep()
		n := count(t, dsn, `select count(*) from doubt`)
		return n, n == 1
	})
}

// The cursor is not moved on by whoever looked before it was set back.
func TestCursorStaysWhereItWasSetBack(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := quiet(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	it := firstItem(t, l, tenant, "k")
	claim(t, l, it, message.Claimed)
	lane := int16(it.Position.Lane().Code())
	look := func(horizon int64) error {
		conn, err := pgx.Connect(t.Context(), dsn)
		if err != nil {
			return err
		}
		defer conn.Close(context.Background())
		_, err = conn.Exec(context.Background(), `select count(*) from unclaimed($1, $2, 10)`, lane, horizon)
		return err
	}
	if err := look(int64(it.Position)); err != nil {
		t.Fatal(err)
	}

	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `begin; lock table waiting in access exclusive mode`); err != nil {
		t.Fatal(err)
	}
	looked := make(chan error, 1)
	go func() { looked <- look(int64(it.Position) + 1<<20) }() // has read the cursor, and waits to look above it
	waitsForLock(t, dsn, "relation")
	back := int64(it.Position) - 1
	exec(t, dsn, `update lane set cursor = $1 where code = $2`, back, lane)
	if _, err := conn.Exec(t.Context(), `rollback`); err != nil {
		t.Fatal(err)
	}
	if err := <-looked; err != nil {
		t.Fatal(err)
	}
	if at := count(t, dsn, `select cursor from lane where code = $1`, lane); int64(at) != back {
		t.Errorf("the cursor is at %d, was set to %d", at, back)
	}
	if err := look(int64(it.Position) + 1<<20); err != nil {
		t.Fatal(err)
	}
	if at := count(t, dsn, `select cursor from lane where code = $1`, lane); int64(at) <= int64(it.Position) {
		t.Errorf("the cursor stays at %d", at)
	}
}

// What a stopped server comes to only after it was given up is not done: neither a
// claim, of which the worker had another answer by then, nor a heartbeat, whose
// list is an old one.
func TestLateStatementsDoNothing(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l, err := dedupe.Open(dedupe.Config{DSN: dsn + "&search_path=public,pg_catalog", Deadline: 500 * time.Millisecond, BeatEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	it := firstItem(t, l, ledgertest.Tenant(t, l, "acme"), "k")
	if err := l.Probe(t.Context()); err != nil { // it knows the server's clock
		t.Fatal(err)
	}
	key := []message.AttemptKey{{Position: it.Position, Attempt: 1}}
	if err := l.Beat(t.Context(), key, time.Second); err != nil {
		t.Fatal(err)
	}
	// The functions' clock goes ahead by what a stopped server would have slept.
	exec(t, dsn, `create function clock_timestamp() returns timestamptz language sql volatile as 'select pg_catalog.clock_timestamp() + interval ''1 second'''`)
	exec(t, dsn, `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`)
	for range 5 { // also by connections that are made anew
		if err := l.Beat(t.Context(), nil, time.Second); err == nil {
			t.Error("a late heartbeat counts")
		}
	}
	if n := count(t, dsn, `select cardinality(open_n) from process`); n != 1 {
		t.Errorf("%d attempts are listed", n)
	}
	claimed := make(chan error, 1)
	go func() {
		_, err := l.Claim(context.Background(), it)
		claimed <- err
	}()
	select {
	case err := <-claimed:
		t.Fatalf("a late claim was answered: %v", err)
	case <-time.After(time.Second): // some tries
	}
	if n := count(t, dsn, `select count(*) from attempt`); n != 0 {
		t.Errorf("a late claim made %d attempts", n)
	}
	exec(t, dsn, `drop function public.clock_timestamp`)
	if err := <-claimed; err != nil {
		t.Error(err)
	}
}

// A decision about one attempt does not settle the doubt of another.
func TestDecisionIsAboutAnAttempt(t *testing.T) {
	t.Parallel()
	l, _, it := one(t)
	claim(t, l, it, message.Claimed)
	record(t, l, it, message.Unknown, 0)
	var wrong message.FieldErrors
	if err := l.Decide(t.Context(), it.ID, 2, message.DecideResend, "ops", "r"); !errors.As(err, &wrong) || wrong[0].Problem != "is not in doubt: attempt 1 is" {
		t.Errorf("an attempt that is not in doubt: %v", err)
	}
	if err := l.Decide(t.Context(), it.ID, 1, message.DecideResend, "ops", "r"); err != nil {
		t.Fatal(err)
	}
	it = due(t, l, it.Position.Lane())
	claim(t, l, it, message.Claimed)
	record(t, l, it, message.Unknown, 0)
	if err := l.Decide(t.Context(), it.ID, 1, message.DecideResend, "ops", "r"); !errors.Is(err, message.ErrDecided) {
		t.Errorf("the same once more: %v", err)
	}
	state(t, l, it, message.StateInDoubt)
	if err := l.Decide(t.Context(), it.ID, 0, message.DecideSent, "ops", "r"); err != nil {
		t.Error(err)
	}
}

// What the only server may have alone is promised to nobody, also not to those who
// ask for the same at once.
func TestUnsureCommitIsNoPromise(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := quiet(t, dsn)
	s := ledgertest.Email(t, ledgertest.Tenant(t, l, "acme"), "k", "s", "a@example.com")
	exec(t, dsn, `create function warn() returns trigger language plpgsql as $$ begin raise warning 'canceling wait for synchronous replication due to user request'; return null; end $$`)
	exec(t, dsn, `create trigger warn before insert on message for each statement execute function warn()`)
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			if r, err := l.Accept(t.Context(), s); !errors.Is(err, message.ErrUnavailable) {
				t.Errorf("accepted: %+v, %v", r, err)
			}
		})
	}
	all.Wait()
}
