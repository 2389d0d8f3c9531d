package dedupe_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// keyed is a submission under a supersede key.
func keyed(t testing.TB, tenant int32, key, supersede string, to ...string) *message.Submission {
	t.Helper()
	if len(to) == 0 {
		to = []string{"a@example.com"}
	}
	s := ledgertest.Email(t, tenant, key, "s", to...)
	s.Supersede = supersede
	return s
}

// accepted accepts s and answers with the items of its messages.
func accepted(t *testing.T, l *dedupe.Ledger, s *message.Submission) []message.Item {
	t.Helper()
	return ledgertest.Items(s, accept(t, l, s))
}

func count(t *testing.T, dsn, sql string, args ...any) (n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestOnlyTheNewestOfAKeyIsSent(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	acme, other := ledgertest.Tenant(t, l, "acme"), ledgertest.Tenant(t, l, "other")
	first := accepted(t, l, keyed(t, acme, "1", "code", "a@example.com", "b@example.com"))
	scheduled := keyed(t, acme, "2", "code", "c@example.com")
	scheduled.SendAt = time.Now().Add(30 * time.Minute)
	second := accepted(t, l, scheduled)
	state(t, l, second[0], message.StateWaiting)
	test := keyed(t, acme, "3", "code")
	test.Test = true
	untouched := [][]message.Item{
		accepted(t, l, test), accepted(t, l, keyed(t, other, "1", "code")),
		accepted(t, l, keyed(t, acme, "4", "Code")), accepted(t, l, ledgertest.Email(t, acme, "5", "s", "a@example.com")),
	}
	newest := keyed(t, acme, "6", "code", "x@example.com", "y@example.com")
	newest.Lane = message.Lane{Class: message.Campaign, Channel: message.ChannelEmail} // keys know no lanes
	third := accepted(t, l, newest)

	by := newest.ID()
	for i, it := range append(first, second...) {
		claim(t, l, it, message.Taken)
		v := state(t, l, it, message.StateSuperseded)
		want := "superseded by " + by.String()
		if i < len(first) { // superseded by the second, which the third then superseded
			want = "superseded by " + scheduled.ID().String()
		}
		if v.Reason != want || len(v.Attempts) != 1 || !v.DueAt.IsZero() {
			t.Errorf("reason %q, want %q; attempts %+v, due %s", v.Reason, want, v.Attempts, v.DueAt)
		}
	}
	page, err := l.Messages(t.Context(), message.Filter{Tenant: acme, State: message.StateSuperseded, Limit: 50})
	if err != nil || len(page.Items) != 3 {
		t.Errorf("%d are listed as superseded, want 3: %v", len(page.Items), err)
	}
	a, err := l.Audit(t.Context(), acme, "s")
	if err != nil || a.States[message.StateSuperseded] != 3 || len(a.Missing) != 0 {
		t.Errorf("audit: %+v %v", a, err)
	}
	lanes, err := l.Lanes(t.Context())
	if err != nil || lanes[0].Depth != 4 || lanes[0].Waiting != 0 {
		t.Errorf("depth %d and %d waiting, want 4 and 0: %v", lanes[0].Depth, lanes[0].Waiting, err)
	}
	for _, items := range append(untouched, third) {
		for _, it := range items {
			claim(t, l, it, message.Claimed)
		}
	}
	// With all of them decided, the cursor passes them.
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var left int
	if err := conn.QueryRow(t.Context(), `select count(*) from unclaimed($1::smallint, (select max(n) from message where n < ($1::smallint + 1)::bigint << 57), 100)`,
		int16(first[0].Position.Lane().Code())).Scan(&left); err != nil || left != 0 {
		t.Errorf("unclaimed: %d %v", left, err)
	}
	var passed bool
	if err := conn.QueryRow(t.Context(), `select cursor >= $2 from lane where code = $1`, int16(first[0].Position.Lane().Code()),
		int64(untouched[3][0].Position)).Scan(&passed); err != nil || !passed {
		t.Errorf("the cursor stops at superseded messages: %v", err)
	}
}

func TestALateOlderOneIsSupersededAtOnce(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	newest := keyed(t, tenant, "new", "code")
	sent := accepted(t, l, newest)[0]
	claim(t, l, sent, message.Claimed)
	record(t, l, sent, message.Sent, 0)
	late := keyed(t, tenant, "late", "code", "a@example.com", "b@example.com")
	door := time.Now().Add(-time.Minute)
	for _, it := range ledgertest.Items(late, enter(t, l, late, door)) {
		claim(t, l, it, message.Taken)
		v := state(t, l, it, message.StateSuperseded)
		if v.Reason != "superseded by "+newest.ID().String() || v.AcceptedAt.Sub(door).Abs() > time.Millisecond {
			t.Errorf("%q, accepted %s", v.Reason, v.AcceptedAt)
		}
	}
	state(t, l, sent, message.StateSent)
	// Two that come late in the wrong order: the door's time counts, not the entry's.
	for i, age := range []time.Duration{time.Minute, 2 * time.Minute} {
		s := keyed(t, tenant, fmt.Sprint("pair", i), "pair")
		want := []message.ClaimVerdict{message.Claimed, message.Taken}[i]
		claim(t, l, ledgertest.Items(s, enter(t, l, s, time.Now().Add(-age)))[0], want)
	}
	// A door's clock that is ahead doesn't supersede what is yet to come.
	ahead := keyed(t, tenant, "ahead", "clock")
	old := ledgertest.Items(ahead, enter(t, l, ahead, time.Now().Add(time.Hour)))[0]
	claim(t, l, accepted(t, l, keyed(t, tenant, "next", "clock"))[0], message.Claimed)
	state(t, l, old, message.StateSuperseded)
}

// A ledger that hung takes a request long after it was given up, answered out of
// the journal, and followed by a newer one.
func TestWhatIsTakenLateIsNotNewer(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	came := time.Now().Add(-10 * time.Second)
	newer := keyed(t, tenant, "newer", "code")
	it := ledgertest.Items(newer, enter(t, l, newer, came.Add(message.AcceptSlack*3/2)))[0]
	old := keyed(t, tenant, "old", "code")
	r, err := l.AcceptLate(t.Context(), old, came)
	if err != nil {
		t.Fatal(err)
	}
	if again := enter(t, l, old, came); !again.Replayed || again.Submission != r.Submission {
		t.Errorf("its journal's: %+v, want that of %d", again, r.Submission)
	}
	state(t, l, ledgertest.Items(old, r)[0], message.StateSuperseded)
	claim(t, l, it, message.Claimed)

	// At once, PostgreSQL's own time counts.
	before := time.Now()
	next := keyed(t, tenant, "next", "code")
	if r, err = l.AcceptLate(t.Context(), next, before); err != nil {
		t.Fatal(err)
	}
	v := state(t, l, ledgertest.Items(next, r)[0], message.StateQueued)
	if at := v.AcceptedAt.Sub(before); at < -mostSkew || at > message.AcceptSlack+mostSkew {
		t.Errorf("accepted %v after it came", at)
	}
}

// mostSkew is how far the test's clock and PostgreSQL's, on one machine, are apart.
const mostSkew = 100 * time.Millisecond

func TestWhatIsHandedOverKeepsItsCourse(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	for name, c := range map[string]struct {
		outcome message.Outcome
		want    message.State
	}{
		"sent": {message.Sent, message.StateSent}, "rejected": {message.Rejected, message.StateFailed}, "unknown": {message.Unknown, message.StateInDoubt},
	} {
		it := accepted(t, l, keyed(t, tenant, name+"1", name))[0]
		claim(t, l, it, message.Claimed)
		accepted(t, l, keyed(t, tenant, name+"2", name))
		state(t, l, it, message.StateSending)
		record(t, l, it, c.outcome, 0)
		state(t, l, it, c.want)
	}
}

func TestNoRetryOnceANewerOneExists(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	ended := func(it message.Item) {
		t.Helper()
		it.Attempt = 2
		claim(t, l, it, message.Taken)
		claim(t, l, it, message.Taken)
		v := state(t, l, it, message.StateSuperseded)
		if len(v.Attempts) != 2 || v.Reason == "" {
			t.Errorf("attempts %+v, reason %q", v.Attempts, v.Reason)
		}
	}
	// Open, while the newer one comes, and deferred afterwards.
	open := accepted(t, l, keyed(t, tenant, "open1", "open", "a@example.com", "b@example.com"))
	claim(t, l, open[0], message.Claimed)
	claim(t, l, open[1], message.Claimed)
	accepted(t, l, keyed(t, tenant, "open2", "open"))
	record(t, l, open[0], message.Deferred, time.Hour)
	record(t, l, open[1], message.Returned, 0)
	due, err := l.Due(t.Context(), open[0].Position.Lane(), 10)
	if err != nil || len(due) != 2 {
		t.Errorf("%d are due, want both at once: %v", len(due), err)
	}
	ended(open[0])
	ended(open[1])
	// Deferred first: it ends with the newer one's acceptance.
	deferred := accepted(t, l, keyed(t, tenant, "deferred1", "deferred"))[0]
	claim(t, l, deferred, message.Claimed)
	record(t, l, deferred, message.Deferred, time.Hour)
	accepted(t, l, keyed(t, tenant, "deferred2", "deferred"))
	state(t, l, deferred, message.StateSuperseded)
	ended(deferred)
	// In doubt, and then to be resent.
	doubted := accepted(t, l, keyed(t, tenant, "doubted1", "doubted"))[0]
	claim(t, l, doubted, message.Claimed)
	record(t, l, doubted, message.Unknown, 0)
	accepted(t, l, keyed(t, tenant, "doubted2", "doubted"))
	state(t, l, doubted, message.StateInDoubt)
	if err := l.Decide(t.Context(), doubted.ID, 0, message.DecideResend, "me", "why not"); err != nil {
		t.Fatal(err)
	}
	ended(doubted)
	// Held: not handed over.
	held := accepted(t, l, keyed(t, tenant, "held1", "held"))[0]
	claim(t, l, held, message.Claimed)
	if err := l.Hold(t.Context(), message.AttemptKey{Position: held.Position, Attempt: 1}, "poison"); err != nil {
		t.Fatal(err)
	}
	accepted(t, l, keyed(t, tenant, "held2", "held"))
	state(t, l, held, message.StateSuperseded)
	if n := count(t, dsn, `select count(*) from waiting`); n != 0 {
		t.Errorf("%d leaves are left", n)
	}
}

func TestAReplaySupersedesNothing(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	first, second := keyed(t, tenant, "1", "code"), keyed(t, tenant, "2", "code")
	old, newer := accepted(t, l, first)[0], accepted(t, l, second)[0]
	if r := accept(t, l, first); !r.Replayed {
		t.Fatalf("%+v", r)
	}
	state(t, l, old, message.StateSuperseded)
	state(t, l, newer, message.StateQueued)
	claim(t, l, newer, message.Claimed)
}

func TestRetainForgetsSupersedeKeys(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	accepted(t, l, keyed(t, tenant, "1", "code"))
	it := accepted(t, l, keyed(t, tenant, "2", "code"))[0]
	claim(t, l, it, message.Claimed)
	record(t, l, it, message.Sent, 0)
	if err := l.Retain(t.Context(), dedupe.Retention{Era: time.Nanosecond}); err != nil { // on to the next era
		t.Fatal(err)
	}
	kept := accepted(t, l, keyed(t, tenant, "3", "other"))[0]
	if err := l.Retain(t.Context(), dedupe.Retention{Messages: time.Nanosecond}); err != nil {
		t.Fatal(err)
	}
	if n := count(t, dsn, `select count(*)::int from superseded`); n != 0 {
		t.Errorf("%d superseded are kept", n)
	}
	if n := count(t, dsn, `select count(*)::int from newest`); n != 1 {
		t.Errorf("%d keys are kept, want the one in use", n)
	}
	accepted(t, l, keyed(t, tenant, "4", "other"))
	state(t, l, kept, message.StateSuperseded)
	claim(t, l, accepted(t, l, keyed(t, tenant, "5", "code"))[0], message.Claimed)
}

// PostgreSQL's clock goes back by an hour: what is accepted now is the newest all the
// same, and what the journal has from before isn't.
func TestAClockThatGoesBackSupersedesNothingNewer(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	before := accepted(t, l, keyed(t, tenant, "1", "code"))[0]
	exec(t, dsn, `update message set accepted_at = accepted_at + interval '1 hour'`)
	exec(t, dsn, `update newest set at = at + interval '1 hour'`)
	after := accepted(t, l, keyed(t, tenant, "2", "code"))[0]
	claim(t, l, before, message.Taken)
	state(t, l, before, message.StateSuperseded)
	last := accepted(t, l, keyed(t, tenant, "3", "code"))[0]
	state(t, l, after, message.StateSuperseded)
	late := message.Journaled{Submission: keyed(t, tenant, "4", "code"), AcceptedAt: time.Now().Add(-time.Minute)}
	r, err := l.Enter(t.Context(), late)
	if err != nil {
		t.Fatal(err)
	}
	state(t, l, late.Items(r)[0], message.StateSuperseded)
	claim(t, l, last, message.Claimed)
}
