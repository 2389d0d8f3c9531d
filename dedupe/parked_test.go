package dedupe_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

const journalSource = "standby:stormpost.journal.transactional/0/7"

// refuse parks s as recovery does.
func refuse(t *testing.T, l *dedupe.Ledger, s *message.Submission, at time.Time) {
	t.Helper()
	if err := l.ParkWhole(t.Context(), message.Journaled{Submission: s, AcceptedAt: at}.Parked(journalSource, s.Content, "bad row")); err != nil {
		t.Fatal(err)
	}
}

// waits is what waits for a person, by cause.
func waits(t *testing.T, l *dedupe.Ledger) string {
	t.Helper()
	all, err := l.Held(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int64{}
	for _, h := range all {
		found[h.Cause] = h.Count
		if h.Oldest < 0 || h.Oldest > time.Minute {
			t.Errorf("%s: the oldest is of %s ago", h.Cause, h.Oldest)
		}
	}
	return fmt.Sprint(found)
}

// What the ledger refused of a journal is not "never accepted": it is held, in lists and
// counts as well, until it is canceled, or submitted again and accepted.
func TestParkedSubmission(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	at := time.Now().Add(-time.Hour).Truncate(time.Microsecond)
	s := ledgertest.Email(t, tenant, "k", "s", "a@example.com", "b@example.com")
	lane := s.Lane
	refuse(t, l, s, at)
	refuse(t, l, s, at) // the journal is read again, or the client had come twice
	id := s.ID().Message(1)
	want := func(state message.State, reason string) {
		t.Helper()
		v, err := l.Message(t.Context(), tenant, id)
		if err != nil || v.State != state || v.Reason != reason || v.ID != id || v.Lane != lane || !v.AcceptedAt.Equal(at) {
			t.Fatalf("%+v %v, want %s", v, err, state)
		}
	}
	want(message.StateHeld, "parked: bad row")
	for _, not := range []message.ID{s.ID().Message(2), ledgertest.Email(t, tenant, "k", "s", "c@example.com").ID().Message(0)} {
		if _, err := l.Message(t.Context(), 0, not); !errors.Is(err, message.ErrNotFound) {
			t.Errorf("another: %v", err)
		}
	}
	if _, err := l.Message(t.Context(), tenant+1, id); !errors.Is(err, message.ErrNotFound) {
		t.Errorf("another tenant's: %v", err)
	}
	key := s.Key
	for _, f := range []message.Filter{{Submission: s.ID()}, {Key: &key}, {Key: &key, Submission: s.ID(), State: message.StateHeld}} {
		f.Tenant, f.Limit = tenant, 10
		if page, err := l.Messages(t.Context(), f); err != nil || len(page.Items) != 2 || page.Items[0].ID != id || page.Items[0].State != message.StateHeld {
			t.Errorf("list: %+v %v", page, err)
		}
		f.Tenant++
		if page, err := l.Messages(t.Context(), f); err != nil || len(page.Items) != 0 {
			t.Errorf("another tenant's list: %+v %v", page, err)
		}
	}
	var wrong message.FieldErrors
	if _, err := l.ReleaseMessage(t.Context(), id, "ops", "r"); !errors.As(err, &wrong) {
		t.Errorf("release: %v", err)
	}
	if _, err := l.ReplayMessage(t.Context(), id, 1, "ops", "r"); !errors.As(err, &wrong) {
		t.Errorf("replay: %v", err)
	}
	counts := func(waiting string, parked int64) {
		t.Helper()
		if got := waits(t, l); got != waiting {
			t.Errorf("waiting: %s, want %s", got, waiting)
		}
		if all, err := l.Parked(t.Context()); err != nil || all[lane] != parked {
			t.Errorf("parked: %v %v, want %d", all, err, parked)
		}
	}
	counts("map[parked:1]", 2)
	for i := range s.Recipients {
		counts("map[parked:1]", 2)
		if v, err := l.Cancel(t.Context(), tenant, s.ID().Message(i)); err != nil || v.State != message.StateCanceled {
			t.Fatalf("cancel: %+v %v", v, err)
		}
	}
	want(message.StateCanceled, "")
	counts("map[]", 2)
	accept(t, l, s)
	if v, err := l.Message(t.Context(), tenant, id); err != nil || v.State != message.StateQueued {
		t.Errorf("accepted after all: %+v %v", v, err)
	}
	counts("map[]", 0)
}

// Of a submission that the ledger has come to have nobody has to be told, nor to
// remember that it was parked.
func TestParkedAndThenEntered(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	first := ledgertest.Email(t, tenant, "k", "s", "a@example.com")
	conflict := ledgertest.Email(t, tenant, "k", "s", "b@example.com")
	later := ledgertest.Email(t, tenant, "later", "s", "c@example.com")
	for _, s := range []*message.Submission{first, conflict, later} {
		refuse(t, l, s, time.Now())
	}
	if err := l.ParkWhole(t.Context(), message.Parked{Source: journalSource, Raw: []byte{1}, Reason: "it has 1 bytes"}); err != nil {
		t.Fatal(err)
	}
	if err := l.Park(t.Context(), "stormpost.transactional.email/0/1", []byte{1}, "a stranger's"); err != nil {
		t.Fatal(err)
	}
	if got := waits(t, l); got != "map[parked:4]" {
		t.Errorf("waiting: %s", got)
	}
	accept(t, l, first)
	if got := waits(t, l); got != "map[parked:3]" {
		t.Errorf("one was accepted: %s", got)
	}
	r := enter(t, l, conflict, time.Now())
	if got := waits(t, l); !r.Held || got != "map[key_conflict:1 parked:2]" {
		t.Errorf("one was entered, and met the first: %s", got)
	}
	all, err := l.Parked(t.Context())
	if err != nil || len(all) != 2 || all[later.Lane] != 1 || all[message.Lane{}] != 1 {
		t.Errorf("parked: %v %v", all, err)
	}
	if err := l.Retain(t.Context(), dedupe.Retention{}); err != nil {
		t.Fatal(err)
	}
	exec(t, dsn, `do $$ begin
		if (select count(*) from parked) <> 3 then raise 'not the stranger''s, the unreadable and the one that waits'; end if;
	end $$`)
	if got := waits(t, l); got != "map[key_conflict:1 parked:2]" {
		t.Errorf("after that: %s", got)
	}
}

// Messages that are held by themselves wait until they are released or canceled, and
// those who ask read the holds alone, whatever is believed of the tables.
func TestHeldWaits(t *testing.T) {
	t.Parallel()
	l, dsn, all := everyState(t)
	items := all[message.StateQueued]
	tenant := ledgertest.Tenant(t, l, "other")
	accept(t, l, ledgertest.Email(t, tenant, "k", "s", "a@example.com"))
	conflict := ledgertest.Email(t, tenant, "k", "s", "b@example.com", "c@example.com")
	enter(t, l, conflict, time.Now())
	want := func(what string) {
		t.Helper()
		if got := waits(t, l); got != what {
			t.Errorf("waiting: %s, want %s", got, what)
		}
	}
	want("map[key_conflict:2 poison:1]")
	if _, err := l.ReleaseMessage(t.Context(), conflict.ID().Message(0), "ops", "asked"); err != nil {
		t.Fatal(err)
	}
	want("map[key_conflict:1 poison:1]")
	if _, err := l.Cancel(t.Context(), tenant, conflict.ID().Message(1)); err != nil {
		t.Fatal(err)
	}
	want("map[poison:1]")
	held := all[message.StateHeld][0]
	if _, err := l.ReleaseMessage(t.Context(), held.ID, "ops", "mended"); err != nil {
		t.Fatal(err)
	}
	want("map[]")
	held.Attempt = 3
	claim(t, l, held, message.Claimed)
	if err := l.Hold(t.Context(), message.AttemptKey{Position: held.Position, Attempt: 3}, "again"); err != nil {
		t.Fatal(err)
	}
	want("map[poison:1]")

	// A ledger with a past.
	exec(t, dsn, `insert into attempt select $1::bigint + (i << 6), 1, 1, 0, 0, now() from generate_series(1000::bigint, 200000) i`, int64(items[0].Position))
	exec(t, dsn, `insert into outcome (n, no, kind, at) select n, no, 1, at from attempt a where not exists (select from outcome o where o.n = a.n and o.no = a.no) and a.kind = 1 and a.n > $1`, int64(items[0].Position)+1000<<6)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `begin; select * from held_open(10000)`); err != nil {
		t.Fatal(err)
	}
	var read int64
	if err := conn.QueryRow(t.Context(), `select sum(seq_tup_read + idx_tup_fetch)::bigint from pg_stat_xact_user_tables`).Scan(&read); err != nil || read == 0 || read > 100 {
		t.Errorf("a look reads %d rows: %v", read, err)
	}
	want("map[poison:1]")

	// The command that the incident names finds it below any number of others.
	exec(t, dsn, `insert into message select n + (i << 6), stream, 1000 + i, tenant, test, id, recipient, accepted_at, expires_at, trace
		from message, generate_series(1000::bigint, 4000) i where n = $1`, int64(items[0].Position))
	exec(t, dsn, `update counter set last = 5000`)
	acme := ledgertest.Tenant(t, l, "acme")
	for _, f := range []message.Filter{{}, {Tenant: acme}, {Tenant: acme, Stream: "s", Class: message.Transactional}} {
		f.State, f.Limit = message.StateHeld, 10
		if page, err := l.Messages(t.Context(), f); err != nil || len(page.Items) != 1 || page.Items[0].ID != held.ID || page.Next != "" {
			t.Errorf("held: %+v %v", page, err)
		}
	}
	for _, f := range []message.Filter{{Tenant: tenant}, {Stream: "another"}, {To: "b@example.com"}} {
		f.State, f.Limit = message.StateHeld, 10
		if page, err := l.Messages(t.Context(), f); err != nil || len(page.Items) != 0 || page.Next != "" {
			t.Errorf("held of others: %+v %v", page, err)
		}
	}
}

// A message that was canceled while it was parked stays so when recovery enters its
// submission after all, under its key or as a key_conflict; the others are sent.
func TestParkedCanceledAndThenEntered(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, ledgertest.DSN(t))
	tenant := ledgertest.Tenant(t, l, "acme")
	accept(t, l, ledgertest.Email(t, tenant, "taken", "s", "x@example.com"))
	for _, key := range []string{"k", "taken"} {
		s := ledgertest.Email(t, tenant, key, "s", "a@example.com", "b@example.com")
		refuse(t, l, s, time.Now())
		if _, err := l.Cancel(t.Context(), tenant, s.ID().Message(1)); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Enter(t.Context(), message.Journaled{Submission: s, AcceptedAt: time.Now()}); err != nil {
			t.Fatal(err)
		}
		for i, want := range []message.State{message.StateQueued, message.StateCanceled} {
			if key == "taken" && i == 0 {
				want = message.StateHeld
			}
			if v, err := l.Message(t.Context(), tenant, s.ID().Message(i)); err != nil || v.State != want || v.Position == 0 {
				t.Errorf("%s, %d: %+v %v, want %s", key, i, v, err, want)
			}
		}
	}
}

// What the trail told of parked messages after a rollback is their state, and can't be
// canceled away. Lists of them are narrowed as others are.
func TestParkedAndTold(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	s := ledgertest.Email(t, tenant, "k", "s", "a@example.com", "b@example.com", "c@example.com", "d@example.com", "e@example.com", "f@example.com")
	refuse(t, l, s, time.Now())
	for i, kind := range []int{0, 1, 3, 4, 6} {
		id := s.ID().Message(i)
		exec(t, dsn, `insert into told (id, no, kind, at) values ($1, 1, $2, now())`, id[:], kind)
	}
	doubt, sent, failed, canceled := message.StateInDoubt, message.StateSent, message.StateFailed, message.StateCanceled
	for i, want := range []message.State{doubt, sent, failed, doubt, canceled, message.StateHeld} {
		id := s.ID().Message(i)
		if v, err := l.Message(t.Context(), tenant, id); err != nil || v.State != want {
			t.Errorf("%d: %+v %v, want %s", i, v, err, want)
		}
		if _, err := l.Cancel(t.Context(), tenant, id); errors.Is(err, message.ErrTooLate) != (i < 4) {
			t.Errorf("cancel %d: %v", i, err)
		}
	}
	key := s.Key
	for name, test := range map[string]struct {
		filter message.Filter
		want   int
	}{
		"all": {message.Filter{}, 6}, "limit": {message.Filter{Limit: 2}, 2}, "class": {message.Filter{Class: message.Campaign}, 0},
		"own class": {message.Filter{Class: message.Transactional, Channel: message.ChannelEmail}, 6}, "to": {message.Filter{To: "a@example.com"}, 0},
		"channel": {message.Filter{Channel: message.ChannelPush}, 0}, "since": {message.Filter{Since: time.Now().Add(time.Hour)}, 0}, "state": {message.Filter{State: doubt}, 2},
	} {
		test.filter.Key, test.filter.Tenant = &key, tenant
		if test.filter.Limit == 0 {
			test.filter.Limit = 100
		}
		if page, err := l.Messages(t.Context(), test.filter); err != nil || len(page.Items) != test.want {
			t.Errorf("%s: %d of them, %v, want %d", name, len(page.Items), err, test.want)
		}
	}
}
