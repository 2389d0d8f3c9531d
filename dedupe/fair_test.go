package dedupe_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/message"
)

// pile accepts n messages of tenant, many at a time.
func pile(t *testing.T, l *dedupe.Ledger, tenant int32, stream string, n int) (items []message.Item) {
	t.Helper()
	var mu sync.Mutex
	next := make(chan int, n)
	for i := range n {
		next <- i
	}
	close(next)
	var wg sync.WaitGroup
	for range 128 {
		wg.Go(func() {
			for i := range next {
				s := ledgertest.Email(t, tenant, fmt.Sprintf("%s-%d", stream, i), stream, "a@example.com")
				r, err := l.Accept(t.Context(), s)
				for errors.Is(err, message.ErrUnavailable) && t.Context().Err() == nil { // a busy machine
					r, err = l.Accept(t.Context(), s)
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				items = append(items, ledgertest.Items(s, r)...)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return items
}

// fairUntil asks until ok likes what came.
func fairUntil(t *testing.T, l *dedupe.Ledger, lane message.Lane, ok func([]message.Item) bool) (items []message.Item, took time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		began := time.Now()
		items, err := l.Fair(t.Context(), lane, 64)
		if err != nil {
			t.Fatal(err)
		}
		if ok(items) {
			return items, time.Since(began)
		}
		if time.Now().After(deadline) {
			t.Fatalf("the turns brought %d items", len(items))
		}
	}
}

// Another tenant's message, behind a backlog that nobody has touched, comes in
// the next round, and so does its retry behind a backlog of retries.
func TestFairFindsWhoIsBehindABacklog(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	hog, other := ledgertest.Tenant(t, l, "hog"), ledgertest.Tenant(t, l, "other")
	lane := message.Lane{Class: message.Transactional, Channel: message.ChannelEmail}
	n := teststack.Scaled(200_000)
	pile(t, l, hog, "mass", n)
	if items, err := l.Fair(t.Context(), lane, 64); err != nil || len(items) != 0 {
		t.Errorf("a tenant alone: %d items, %v", len(items), err)
	}
	s := ledgertest.Email(t, other, "one", "s", "b@example.com")
	it := ledgertest.Items(s, accept(t, l, s))[0]
	mine := func(items []message.Item) int {
		for i := range items {
			if items[i].Position == it.Position && items[i].Attempt == it.Attempt {
				return i + 1
			}
		}
		return 0
	}
	items, took := fairUntil(t, l, lane, func(items []message.Item) bool { return mine(items) > 0 })
	if place := mine(items); place > 2 || len(items) > 9 {
		t.Errorf("it is number %d of %d", place, len(items))
	}
	t.Logf("behind %d messages it was found in %s", n, took)

	// All of the hog's become due retries; then the other one's.
	exec(t, dsn, `insert into attempt (n, no, kind, worker, token, at) select n, 1, 1, 0, 0, now() from message where tenant = $1`, hog)
	exec(t, dsn, `insert into outcome (n, no, kind, at) select n, 1, 2, now() from message where tenant = $1`, hog)
	exec(t, dsn, `insert into waiting (n, no, lane, due) select n, 2, 5, now() - interval '1 hour' from message where tenant = $1`, hog)
	claim(t, l, it, message.Claimed)
	record(t, l, it, message.Deferred, time.Nanosecond)
	it.Attempt = 2
	items, took = fairUntil(t, l, lane, func(items []message.Item) bool { return mine(items) > 0 })
	if place := mine(items); place > 2 {
		t.Errorf("its retry is number %d of %d", place, len(items))
	}
	t.Logf("behind %d retries it was found in %s", n, took)
	claim(t, l, it, message.Claimed)
	record(t, l, it, message.Sent, 0)
	if _, err := l.Fair(t.Context(), lane, 64); err != nil {
		t.Fatal(err)
	}
	audit, err := l.AuditLanes(t.Context(), []message.Lane{lane}, func(int64, int64) {})
	if err != nil || len(audit) != 1 || !audit[0].AddsUp() {
		t.Errorf("audit: %+v, %v", audit, err)
	}
}

// Many tenants, more than one round looks at, each with messages: all of them
// are brought, and none twice once it is claimed.
func TestFairComesRound(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	lane := message.Lane{Class: message.Transactional, Channel: message.ChannelEmail}
	want := make(map[message.Position]bool)
	for i := range 450 {
		tenant := ledgertest.Tenant(t, l, fmt.Sprintf("tenant-%d", i))
		if i%3 > 0 {
			continue
		}
		for j := range 10 {
			s := ledgertest.Email(t, tenant, fmt.Sprint(j), "s", "a@example.com")
			want[ledgertest.Items(s, accept(t, l, s))[0].Position] = true
		}
	}
	for deadline := time.Now().Add(30 * time.Second); len(want) > 0; {
		items, err := l.Fair(t.Context(), lane, 64)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range items {
			claim(t, l, it, message.Claimed)
			if !want[it.Position] {
				t.Errorf("%s came again", it.Position)
			}
			delete(want, it.Position)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d never came", len(want))
		}
	}
}

// A tenant's backlog is what it has from its first unclaimed message on, though
// another's keeps the lane's cursor down.
func TestBacklogsByTenant(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	hog, done, idle := ledgertest.Tenant(t, l, "hog"), ledgertest.Tenant(t, l, "done"), ledgertest.Tenant(t, l, "idle")
	lane := message.Lane{Class: message.Transactional, Channel: message.ChannelEmail}
	for i, tenant := range []int32{hog, done, hog, done} {
		pile(t, l, tenant, fmt.Sprint("s", i), 1500)
	}
	exec(t, dsn, `insert into attempt (n, no, kind, worker, token, at) select n, 1, 1, 0, 0, now() from message where tenant = $1`, done)
	exec(t, dsn, `insert into attempt (n, no, kind, worker, token, at) select n, 1, 1, 0, 0, now() from message where tenant = $1 order by n limit 100`, hog)
	all, err := l.Backlogs(t.Context(), 2000)
	if err != nil {
		t.Fatal(err)
	}
	b := all[0]
	if b.Lane != lane || b.Total != 2900 || all[1].Tenants != nil {
		t.Errorf("%+v", all[:2])
	}
	if n := b.Tenants[hog]; n < 2900 || n > 3000 {
		t.Errorf("the hog has %d, want 2,900 and what the bisection leaves", n)
	}
	if n := b.Tenants[done]; n > 1000 {
		t.Errorf("whose messages are all claimed has %d", n)
	}
	if _, ok := b.Tenants[idle]; ok {
		t.Error("who has nothing is counted")
	}
}

// What a round reads doesn't grow with the backlog, whatever statistics say: with
// those of one tenant that has nearly everything, any index may seem as good.
func TestFairReadsLittle(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l, err := dedupe.Open(dedupe.Config{DSN: dsn})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	hog, other := ledgertest.Tenant(t, l, "hog"), ledgertest.Tenant(t, l, "other")
	n := teststack.Scaled(1_000_000)
	const rows = `insert into message (n, stream, seq, tenant, test, id, recipient, accepted_at, expires_at)
		select (5::bigint << 57) | (i << 6), $1::int, i, $1::int, false, decode(repeat('00', 24), 'hex'), 'a', now(), now() + '1 day' from generate_series($2::bigint, $3::bigint) i`
	exec(t, dsn, rows, hog, 1, n)
	exec(t, dsn, rows, other, n+1, n+3)
	const leaves = `insert into waiting (n, no, lane, due) select n, 1, 5, now() - interval '1 hour' from message where seq % 2 = 0 order by n`
	read := func(when string) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var found, fetched int
		if err := tx.QueryRow(t.Context(), `select count(n) from fair(5::smallint, (6::bigint << 57) - 1, $1, '{0,0}', 8)`, []int32{hog, other}).Scan(&found); err != nil {
			t.Fatal(err)
		}
		if err := tx.QueryRow(t.Context(), `select sum(idx_tup_fetch + seq_tup_read)::int from pg_stat_xact_user_tables where relname ~ '^(message|waiting|attempt)'`).Scan(&fetched); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d found, %d rows read of %d", when, found, fetched, n)
		if found < 8+3 || fetched > 5000 {
			t.Errorf("%s: %d found, %d rows read of %d", when, found, fetched, n)
		}
	}
	read("new")
	exec(t, dsn, `analyze`)
	read("analyzed")
	exec(t, dsn, leaves)
	read("with retries")
	exec(t, dsn, `analyze`)
	read("with retries, analyzed")
}
