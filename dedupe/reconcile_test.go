package dedupe_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

func TestReconcile(t *testing.T) {
	t.Parallel()
	pg := server(t)
	l := ledgertest.OpenWith(t, dedupe.Config{DSN: pg.DSN(), MaxConns: 6})
	tenant := ledgertest.Tenant(t, l, "acme")
	old := firstItem(t, l, tenant, "old")
	if err := pg.Backup(t.Context()); err != nil {
		t.Fatal(err)
	}
	sentOnce(t, l, old)
	var lost []message.Lost
	var items []message.Item
	for _, key := range []string{"sent", "claimed", "queued", "canceled", "deferred"} {
		s := ledgertest.Email(t, tenant, key, "s", "a@example.com", "b@example.com")
		r := accept(t, l, s)
		items = append(items, ledgertest.Items(s, r)[0])
		lost = append(lost, message.Lost{Journaled: message.Journaled{Submission: s, AcceptedAt: time.Now()}, Submission: r.Submission, First: r.Sequence})
	}
	if err := pg.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() (string, bool) { c, _ := l.RolledBack(); return c, c != "" })
	// A worker lives on, with an outcome to tell.
	told := make(chan error, 1)
	go func() {
		told <- l.Record(context.Background(), message.Report{Position: items[1].Position, Attempt: 1, Provider: "test", Result: message.Result{Outcome: message.Sent}})
	}()

	by, err := dedupe.Open(dedupe.Config{DSN: pg.DSN(), MaxConns: 4, Reconciling: true})
	if err != nil {
		t.Fatal(err)
	}
	defer by.Close()
	r, err := by.BeginReconcile(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := by.BeginReconcile(t.Context()); !errors.Is(err, dedupe.ErrReconciling) {
		t.Errorf("two at once: %v", err)
	}
	top := lost[len(lost)-1]
	if err := r.Raise(t.Context(), top.Submission, map[message.StreamOf]int64{{Tenant: tenant, Name: "s"}: top.First + 1}); err != nil {
		t.Fatal(err)
	}
	step := func(it message.Item, no int, k message.StepKind) message.Step {
		return message.Step{Position: it.Position, ID: it.ID, Attempt: no, Kind: k, At: time.Now(), Provider: "test"}
	}
	for range 2 { // as after one that broke off
		placed, err := r.Reenter(t.Context(), lost)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range lost {
			if placed[s.Key].Submission != s.Submission {
				t.Errorf("submission %d is at %d now", s.Submission, placed[s.Key].Submission)
			}
		}
		if _, err := r.Retrace(t.Context(), []message.Step{
			step(old, 1, message.StepKind(message.Sent)), step(items[0], 1, message.StepKind(message.Sent)), step(items[1], 1, message.StepClaimed),
			step(items[3], 1, message.StepCanceled), step(items[4], 2, message.StepKind(message.Deferred)),
		}); err != nil {
			t.Fatal(err)
		}
	}
	if d, err := by.OpenDoubts(t.Context()); err != nil || d.Count != 1 {
		t.Errorf("doubts: %+v %v", d, err)
	}
	if err := r.End(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if _, err := by.BeginReconcile(t.Context()); !errors.Is(err, dedupe.ErrStands) {
		t.Errorf("reconciled, and again: %v", err)
	}

	eventually(t, func() (bool, bool) { c, _ := l.RolledBack(); return true, c == "" })
	if err := <-told; err != nil {
		t.Fatal(err)
	}
	state(t, l, old, message.StateSent)
	state(t, l, items[0], message.StateSent)
	state(t, l, items[1], message.StateSent)
	state(t, l, items[3], message.StateCanceled)
	claim(t, l, old, message.Taken)
	claim(t, l, items[1], message.Taken)
	claim(t, l, items[2], message.Claimed)
	third := items[4]
	third.Attempt = 3
	claim(t, l, third, message.Claimed)
	a, err := l.Audit(t.Context(), tenant, "s")
	if err != nil || a.Last != top.First+1 || len(a.Missing) > 0 {
		t.Errorf("audit: %+v %v", a, err)
	}
	s := ledgertest.Email(t, tenant, "next", "s", "a@example.com")
	next := accept(t, l, s)
	if next.Sequence != top.First+2 || next.Submission <= top.Submission {
		t.Errorf("after it: %+v, the last was %d", next, top.Submission)
	}
}

func TestToldButLost(t *testing.T) {
	t.Parallel()
	pg := server(t)
	l := ledgertest.OpenWith(t, dedupe.Config{DSN: pg.DSN(), MaxConns: 6})
	tenant := ledgertest.Tenant(t, l, "acme")
	firstItem(t, l, tenant, "old")
	if err := pg.Backup(t.Context()); err != nil {
		t.Fatal(err)
	}
	submit := func(key string) []message.Item {
		s := ledgertest.Email(t, tenant, key, "s", "a@example.com", "b@example.com")
		return ledgertest.Items(s, accept(t, l, s))
	}
	sent, claimed, deferred := submit("sent"), submit("claimed"), submit("deferred")
	if err := pg.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() (string, bool) { c, _ := l.RolledBack(); return c, c != "" })
	r := reconciling(t, pg.DSN())
	if err := r.Raise(t.Context(), deferred[0].Position.Submission(), nil); err != nil {
		t.Fatal(err)
	}
	step := func(it message.Item, no int, k message.StepKind) message.Step {
		return message.Step{Position: it.Position, ID: it.ID, Attempt: no, Kind: k, At: time.Now(), Provider: "test"}
	}
	for range 2 { // as after one that broke off
		if err := r.Remember(t.Context(), []message.Step{
			step(sent[0], 2, message.StepKind(message.Sent)), step(claimed[0], 1, message.StepClaimed), step(deferred[0], 1, message.StepKind(message.Deferred)),
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.End(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() (bool, bool) { c, _ := l.RolledBack(); return true, c == "" })
	stranger := sent[0]
	claim(t, l, stranger, message.Stranger)
	sent, claimed, deferred = submit("sent"), submit("claimed"), submit("deferred")
	claim(t, l, sent[0], message.Taken)
	claim(t, l, claimed[0], message.Taken)
	for _, it := range []message.Item{sent[1], claimed[1], deferred[0], deferred[1]} {
		claim(t, l, it, message.Claimed)
	}
	state(t, l, sent[0], message.StateSent)
	state(t, l, claimed[0], message.StateInDoubt)
	if n := count(t, pg.DSN(), `select count(*) from told`); n != 0 {
		t.Errorf("%d are still told of", n)
	}
}

func TestReconcileKnowsWhatWasResent(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	items := make(map[string]message.Item)
	for name, o := range map[string]message.Outcome{
		"rejected": message.Rejected, "canceled": message.Rejected, "unknown": message.Unknown, "dropped": message.Unknown, "sent": message.Sent, "silent": 0, "thrice": message.Rejected, "unclaimed": 0,
	} {
		it := firstItem(t, l, tenant, name)
		if name != "unclaimed" {
			claim(t, l, it, message.Claimed)
		}
		if o != 0 {
			record(t, l, it, o, 0)
		}
		items[name] = it
	}
	if err := l.Decide(t.Context(), items["dropped"].ID, 0, message.DecideDrop, "ops", "too late"); err != nil {
		t.Fatal(err)
	}
	exec(t, dsn, `insert into doubt (n, no, cause) values ($1, 1, 'silent')`, int64(items["silent"].Position))

	exec(t, dsn, `insert into rollback (cause, back_to) values ('a restore', now())`)
	eventually(t, func() (string, bool) { c, _ := l.RolledBack(); return c, c != "" })
	r := reconciling(t, dsn)
	for range 2 { // as after one that broke off
		for name, it := range items {
			s := message.Step{Position: it.Position, ID: it.ID, Attempt: 2, Kind: message.StepKind(message.Rejected), At: time.Now(), Provider: "test"}
			switch name {
			case "canceled":
				s.Kind = message.StepCanceled
			case "thrice":
				s.Attempt = 3
			}
			if _, err := r.Retrace(t.Context(), []message.Step{s}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if err := r.End(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() (bool, bool) { c, _ := l.RolledBack(); return true, c == "" })
	doubts(t, l, 0)
	for name, it := range items {
		want := message.StateFailed
		if name == "canceled" {
			want = message.StateCanceled
		}
		v := state(t, l, it, want)
		if a := v.Attempts[0]; a.Decision != message.DecideResend || a.DecidedBy != "reconciled" {
			t.Errorf("%s: %+v", name, a)
		}
		it.Attempt = 2
		claim(t, l, it, message.Taken)
	}
	if v := state(t, l, items["dropped"], message.StateFailed); !strings.Contains(v.Attempts[0].Because, "(before: drop by ops, too late)") {
		t.Errorf("of the decision before: %q", v.Attempts[0].Because)
	}
	// What may have been taken is not sent again by a filter, nor what nobody knows
	// that of.
	look, err := l.LookReplay(t.Context(), message.ReplayFilter{}, "")
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]int64{"": 1, "maybe_sent": 5, "sent": 1, "canceled": 1}; !maps.Equal(look.Counts, want) {
		t.Errorf("a replay would look at them as %v, want %v", look.Counts, want)
	}
}

// Before a rollback is noticed, a restored ledger may make attempts whose numbers
// were told of already. That an earlier one wasn't taken says nothing of those.
func TestWhatWasNotTakenIsOfItsOwnAttempt(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	canceled, sent, open := firstItem(t, l, tenant, "canceled"), firstItem(t, l, tenant, "sent"), firstItem(t, l, tenant, "open")
	if _, err := l.Cancel(t.Context(), tenant, canceled.ID); err != nil {
		t.Fatal(err)
	}
	sentOnce(t, l, sent)
	claim(t, l, open, message.Claimed)
	exec(t, dsn, `insert into rollback (cause, back_to) values ('a restore', now())`)
	eventually(t, func() (string, bool) { c, _ := l.RolledBack(); return c, c != "" })
	r := reconciling(t, dsn)
	for _, it := range []message.Item{canceled, sent, open} {
		for _, k := range []message.Outcome{message.Deferred, message.Returned, message.Rejected} {
			for attempt := range 2 {
				s := message.Step{Position: it.Position, ID: it.ID, Attempt: attempt + 1, Kind: message.StepKind(k), At: time.Now().Add(-time.Minute), Provider: "test"}
				if _, err := r.Retrace(t.Context(), []message.Step{s}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	// Nor does it give leave where the ledger knows better.
	s := message.Step{Position: sent.Position, ID: sent.ID, Attempt: 1, Kind: message.StepKind(message.Deferred), At: time.Now(), Provider: "test"}
	if _, err := r.Retrace(t.Context(), []message.Step{s}); err != nil {
		t.Fatal(err)
	}
	if n := count(t, dsn, `select count(*) from waiting`); n != 0 {
		t.Errorf("%d have leave", n)
	}
	if n := count(t, dsn, `select count(*) from outcome where n in ($1, $2)`, int64(canceled.Position), int64(open.Position)); n != 0 {
		t.Errorf("%d have an outcome that is another attempt's", n)
	}
	if n := count(t, dsn, `select count(*) from attempt where no > 1`); n != 0 {
		t.Errorf("%d have another attempt", n)
	}
}

// reconciling begins a reconciliation of a ledger that was rolled back, for as long
// as the test goes.
func reconciling(t *testing.T, dsn string) *dedupe.Reconciliation {
	t.Helper()
	by, err := dedupe.Open(dedupe.Config{DSN: dsn, MaxConns: 4, Reconciling: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(by.Close)
	r, err := by.BeginReconcile(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}
