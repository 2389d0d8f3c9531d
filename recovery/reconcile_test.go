package recovery_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/recovery"
)

// kafka is what it knows.
type kafka struct {
	lanes    []recovery.Witness
	journals []recovery.Kept
	trail    []message.Step
	asked    time.Time // from when on the journals were read
}

func (k *kafka) evidence() recovery.Evidence {
	return recovery.Evidence{
		Lanes: func(_ context.Context, _ time.Time, use func(recovery.Witness) error) error {
			return each(k.lanes, use)
		},
		Journals: func(_ context.Context, from time.Time, use func(recovery.Kept) error) error {
			k.asked = from
			return each(k.journals, use)
		},
		Trail: func(_ context.Context, _ time.Time, use func(message.Step) error) error { return each(k.trail, use) },
	}
}

func each[T any](all []T, use func(T) error) error {
	for _, v := range all {
		if err := use(v); err != nil {
			return err
		}
	}
	return nil
}

// restored is a ledger that was rolled back, and what reconciles it.
type restored struct {
	*dedupe.Ledger
	dsn    string
	tenant int32
}

func restore(t *testing.T) restored {
	t.Helper()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	return restored{l, dsn, ledgertest.Tenant(t, l, "acme")}
}

// books stops the ledger, and has the right to reconcile it.
func (r restored) books(t *testing.T) *dedupe.Reconciliation {
	t.Helper()
	r.exec(t, `insert into rollback (cause, back_to) values ('a restore', now()) on conflict do nothing`)
	by, err := dedupe.Open(dedupe.Config{DSN: r.dsn, MaxConns: 4, Reconciling: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(by.Close)
	books, err := by.BeginReconcile(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(books.Close)
	return books
}

func (r restored) exec(t *testing.T, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), r.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

// wants waits for a message's state.
func (r restored) wants(t *testing.T, id message.ID, want message.State) {
	t.Helper()
	var v *message.View
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if v, err = r.Message(t.Context(), 0, id); err == nil && v.State == want {
			return
		}
	}
	t.Errorf("%+v %v, want %s", v, err, want)
}

// forgotten is a submission that the ledger doesn't have, and its record in a lane.
func (r restored) forgotten(t *testing.T, key string, at message.Position) (*message.Submission, recovery.Witness) {
	t.Helper()
	s := ledgertest.Email(t, r.tenant, key, "s", "a@example.com")
	return s, recovery.Witness{Source: "lane/0/" + key, Item: message.Item{
		Position: at, ID: s.ID().Message(0), Attempt: 1, Content: s.Content,
		Origin: &message.Origin{Tenant: s.Tenant, AcceptedAt: time.Now(), ExpiresAt: s.ExpiresAt, Sequence: 7},
	}}
}

// What the ledger refuses of a journal, as that of a tenant which it has forgotten, is
// parked, and the rest is entered.
func TestReconcileParksWhatTheLedgerRefuses(t *testing.T) {
	r := restore(t)
	var k kafka
	var ids []message.ID
	var refused message.ID
	for key, tenant := range map[string]int32{"lost": r.tenant, "refused": r.tenant + 1, "also lost": r.tenant} {
		s := ledgertest.Email(t, tenant, key, "s", "a@example.com")
		kept := recovery.Kept{Journaled: message.Journaled{Submission: s, AcceptedAt: time.Now().Add(-time.Hour)}, Source: "journal/0/" + key, Value: s.Content}
		k.journals = append(k.journals, kept, kept)
		if tenant != r.tenant {
			refused = s.ID().Message(0)
		} else {
			ids = append(ids, s.ID().Message(0))
		}
	}
	from := time.Now().Add(-24 * time.Hour)
	sum, err := recovery.Reconcile(t.Context(), recovery.ReconcileConfig{Books: r.books(t), Evidence: k.evidence(), From: time.Now(), Journals: from, By: "test"})
	if err != nil || sum.Journaled != 3 || sum.Parked != 2 || !k.asked.Equal(from) {
		t.Errorf("%+v %v, read from %s", sum, err, k.asked)
	}
	for _, id := range ids {
		r.wants(t, id, message.StateQueued)
	}
	r.wants(t, refused, message.StateHeld)
}

// breaking is books that fail in the middle.
type breaking struct{ recovery.Books }

func (breaking) Retrace(context.Context, []message.Step) (int, error) {
	return 0, errors.New("broken off")
}

// A message whose place was taken is put elsewhere. If that is all that a run did, the
// next one still knows that its record was handled, and nothing told of it.
func TestReconcileGoesOnWhereMessagesAre(t *testing.T) {
	r := restore(t)
	taken := ledgertest.Email(t, r.tenant, "taken", "s", "a@example.com")
	at, err := r.Accept(t.Context(), taken)
	if err != nil {
		t.Fatal(err)
	}
	s, w := r.forgotten(t, "handled", message.PositionOf(taken.Lane, at.Submission, 0))
	w.Handled = true
	k := kafka{lanes: []recovery.Witness{w}}
	books := r.books(t)
	cfg := recovery.ReconcileConfig{Books: breaking{books}, Evidence: k.evidence(), From: time.Now(), By: "test"}
	if _, err := recovery.Reconcile(t.Context(), cfg); err == nil {
		t.Fatal("it didn't break off")
	}
	cfg.Books = books
	if _, err := recovery.Reconcile(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	r.wants(t, s.ID().Message(0), message.StateInDoubt)
	r.wants(t, taken.ID().Message(0), message.StateQueued)
}

// What a lane and a journal have both is counted once, also by a dry run.
func TestReconcileCountsOnce(t *testing.T) {
	r := restore(t)
	s, w := r.forgotten(t, "both", message.PositionOf(message.Lane{Class: message.Transactional, Channel: message.ChannelEmail}, 77, 0))
	k := kafka{lanes: []recovery.Witness{w}, journals: []recovery.Kept{{Journaled: message.Journaled{Submission: s, AcceptedAt: time.Now()}, Value: s.Content}}}
	cfg := recovery.ReconcileConfig{Books: r.books(t), Evidence: k.evidence(), From: time.Now(), By: "test"}
	for _, cfg.DryRun = range []bool{true, false} {
		sum, err := recovery.Reconcile(t.Context(), cfg)
		if err != nil || sum.Lost != 1 || sum.Journaled != 0 {
			t.Errorf("dry run %v: %+v %v, want 1 lost and none from a journal", cfg.DryRun, sum, err)
		}
	}
	r.wants(t, s.ID().Message(0), message.StateQueued)
}

// After a lost answer a message may be tied to the provider that may have it. What
// decided that is forgotten, so nobody else gets it unless a person says so.
func TestReconcileKnowsThatAnAnswerWasLost(t *testing.T) {
	r := restore(t)
	var k kafka
	tell := func(w recovery.Witness, kinds ...message.StepKind) {
		no := 0
		for _, kind := range kinds {
			if kind == message.StepClaimed {
				no++
			}
			k.trail = append(k.trail, message.Step{Position: w.Position, ID: w.ID, Attempt: no, Kind: kind, At: time.Now(), Provider: "test"})
		}
		k.lanes = append(k.lanes, w)
	}
	const unknown, deferred, sent = message.StepKind(message.Unknown), message.StepKind(message.Deferred), message.StepKind(message.Sent)
	lane := ledgertest.Email(t, r.tenant, "any", "s", "a@example.com").Lane
	lost, lostRecord := r.forgotten(t, "lost", message.PositionOf(lane, 100, 0))
	tell(lostRecord, message.StepClaimed, unknown, message.StepClaimed, deferred)
	came, cameRecord := r.forgotten(t, "came", message.PositionOf(lane, 101, 0))
	tell(cameRecord, message.StepClaimed, unknown, message.StepClaimed, sent)
	plain, plainRecord := r.forgotten(t, "plain", message.PositionOf(lane, 102, 0))
	tell(plainRecord, message.StepClaimed, deferred, message.StepClaimed, deferred)
	if _, err := recovery.Reconcile(t.Context(), recovery.ReconcileConfig{Books: r.books(t), Evidence: k.evidence(), From: time.Now(), By: "test"}); err != nil {
		t.Fatal(err)
	}
	r.wants(t, lost.ID().Message(0), message.StateInDoubt)
	r.wants(t, came.ID().Message(0), message.StateSent)
	r.wants(t, plain.ID().Message(0), message.StateWaiting)
}
