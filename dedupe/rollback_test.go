package dedupe_test

import (
	"context"
	"errors"
	"maps"
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
	by, err := dedupe.Open(dedupe.Config{DSN: pg.DSN(), MaxConns: 4, Reconciling: true})
	if err != nil {
		t.Fatal(err)
	}
	defer by.Close()
	r, err := by.BeginReconcile(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
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
	by, err := dedupe.Open(dedupe.Config{DSN: dsn, MaxConns: 4, Reconciling: true})
	if err != nil {
		t.Fatal(err)
	}
	defer by.Close()
	r, err := by.BeginReconcile(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
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
