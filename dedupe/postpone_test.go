package dedupe_test

import (
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// What is postponed is out of the way of the others, can't be claimed before it
// is due, and then is, once. What can't be postponed is left as it is.
func TestPostpone(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, ledgertest.DSN(t))
	tenant := ledgertest.Tenant(t, l, "acme")
	first, second := ledgertest.Email(t, tenant, "1", "s", "a@example.com"), ledgertest.Email(t, tenant, "2", "s", "a@example.com")
	it, other := ledgertest.Items(first, accept(t, l, first))[0], ledgertest.Items(second, accept(t, l, second))[0]
	postpone := func(it message.Item, wait time.Duration, want bool) {
		t.Helper()
		if got, err := l.Postpone(t.Context(), it, wait); err != nil || got != want {
			t.Fatalf("postponed: %v, %v; want %v", got, err, want)
		}
	}
	claim := func(it message.Item, want message.ClaimVerdict) {
		t.Helper()
		if c, err := l.Claim(t.Context(), it); err != nil || c.Verdict != want {
			t.Fatalf("verdict %v, %v; want %v", c.Verdict, err, want)
		}
	}
	postpone(it, time.Second, true)
	claim(it, message.NotDue)
	postpone(it, time.Hour, false) // it waits already
	unclaimed, err := l.Unclaimed(t.Context(), it.Position.Lane(), 0, 10)
	if err != nil || len(unclaimed) > 1 || len(unclaimed) == 1 && unclaimed[0].Position != other.Position {
		t.Errorf("unclaimed: %v, %v", unclaimed, err)
	}
	fed := due(t, l, it.Position.Lane())
	if fed.Position != it.Position || fed.Attempt != 1 || fed.ID != it.ID {
		t.Fatalf("due: %+v", fed)
	}
	postpone(fed, time.Millisecond, true)
	fed = due(t, l, it.Position.Lane())
	claim(fed, message.Claimed)
	claim(it, message.Taken)
	postpone(it, time.Second, false)

	if err := l.Record(t.Context(), message.Report{Position: it.Position, ID: it.ID, Attempt: 1, Provider: "p", Result: message.Result{Outcome: message.Deferred}}); err != nil {
		t.Fatal(err)
	}
	again := due(t, l, it.Position.Lane())
	postpone(it, time.Second, false) // another attempt's
	postpone(again, time.Millisecond, true)
	again = due(t, l, it.Position.Lane())
	if again.Attempt != 2 || again.Tenant != tenant || again.Before != (message.Before{Provider: "p", Outcome: message.Deferred}) {
		t.Fatalf("due: %+v", again)
	}
	if name, err := l.TenantName(t.Context(), again.Tenant); name != "acme" || err != nil {
		t.Errorf("tenant %q, %v", name, err)
	}
	claim(again, message.Claimed)

	// What was lost and decided by a policy says by which.
	policy := message.RepeatPolicy + "p:account"
	lost := message.Report{Position: it.Position, ID: it.ID, Attempt: 2, Provider: "p", Resend: policy, Result: message.Result{Outcome: message.Unknown}}
	if err := l.Record(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	again = due(t, l, it.Position.Lane())
	if again.Attempt != 3 || again.Before != (message.Before{Provider: "p", Outcome: message.Unknown, Basis: policy}) {
		t.Fatalf("due: %+v", again)
	}
	claim(again, message.Claimed)
	stranger := other
	stranger.Position += 64 << 20
	postpone(stranger, time.Second, false)
	claim(other, message.Claimed)
}
