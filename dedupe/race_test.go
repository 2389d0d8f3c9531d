package dedupe_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// lock runs sql in a transaction that lasts until unlock.
func lock(t *testing.T, dsn, sql string) (unlock func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "begin; "+sql); err != nil {
		t.Fatal(err)
	}
	unlock = sync.OnceFunc(func() { _ = conn.Close(context.Background()) })
	t.Cleanup(unlock)
	return unlock
}

func TestOneClaimWithoutLeaveFailsAlone(t *testing.T) {
	t.Parallel()
	l, dsn, bad := one(t)
	tenant := ledgertest.Tenant(t, l, "acme")
	var items []message.Item
	for _, key := range ledgertest.Keys(40) {
		s := ledgertest.Email(t, tenant, key, "s", "a@example.com")
		items = append(items, ledgertest.Items(s, accept(t, l, s))[0])
	}
	exec(t, dsn, `insert into waiting select n, 3, n >> 57, now() from message where seq = 1`)
	bad.Attempt = 3
	unlock := lock(t, dsn, `lock attempt in share row exclusive mode`) // so that a batch gathers
	var wg sync.WaitGroup
	for i, it := range append(items, bad) {
		want := message.Claimed
		if i == len(items) {
			want = message.TooEarly
		}
		wg.Go(func() {
			c, err := l.Claim(t.Context(), it)
			if err != nil || c.Verdict != want {
				t.Errorf("claim %d: %d %v, want %d", i, c.Verdict, err, want)
			}
		})
	}
	time.Sleep(300 * time.Millisecond)
	unlock()
	wg.Wait()
}

// A batch of claims has both channels of its class: each message gets its own
// verdict, whichever lane it is in.
func TestClaimsOfTwoLanes(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	wants := []message.ClaimVerdict{message.Claimed, message.Taken, message.NotDue, message.Stranger}
	var items []message.Item
	for i, key := range ledgertest.Keys(40) {
		s := ledgertest.Email(t, tenant, key, "s", "a@example.com")
		if i/len(wants)%2 == 1 {
			s.Lane.Channel = message.ChannelPush
		}
		want := wants[i%len(wants)]
		if want == message.NotDue {
			s.SendAt = time.Now().Add(time.Hour)
		}
		it := ledgertest.Items(s, accept(t, l, s))[0]
		switch want {
		case message.Taken:
			claim(t, l, it, message.Claimed)
		case message.Stranger:
			it.ID[20] ^= 1
		}
		items = append(items, it)
	}
	unlock := lock(t, dsn, `lock attempt in share row exclusive mode`) // so that a batch gathers
	var wg sync.WaitGroup
	for i, it := range items {
		wg.Go(func() {
			if c, err := l.Claim(t.Context(), it); err != nil || c.Verdict != wants[i%len(wants)] {
				t.Errorf("claim %d: %d %v, want %d", i, c.Verdict, err, wants[i%len(wants)])
			}
		})
	}
	time.Sleep(300 * time.Millisecond)
	unlock()
	wg.Wait()
}

// A race of two records of one end can leave a leave that was used. It must not
// keep out, nor take along, the next one.
func TestUsedLeaveIsInNobodysWay(t *testing.T) {
	t.Parallel()
	l, dsn, it := one(t)
	claim(t, l, it, message.Claimed)
	record(t, l, it, message.Deferred, 0)
	it.Attempt = 2
	claim(t, l, it, message.Claimed)
	exec(t, dsn, `insert into waiting select n, 2, n >> 57, now() from message`)
	record(t, l, it, message.Deferred, 0)
	claim(t, l, it, message.Taken)
	it.Attempt = 3
	claim(t, l, it, message.Claimed)
}

func TestUnclaimedWaitsForNoOtherCursor(t *testing.T) {
	t.Parallel()
	l, dsn, it := one(t)
	eventually(t, func() (int, bool) { // the horizon is above it
		if _, err := l.Unclaimed(t.Context(), it.Position.Lane(), 0, 10); err != nil {
			t.Fatal(err)
		}
		cursor := count(t, dsn, `select cursor from lane where code = $1`, it.Position.Lane().Code())
		return cursor, cursor == int(it.Position)-1
	})
	claim(t, l, it, message.Claimed) // so that the cursor is going to move
	lock(t, dsn, `select from lane for update`)
	begun := time.Now()
	if _, err := l.Unclaimed(t.Context(), it.Position.Lane(), 0, 10); err != nil || time.Since(begun) > 2*time.Second {
		t.Fatalf("unclaimed with the lane locked: %v after %s", err, time.Since(begun))
	}
}

// Somebody's long transaction keeps the cursor back, but no message that is there;
// nor is what appears below one that was brought left out.
func TestUnclaimedWaitsForNoTransaction(t *testing.T) {
	t.Parallel()
	l, dsn, first := one(t)
	lane := first.Position.Lane()
	tenant := ledgertest.Tenant(t, l, "acme")
	brings := func(p message.Position) (ok, same bool) {
		items, err := l.Unclaimed(t.Context(), lane, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		ok = slices.ContainsFunc(items, func(it message.Item) bool { return it.Position == p })
		return ok, ok
	}
	eventually(t, func() (bool, bool) { return brings(first.Position) })
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `begin; select pg_current_xact_id()`); err != nil { // before it takes a number
		t.Fatal(err)
	}
	var late message.Position
	if err := conn.QueryRow(t.Context(), `insert into message (n, stream, seq, tenant, test, id, recipient, accepted_at, expires_at)
		select (n & ~(((1::bigint << 51) - 1) << 6)) | (nextval('position') << 6), stream, 1000, tenant, test, id, recipient, clock_timestamp(), expires_at
		from message returning n`).Scan(&late); err != nil {
		t.Fatal(err)
	}
	s := ledgertest.Email(t, tenant, "above", "s", "a@example.com")
	above := ledgertest.Items(s, accept(t, l, s))[0]
	for range 2 { // nobody took it
		if ok, _ := brings(above.Position); !ok {
			t.Fatal("a message that is there waits for somebody's transaction")
		}
	}
	if items, err := ledgertest.Open(t, dsn).Unclaimed(t.Context(), lane, 0, 10); err != nil || len(items) != 2 {
		t.Errorf("a process that started since brings %d: %v", len(items), err)
	}
	claim(t, l, first, message.Claimed)
	claim(t, l, above, message.Claimed)
	if _, err := conn.Exec(t.Context(), `commit`); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() (bool, bool) { return brings(late) })
}

// The cursor goes window by window, and finds what lies in a later one.
func TestUnclaimedLooksBeyondOneWindow(t *testing.T) {
	t.Parallel()
	l, dsn, it := one(t)
	claim(t, l, it, message.Claimed)
	exec(t, dsn, `select setval('position', 100000)`)
	s := ledgertest.Email(t, ledgertest.Tenant(t, l, "acme"), "far", "s", "a@example.com", "b@example.com")
	far := ledgertest.Items(s, accept(t, l, s))
	eventually(t, func() (int, bool) {
		items, err := l.Unclaimed(t.Context(), it.Position.Lane(), 0, 10)
		if err != nil || len(items) > 0 && (len(items) != 2 || items[0].Position != far[0].Position || items[1].Position != far[1].Position) {
			t.Fatalf("unclaimed: %+v %v", items, err)
		}
		cursor := count(t, dsn, `select cursor from lane where code = $1`, it.Position.Lane().Code())
		return cursor, len(items) == 2 && cursor == int(far[0].Position)-1
	})
}

func TestDecidedAsSentIsNotCanceled(t *testing.T) {
	t.Parallel()
	l, dsn, it := one(t)
	claim(t, l, it, message.Claimed)
	exec(t, dsn, `insert into doubt (n, no, cause) select n, 1, 'silent' from message`)
	if err := l.Decide(t.Context(), it.ID, 0, message.DecideSent, "ops", "seen in the relay's log"); err != nil {
		t.Fatal(err)
	}
	record(t, l, it, message.Returned, 0)
	if _, err := l.Cancel(t.Context(), 0, it.ID); !errors.Is(err, message.ErrTooLate) {
		t.Fatalf("cancel: %v", err)
	}
	state(t, l, it, message.StateSent)
	exec(t, dsn, `insert into doubt (n, no, cause) select n, 1, 'unknown' from message; delete from outcome`) // as a race can leave it
	doubts(t, l, 0)
}

func TestCounterBehindItsDataIsUnavailable(t *testing.T) {
	t.Parallel()
	l, dsn, _ := one(t)
	exec(t, dsn, `update counter set last = 0`)
	_, err := l.Accept(t.Context(), ledgertest.Email(t, ledgertest.Tenant(t, l, "acme"), "k2", "s", "a@example.com"))
	if !errors.Is(err, message.ErrUnavailable) || !errors.Is(err, dedupe.ErrNumbering) {
		t.Fatalf("accept: %v", err)
	}
}

func TestCommitWithoutItsStandbyIsNoPromise(t *testing.T) {
	t.Parallel()
	l, dsn, _ := one(t)
	exec(t, dsn, `create function warn() returns trigger language plpgsql as $$ begin
		raise warning 'canceling wait for synchronous replication due to user request'; return new; end $$;
		create trigger warn after insert on content for each row execute function warn()`)
	_, err := l.Accept(t.Context(), ledgertest.Email(t, ledgertest.Tenant(t, l, "acme"), "k2", "s", "a@example.com"))
	if !errors.Is(err, message.ErrUnavailable) {
		t.Fatalf("accept: %v", err)
	}
}

func TestListsLeaveConnectionsForAccepting(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l, err := dedupe.Open(dedupe.Config{DSN: dsn, MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	tenant := ledgertest.Tenant(t, l, "acme")
	accept(t, l, ledgertest.Email(t, tenant, "1", "s", "a@example.com")) // its stream is known now
	unlock := lock(t, dsn, `lock stream in access exclusive mode`)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { _, _ = l.Messages(t.Context(), message.Filter{Tenant: tenant, Limit: 10}) })
	}
	time.Sleep(300 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := l.Accept(ctx, ledgertest.Email(t, tenant, "2", "s", "a@example.com")); err != nil {
		t.Errorf("accept beside slow lists: %v", err)
	}
	unlock()
	wg.Wait()
}

// What was accepted before PostgreSQL's clock went back is fed at once: it is no newer
// than what was accepted since, and would keep that back as well.
func TestTheFeedGoesOnWhenAClockGoesBack(t *testing.T) {
	t.Parallel()
	l, dsn, it := one(t)
	exec(t, dsn, `update message set accepted_at = accepted_at + interval '1 hour'`)
	for _, age := range []time.Duration{0, time.Second} {
		eventually(t, func() (any, bool) {
			items, err := l.Unclaimed(t.Context(), it.Position.Lane(), age, 10)
			return nil, err == nil && len(items) == 1
		})
	}
}
