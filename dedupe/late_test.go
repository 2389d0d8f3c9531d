package dedupe_test

import (
	"context"
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
