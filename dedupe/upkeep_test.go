package dedupe_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

func TestRetainDropsWhatHasEnded(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	send := func(key string) message.Item {
		t.Helper()
		s := ledgertest.Email(t, tenant, key, "s", "a@example.com")
		return ledgertest.Items(s, accept(t, l, s))[0]
	}
	retain := func(r dedupe.Retention) {
		t.Helper()
		r.Era = time.Nanosecond
		if err := l.Retain(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	first, open := send("1"), send("2")
	claim(t, l, first, message.Claimed)
	record(t, l, first, message.Sent, 0)
	claim(t, l, open, message.Claimed)
	record(t, l, open, message.Deferred, time.Hour)
	retain(dedupe.Retention{}) // a new era begins
	later := send("3")
	if later.Position.Submission()>>23 == first.Position.Submission()>>23 {
		t.Fatal("no new era began")
	}
	retain(dedupe.Retention{Content: time.Nanosecond, Messages: time.Nanosecond})
	state(t, l, open, message.StateWaiting) // one in it hasn't ended: all stay
	state(t, l, first, message.StateSent)

	exec(t, dsn, `update waiting set due = now()`)
	open.Attempt = 2
	claim(t, l, open, message.Claimed)
	record(t, l, open, message.Sent, 0)
	retain(dedupe.Retention{Content: time.Nanosecond})
	if v := state(t, l, first, message.StateSent); v.Content != nil {
		t.Fatal("its content is still there")
	}
	// A used leave, as a race with a hold leaves it: nobody would ever take it up.
	exec(t, dsn, `insert into waiting (n, no, lane, due) values ($1, 1, $2, now())`, int64(first.Position), int16(first.Position.Lane().Code()))
	retain(dedupe.Retention{Messages: time.Nanosecond})
	if n := count(t, dsn, `select count(*) from waiting`); n != 0 {
		t.Errorf("leaves of dropped messages: %d", n)
	}
	if _, err := l.Message(t.Context(), tenant, first.ID); !errors.Is(err, message.ErrNotFound) {
		t.Fatalf("a dropped message: %v", err)
	}
	claim(t, l, first, message.Taken) // below the floor
	a, err := l.Audit(t.Context(), tenant, "s")
	if err != nil || a.First != 3 || a.Last != 3 || len(a.Missing) != 0 || a.States[message.StateQueued] != 1 {
		t.Fatalf("audit: %+v %v", a, err)
	}
	claim(t, l, later, message.Claimed)
}

// An era is kept while one before it is: below a lane's cursor nobody looks for
// what is queued there. That one of them never began changes nothing.
func TestRetainDropsErasInOrder(t *testing.T) {
	t.Parallel()
	for name, over := range map[string]int{"each begun": 2, "one never begun": 4} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := ledgertest.DSN(t)
			l := ledgertest.Open(t, dsn)
			tenant := ledgertest.Tenant(t, l, "acme")
			retain := func(r dedupe.Retention) {
				t.Helper()
				r.Era = time.Nanosecond
				if err := l.Retain(t.Context(), r); err != nil {
					t.Fatal(err)
				}
			}
			queued := firstItem(t, l, tenant, "queued")
			if over > 2 { // as after a reconciliation whose topics knew of much more
				exec(t, dsn, `select add_era(2); select add_era(3)`)
				exec(t, dsn, `select setval('position', 2 << 23)`)
			}
			retain(dedupe.Retention{})
			ended := firstItem(t, l, tenant, "ended")
			sentOnce(t, l, ended)
			retain(dedupe.Retention{})
			if n := count(t, dsn, `select count(*) from era where no < (select last_value >> 23 from position)`); n != over {
				t.Fatalf("%d eras are over, want %d", n, over)
			}
			retain(dedupe.Retention{Messages: time.Nanosecond})
			state(t, l, ended, message.StateSent)
			found := eventually(t, func() ([]message.Item, bool) {
				items, err := l.Unclaimed(t.Context(), queued.Position.Lane(), 0, 10)
				if err != nil {
					t.Fatal(err)
				}
				return items, len(items) > 0
			})
			if found[0].ID != queued.ID {
				t.Errorf("unclaimed: %+v", found)
			}
			sentOnce(t, l, queued)
			retain(dedupe.Retention{Messages: time.Nanosecond})
			for _, it := range []message.Item{queued, ended} {
				if _, err := l.Message(t.Context(), tenant, it.ID); !errors.Is(err, message.ErrNotFound) {
					t.Errorf("once all have ended: %v", err)
				}
			}
		})
	}
}

// Partitions are made while others write, and are as those of the first era are.
func TestErasAreMadeBesideWriters(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	writer, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close(context.Background())
	if _, err := writer.Exec(t.Context(), `begin; lock table message, content, attempt, outcome in row exclusive mode`); err != nil {
		t.Fatal(err)
	}
	exec(t, dsn, `set lock_timeout = '5s'; select add_era(7)`)
	if _, err := writer.Exec(t.Context(), `rollback`); err != nil {
		t.Fatal(err)
	}
	const parts = `
		from (select substring(c.relname from '^[a-z]+_[0-9]+') as base, (c.reloptions,
			(select array_agg((x.indisunique, x.indisprimary, x.indkey::text, p.inhparent::regclass)::text order by x.indkey::text)
				from pg_index x left join pg_inherits p on p.inhrelid = x.indexrelid where x.indrelid = c.oid),
			(select array_agg(g.tgname::text order by g.tgname) from pg_trigger g where g.tgrelid = c.oid),
			(select array_agg((a.attname, a.atttypid, a.attnotnull, a.attstorage)::text order by a.attnum) from pg_attribute a where a.attrelid = c.oid and a.attnum > 0),
			(select array_agg(pg_get_constraintdef(k.oid) order by pg_get_constraintdef(k.oid)) from pg_constraint k where k.conrelid = c.oid))::text as shape
		from pg_class c where c.relkind = 'r' and c.relname ~ '^(message|content|attempt|outcome)_[0-9]+_[07]$') x`
	if all, shapes := count(t, dsn, `select count(*)`+parts), count(t, dsn, `select count(distinct (base, shape))`+parts); all != 48 || shapes != 24 {
		t.Errorf("two eras have %d partitions, of %d kinds", all, shapes)
	}
	exec(t, dsn, `select setval('position', 7 << 23)`)
	sentOnce(t, l, firstItem(t, l, ledgertest.Tenant(t, l, "acme"), "k"))
}

func TestAuditFindsWhatIsMissing(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	for _, key := range ledgertest.Keys(10) {
		accept(t, l, ledgertest.Email(t, tenant, key, "s", "a@example.com"))
	}
	exec(t, dsn, `delete from message where seq in (1, 4, 5, 10)`)
	a, err := l.Audit(t.Context(), tenant, "s")
	if err != nil {
		t.Fatal(err)
	}
	want := []message.Range{{From: 1, To: 1}, {From: 4, To: 5}, {From: 10, To: 10}}
	if len(a.Missing) != 3 || a.Missing[0] != want[0] || a.Missing[1] != want[1] || a.Missing[2] != want[2] {
		t.Fatalf("missing %v, want %v", a.Missing, want)
	}
	if _, err := l.Audit(t.Context(), tenant, "nowhere"); !errors.Is(err, message.ErrNotFound) {
		t.Fatalf("a stream that never was: %v", err)
	}
}

// Numbers that a rollback has left nobody's hide no message from a list.
func TestListPassesOverHoles(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	for _, k := range ledgertest.Keys(32) {
		accept(t, l, ledgertest.Email(t, tenant, k, "s", "a@example.com"))
	}
	// Halving would look at number 16 first, then at 24 or 8.
	exec(t, dsn, `delete from message where seq in (8, 16) or seq between 20 and 24 or seq = 1`)
	seen := make(map[int64]bool)
	f := message.Filter{Tenant: tenant, Limit: 3}
	for pages := 0; pages < 20; pages++ {
		page, err := l.Messages(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range page.Items {
			seen[v.Sequence] = true
		}
		if f.Cursor = page.Next; f.Cursor == "" {
			break
		}
	}
	if len(seen) != 24 {
		t.Errorf("%d of 24 are listed: %v", len(seen), slices.Sorted(maps.Keys(seen)))
	}
}

func TestListPages(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant, other := ledgertest.Tenant(t, l, "acme"), ledgertest.Tenant(t, l, "other")
	want := 0
	for i, key := range ledgertest.Keys(40) {
		accept(t, l, ledgertest.Email(t, tenant, key, []string{"a", "b", "c"}[i%3], "a@example.com", "b@example.com"))
		accept(t, l, ledgertest.Email(t, other, key, "a", "x@example.com"))
		want += 2
	}
	seen := make(map[message.ID]bool)
	var last int64 = 1 << 62
	for f := (message.Filter{Tenant: tenant, Limit: 7}); ; {
		page, err := l.Messages(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range page.Items {
			if v.Tenant != tenant || seen[v.ID] || int64(v.Position) >= last {
				t.Fatalf("out of place: %+v", v)
			}
			seen[v.ID], last = true, int64(v.Position)
		}
		if page.Next == "" {
			break
		}
		f.Cursor = page.Next
	}
	if len(seen) != want {
		t.Fatalf("listed %d, want %d", len(seen), want)
	}
	filtered, err := l.Messages(t.Context(), message.Filter{Tenant: tenant, Stream: "b", To: "b@example.com", State: message.StateQueued, Limit: 200})
	if err != nil || len(filtered.Items) != 13 {
		t.Fatalf("filtered: %d %v", len(filtered.Items), err)
	}
	s := ledgertest.Email(t, tenant, "key-000003", "a", "a@example.com", "b@example.com")
	bySub, err := l.Messages(t.Context(), message.Filter{Tenant: tenant, Submission: s.ID(), Limit: 50})
	if err != nil || len(bySub.Items) != 2 {
		t.Fatalf("by submission: %+v %v", bySub, err)
	}
	if _, err := l.Messages(t.Context(), message.Filter{Tenant: tenant, Cursor: "???", Limit: 1}); err == nil {
		t.Fatal("a cursor that isn't ours")
	}
}

func TestLanesCount(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	var items []message.Item
	for _, key := range ledgertest.Keys(5) {
		s := ledgertest.Email(t, tenant, key, "s", "a@example.com")
		items = append(items, ledgertest.Items(s, accept(t, l, s))...)
	}
	lanes, err := l.Lanes(t.Context())
	if err != nil || len(lanes) != 6 {
		t.Fatalf("%+v %v", lanes, err)
	}
	if v := lanes[0]; v.Lane.String() != "transactional.email" || v.Depth != 5 || v.OldestAge <= 0 || v.ETA >= 0 {
		t.Fatalf("%+v", v)
	}
	oldest := func() time.Time {
		t.Helper()
		lanes, err := l.LanesUpTo(t.Context(), 10)
		if err != nil || !lanes[1].OldestAt.IsZero() {
			t.Fatalf("%+v %v", lanes, err)
		}
		return lanes[0].OldestAt
	}
	first := oldest()
	claim(t, l, items[2], message.Claimed)
	if again := oldest(); first.IsZero() || !again.Equal(first) {
		t.Errorf("ready since %s, and then since %s, though it stayed", first, again)
	}
	claim(t, l, items[0], message.Claimed)
	if next := oldest(); !next.After(first) {
		t.Errorf("ready since %s, and the next since %s", first, next)
	}
}
