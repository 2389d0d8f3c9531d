package dedupe_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// doubts waits until there are want of them. The sweep runs by itself.
func doubts(t *testing.T, l *dedupe.Ledger, want int) []message.Doubt {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		p, err := l.Doubts(t.Context(), "", 50)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Items) == want {
			return p.Items
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%d doubts, want %d", len(p.Items), want)
		}
	}
}

func TestUnknownIsADoubtAtOnce(t *testing.T) {
	t.Parallel()
	l, _, it := one(t)
	claim(t, l, it, message.Claimed)
	record(t, l, it, message.Unknown, 0)
	state(t, l, it, message.StateInDoubt)
	if d := doubts(t, l, 1)[0]; d.Cause != "unknown" || d.ID != it.ID || d.Provider != "p" {
		t.Fatalf("doubt: %+v", d)
	}
	if d, err := l.Silent(t.Context(), time.Time{}, 10); err != nil || len(d) != 0 {
		t.Errorf("silent, of one whose answer was lost: %+v %v", d, err)
	}
	if err := l.Decide(t.Context(), it.ID, 0, message.DecideResend, "ops", "asked the provider"); err != nil {
		t.Fatal(err)
	}
	if err := l.Decide(t.Context(), it.ID, 0, message.DecideDrop, "ops", "again"); !errors.Is(err, message.ErrDecided) {
		t.Fatalf("deciding twice: %v", err)
	}
	items, err := l.Due(t.Context(), it.Position.Lane(), 10)
	if err != nil || len(items) != 1 || items[0].Attempt != 2 {
		t.Fatalf("due after the decision: %+v %v", items, err)
	}
	claim(t, l, items[0], message.Claimed)
	record(t, l, items[0], message.Sent, 0)
	v := state(t, l, it, message.StateSent)
	if a := v.Attempts[0]; a.Decision != message.DecideResend || a.DecidedBy != "ops" || a.Because != "asked the provider" {
		t.Fatalf("the decision isn't on record: %+v", a)
	}
}

func TestUnknownResentByPolicy(t *testing.T) {
	t.Parallel()
	l, _, it := one(t)
	claim(t, l, it, message.Claimed)
	r := message.Report{Position: it.Position, Attempt: 1, Result: message.Result{Outcome: message.Unknown}, Resend: "policy:push"}
	for range 2 { // recording twice changes nothing
		if err := l.Record(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	items, err := l.Due(t.Context(), it.Position.Lane(), 10)
	if err != nil || len(items) != 1 || items[0].Attempt != 2 {
		t.Fatalf("due: %+v %v", items, err)
	}
	doubts(t, l, 0)
}

func TestDecideDropAndSent(t *testing.T) {
	t.Parallel()
	for d, want := range map[message.Decision]message.State{message.DecideDrop: message.StateFailed, message.DecideSent: message.StateSent} {
		l, _, it := one(t)
		if err := l.Decide(t.Context(), it.ID, 0, d, "ops", ""); !errors.Is(err, message.ErrNotFound) {
			t.Fatalf("deciding what is in no doubt: %v", err)
		}
		claim(t, l, it, message.Claimed)
		record(t, l, it, message.Unknown, 0)
		if err := l.Decide(t.Context(), it.ID, 0, d, "ops", ""); err != nil {
			t.Fatal(err)
		}
		state(t, l, it, want)
	}
}

func TestSilenceBecomesADoubt(t *testing.T) {
	t.Parallel()
	l, dsn, it := one(t)
	gone, err := dedupe.Open(dedupe.Config{DSN: dsn, GiveUp: time.Second, BeatEvery: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	claim(t, gone, it, message.Claimed)
	key := message.AttemptKey{Position: it.Position, Attempt: 1}
	// While its process lists it, it is none, however old.
	listed := time.Now().Add(3 * time.Second)
	for time.Now().Before(listed) {
		if err := gone.Beat(t.Context(), []message.AttemptKey{key}, time.Second); err != nil {
			t.Fatal(err)
		}
		if p, err := l.Doubts(t.Context(), "", 50); err != nil || len(p.Items) != 0 {
			t.Fatalf("in doubt while it is listed: %+v %v", p.Items, err)
		}
	}
	gone.Close()
	if d := doubts(t, l, 1)[0]; d.Cause != "silent" || d.State != message.StateInDoubt {
		t.Fatalf("doubt: %+v", d)
	}
	silent := func(after time.Time) []message.Doubt {
		d, err := l.Silent(t.Context(), after, 10)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	all := silent(time.Time{})
	if len(all) != 1 || all[0].ID != it.ID || all[0].Attempt != 1 || !all[0].ClaimedAt().Equal(all[0].Attempts[0].At) || all[0].ClaimedAt().IsZero() {
		t.Fatalf("silent: %+v", all)
	}
	if d := silent(all[0].Since); len(d) != 0 {
		t.Errorf("silent after the last: %+v", d)
	}
	// The late outcome resolves it.
	record(t, l, it, message.Sent, 0)
	doubts(t, l, 0)
	if d := silent(time.Time{}); len(d) != 0 {
		t.Errorf("silent with an outcome: %+v", d)
	}
	state(t, l, it, message.StateSent)
}

func TestALateOutcomeDoesNotUndoADecision(t *testing.T) {
	t.Parallel()
	l, dsn, it := one(t)
	gone, err := dedupe.Open(dedupe.Config{DSN: dsn, GiveUp: 100 * time.Millisecond, BeatEvery: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	claim(t, gone, it, message.Claimed)
	doubts(t, l, 1)
	if err := l.Decide(t.Context(), it.ID, 0, message.DecideResend, "ops", ""); err != nil {
		t.Fatal(err)
	}
	record(t, gone, it, message.Returned, 0) // the paused worker gives it back
	items, err := l.Due(t.Context(), it.Position.Lane(), 10)
	if err != nil || len(items) != 1 || items[0].Attempt != 2 {
		t.Fatalf("due: %+v %v", items, err)
	}
	claim(t, l, items[0], message.Claimed)
	record(t, l, items[0], message.Sent, 0)
	if v := state(t, l, it, message.StateSent); len(v.Attempts) != 2 {
		t.Fatalf("attempts: %+v", v.Attempts)
	}
}

// Only time in which the ledger could be written to counts as silence.
func TestAnOutageIsNotSilence(t *testing.T) {
	t.Parallel()
	l, dsn, it := one(t)
	gone, err := dedupe.Open(dedupe.Config{DSN: dsn, GiveUp: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	claim(t, gone, it, message.Claimed)
	exec(t, dsn, `insert into outage values (now() - interval '170 minutes', now() - interval '10 minutes')`) // before any sweep finds the attempt silent
	exec(t, dsn, `update attempt set at = at - interval '3 hours'`)
	exec(t, dsn, `insert into silent select n, no, worker, at from attempt`)
	time.Sleep(time.Second) // several sweeps: what must not happen can't be waited for
	doubts(t, l, 0)
	exec(t, dsn, `delete from outage`)
	doubts(t, l, 1)
}

// A message that becomes visible below others is not passed by the cursor.
func TestCursorWaitsForLateCommits(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	first := ledgertest.Email(t, tenant, "first", "a", "a@example.com")
	accept(t, l, first)
	lane := first.Lane

	feed := func(want int) []message.Item {
		t.Helper()
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		deadline := time.After(20 * time.Second)
		for {
			items, err := l.Unclaimed(t.Context(), lane, 0, 100)
			if err != nil {
				t.Fatal(err)
			}
			if len(items) == want {
				return items
			}
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatalf("%d unclaimed, want %d", len(items), want)
			}
		}
	}
	claim(t, l, feed(1)[0], message.Claimed)
	feed(0) // the cursor moves

	// A transaction takes the next position and lingers, as a stopped server's.
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	late := ledgertest.Email(t, tenant, "late", "b", "late@example.com")
	if _, err := conn.Exec(t.Context(), `begin`); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `with s as (insert into stream (tenant, name) values ($1, 'b') returning id) insert into counter select id, 0 from s`, tenant); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `select accept_batch(array[$1::uuid], array[$2::bytea], array[$3::smallint], array[$4::int], (select array[id] from stream where name='b'),
		array[1::smallint], array[$5::bytea], array[null::text], array[false], array[now() + interval '1 hour'], array[null::timestamptz], array[1], array[0::smallint], array['late@example.com'])`,
		[16]byte(late.Key), late.Print[:], int16(lane.Code()), tenant, late.Content); err != nil {
		t.Fatal(err)
	}
	for _, key := range ledgertest.Keys(20) {
		s := ledgertest.Email(t, tenant, key, "a", "x@example.com")
		claim(t, l, ledgertest.Items(s, accept(t, l, s))[0], message.Claimed)
	}
	feed(0)
	if _, err := conn.Exec(t.Context(), `commit`); err != nil {
		t.Fatal(err)
	}
	if it := feed(1)[0]; it.ID != late.ID().Message(0) {
		t.Fatalf("fed %v", it.ID)
	}
}

// Whoever makes an attempt is told whose decision it rests on, also when
// another attempt came in between, and how old the first one is.
func TestClaimTellsItsBasis(t *testing.T) {
	t.Parallel()
	l, _, it := one(t)
	const policy = "policy:repeat@resend:0123456789abcdef"
	claimed := func(attempt int, basis string) {
		t.Helper()
		it.Attempt = attempt
		c, err := l.Claim(t.Context(), it)
		if err != nil || c.Verdict != message.Claimed || c.Basis != basis || (c.FirstAge > 0) != (attempt > 1) || c.FirstAge > time.Minute {
			t.Fatalf("attempt %d: %+v, %v; want basis %q", attempt, c, err, basis)
		}
	}
	claimed(1, "")
	if err := l.Record(t.Context(), message.Report{Position: it.Position, Attempt: 1, Result: message.Result{Outcome: message.Unknown}, Resend: policy}); err != nil {
		t.Fatal(err)
	}
	claimed(2, policy)
	record(t, l, it, message.Deferred, 0)
	claimed(3, policy)
	record(t, l, it, message.Unknown, 0)
	if v := state(t, l, it, message.StateInDoubt); v.Attempts[0].DecidedBy != policy || v.Attempts[0].Decision != message.DecideResend {
		t.Errorf("the policy isn't on record: %+v", v.Attempts)
	}
	if err := l.Decide(t.Context(), it.ID, 0, message.DecideResend, "ops", "it is not there"); err != nil {
		t.Fatal(err)
	}
	claimed(4, "ops")
}
