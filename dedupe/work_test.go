package dedupe_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// What a worker records and claims at once is one transaction; and if that fails for one
// row's fault, the others come about all the same.
func TestWorkIsOneTransaction(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	var items []message.Item
	for i := range 4 {
		s := ledgertest.Email(t, tenant, fmt.Sprint("k", i), "s", "a@example.com")
		items = append(items, ledgertest.Items(s, accept(t, l, s))...)
	}
	sent := func(it message.Item) message.Report {
		return message.Report{Position: it.Position, Attempt: it.Attempt, Provider: "p", Result: message.Result{Outcome: message.Sent}}
	}
	nowhere := items[0]
	nowhere.Position = message.PositionOf(items[0].Position.Lane(), 1<<50, 0) // no partition has it

	for _, step := range []struct {
		what    string
		reports []message.Report
		items   []message.Item
		bad     int // of reports
	}{
		{"claims alone", nil, items[:2], 0},
		{"both", []message.Report{sent(items[0])}, items[2:3], 0},
		{"a bad report", []message.Report{sent(nowhere), sent(items[1])}, items[3:], 1},
		{"a claim of what is taken", []message.Report{sent(items[2])}, items[3:], 0},
		{"reports alone", []message.Report{sent(items[3])}, nil, 0},
	} {
		recorded, claims, claimed := l.Work(step.reports, step.items)
		bad := 0
		for _, err := range recorded {
			if err != nil {
				bad++
			}
		}
		if bad != step.bad || bad > 0 && recorded[0] == nil {
			t.Errorf("%s: recorded %v", step.what, recorded)
		}
		want := message.Claimed
		if step.what == "a claim of what is taken" {
			want = message.Taken
		}
		for i := range claims {
			if claims[i].Verdict != want || claimed[i] != nil {
				t.Errorf("%s: claim %d: %+v, %v", step.what, i, claims[i], claimed[i])
			}
		}
	}
	for _, it := range items {
		state(t, l, it, message.StateSent)
	}
	var together bool
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(conn.QueryRow(t.Context(), `select (select xmin::text from outcome where n = $1) = (select xmin::text from attempt where n = $2)`,
		int64(items[0].Position), int64(items[2].Position)).Scan(&together), conn.Close(t.Context()))
	if err != nil || !together {
		t.Errorf("the outcome and the attempt are of two transactions, or %v", err)
	}
}

// What claims wait for holds up no records, and a lock on one message's leave no
// other class's claims.
func TestWorkWaitsApart(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l, err := dedupe.Open(dedupe.Config{DSN: dsn, Deadline: 400 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tenant := ledgertest.Tenant(t, l, "acme")
	next := func(class, key string) message.Item {
		s := submission(t, tenant, key, message.Options{Stream: "s", Class: class}, "a@example.com")
		return ledgertest.Items(s, accept(t, l, s))[0]
	}
	var claimed, others []message.Item
	for i := range 4 {
		claimed = append(claimed, next("campaign", fmt.Sprint("c", i)))
		others = append(others, next("transactional", fmt.Sprint("t", i)))
	}
	for _, it := range claimed {
		claim(t, l, it, message.Claimed)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	within := func(what string, do func()) {
		t.Helper()
		done := make(chan struct{})
		wg.Go(func() { do(); close(done) })
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Errorf("%s waits", what)
		}
	}

	release := lock(t, dsn, "lock table attempt in share mode")
	for i := range 2 { // each holds a batch up
		wg.Go(func() { claim(t, l, others[i], message.Claimed) })
		time.Sleep(50 * time.Millisecond)
	}
	within("a record, beside claims that do", func() { record(t, l, claimed[0], message.Sent, 0) })
	release()

	// A leave of its own that somebody has in hand.
	release = lock(t, dsn, fmt.Sprintf("insert into waiting (n, no, lane, due) values (%[1]d, 2, %[1]d::bigint >> 57, now())", claimed[1].Position))
	wg.Go(func() { record(t, l, claimed[1], message.Deferred, time.Second) })
	time.Sleep(50 * time.Millisecond)
	within("another class's claim, beside a record that does", func() { claim(t, l, others[2], message.Claimed) })
	within("another class's record, beside one that does", func() { record(t, l, others[2], message.Sent, 0) })
	release()
}

// A claim whose answer was lost finds its own attempt, whatever a hold or a second
// claim say by then.
func TestClaimAskedAgainIsItsOwn(t *testing.T) {
	t.Parallel()
	l, _, it := one(t)
	again, other, err := l.ClaimAgain(it, func() {
		addHold(t, l, message.Hold{Lane: it.Position.Lane()})
		settled()
	})
	if err != nil || again.Verdict != message.Claimed || other.Verdict == message.Claimed {
		t.Errorf("%+v, the other %+v, %v", again, other, err)
	}
}

// A worker that ends leaves no call without an answer.
func TestWorkEndsWithTheLedger(t *testing.T) {
	t.Parallel()
	l, _, it := one(t)
	claim(t, l, it, message.Claimed)
	done := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := l.Claim(t.Context(), it)
			done <- err
		}()
	}
	l.Close()
	for range 2 {
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Fatal("a claim was never answered")
		}
	}
}
