package dedupe_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

func accept(t *testing.T, l *dedupe.Ledger, s *message.Submission) message.Receipt {
	t.Helper()
	r, err := l.Accept(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func exec(t *testing.T, dsn, sql string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func TestAcceptNumbersEachRecipient(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	if r := accept(t, l, ledgertest.Email(t, tenant, "k1", "orders", "a@example.com", "b@example.com", "c@example.com")); r.Sequence != 1 || r.Replayed {
		t.Fatalf("first: %+v", r)
	}
	second := ledgertest.Email(t, tenant, "k2", "orders", "d@example.com")
	r := accept(t, l, second)
	if r.Sequence != 4 {
		t.Fatalf("the second submission's number is %d, want 4", r.Sequence)
	}
	if other := accept(t, l, ledgertest.Email(t, tenant, "k3", "other", "a@example.com")); other.Sequence != 1 {
		t.Fatalf("another stream begins at %d", other.Sequence)
	}
	v, err := l.Message(t.Context(), tenant, second.ID().Message(0))
	if err != nil {
		t.Fatal(err)
	}
	if v.State != message.StateQueued || v.Sequence != 4 || v.Stream != "orders" || v.Recipient != "d@example.com" || string(v.Content) != string(second.Content) {
		t.Fatalf("view: %+v", v)
	}
	if _, err := l.Message(t.Context(), tenant+1, second.ID().Message(0)); !errors.Is(err, message.ErrNotFound) {
		t.Fatalf("another tenant sees it: %v", err)
	}
	if _, err := l.Message(t.Context(), tenant, second.ID().Message(1)); !errors.Is(err, message.ErrNotFound) {
		t.Fatalf("a recipient that never was: %v", err)
	}
}

func TestAcceptOneKeyOnce(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	ledgers := []*dedupe.Ledger{ledgertest.Open(t, dsn), ledgertest.Open(t, dsn), ledgertest.Open(t, dsn)}
	tenant := ledgertest.Tenant(t, ledgers[0], "acme")
	var wg sync.WaitGroup
	receipts := make([]message.Receipt, 300)
	errs := make([]error, 300)
	for i := range receipts {
		wg.Go(func() {
			receipts[i], errs[i] = ledgers[i%3].Accept(t.Context(), ledgertest.Email(t, tenant, "one", "s", "a@example.com"))
		})
	}
	wg.Wait()
	fresh := 0
	for i, r := range receipts {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		if !r.Replayed {
			fresh++
		}
		if r.Sequence != 1 || r.Submission != receipts[0].Submission {
			t.Fatalf("answer %d differs: %+v", i, r)
		}
	}
	if fresh != 1 {
		t.Fatalf("%d of 300 were fresh", fresh)
	}
	if _, err := ledgers[1].Accept(t.Context(), ledgertest.Email(t, tenant, "one", "s", "other@example.com")); !errors.Is(err, message.ErrKeyReused) {
		t.Fatalf("another request under the key: %v", err)
	}
	a, err := ledgers[0].Audit(t.Context(), tenant, "s")
	if err != nil || a.Last != 1 || len(a.Missing) != 0 || a.States[message.StateQueued] != 1 {
		t.Fatalf("audit: %+v %v", a, err)
	}
}

func TestAcceptWithoutGaps(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	ledgers := []*dedupe.Ledger{ledgertest.Open(t, dsn), ledgertest.Open(t, dsn)}
	tenant := ledgertest.Tenant(t, ledgers[0], "acme")
	var wg sync.WaitGroup
	for i := range 2000 {
		wg.Go(func() {
			s := ledgertest.Email(t, tenant, fmt.Sprint(i), fmt.Sprint("s", i%7), "a@example.com", "b@example.com")
			if _, err := ledgers[i%2].Accept(t.Context(), s); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	total := int64(0)
	for i := range 7 {
		a, err := ledgers[0].Audit(t.Context(), tenant, fmt.Sprint("s", i))
		if err != nil {
			t.Fatal(err)
		}
		if a.First != 1 || len(a.Missing) != 0 || a.States[message.StateQueued] != a.Last {
			t.Errorf("stream %d: %+v", i, a)
		}
		total += a.Last
	}
	if total != 4000 {
		t.Fatalf("%d messages are numbered, want 4000", total)
	}
}

func TestAcceptBadRowFailsAlone(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			s := ledgertest.Email(t, tenant, fmt.Sprint(i), "s", "a@example.com")
			if i == 77 {
				s.Recipients[0] = "nul\x00byte" // text can't hold it
			}
			_, err := l.Accept(t.Context(), s)
			if (err != nil) != (i == 77) {
				t.Errorf("submission %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if a, err := l.Audit(t.Context(), tenant, "s"); err != nil || a.Last != 199 || len(a.Missing) != 0 {
		t.Fatalf("audit: %+v %v", a, err)
	}
}

func TestLostCounterIsNotANewZero(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	accept(t, l, ledgertest.Email(t, tenant, "1", "s", "a@example.com"))
	exec(t, dsn, `delete from counter`)
	_, err := l.Accept(t.Context(), ledgertest.Email(t, tenant, "2", "s", "a@example.com"))
	if !errors.Is(err, dedupe.ErrNumbering) || !errors.Is(err, message.ErrUnavailable) {
		t.Fatalf("accepting without a counter: %v", err)
	}
	// Also in another process, which has not seen the stream before.
	if _, err = ledgertest.Open(t, dsn).Accept(t.Context(), ledgertest.Email(t, tenant, "3", "s", "a@example.com")); !errors.Is(err, dedupe.ErrNumbering) {
		t.Fatalf("accepting without a counter in a new process: %v", err)
	}
}
