package dedupe_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

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
