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

func pushTo(t *testing.T, tenant int32, key, token string, test bool) *message.Submission {
	t.Helper()
	c := &message.Content{Push: &message.Push{Platform: "apns", To: message.Target{Token: token}, Data: map[string]string{"a": "b"}}}
	s, err := message.Submit(tenant, key, c, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.Test = test
	return s
}

// fail has a message refused with a code.
func fail(t *testing.T, l *dedupe.Ledger, it message.Item, code string) {
	t.Helper()
	claim(t, l, it, message.Claimed)
	r := message.Report{Position: it.Position, Attempt: it.Attempt, Provider: "apns", Result: message.Result{Outcome: message.Rejected, Code: code, Reply: "410 Unregistered"}}
	if err := l.Record(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

func changes(t *testing.T, l *dedupe.Ledger, since uint64) (active, cleared [][16]byte, next uint64) {
	t.Helper()
	next, err := l.SuppressionChanges(t.Context(), since, func(c message.SuppressionChange) {
		if c.Active {
			active = append(active, c.Digest)
		} else {
			cleared = append(cleared, c.Digest)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return active, cleared, next
}

// A recipient that is gone is on its tenant's list from the transaction that
// records it on, and nobody else's; cleared, it stays off until it is gone again.
func TestSuppression(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant, other := ledgertest.Tenant(t, l, "acme"), ledgertest.Tenant(t, l, "other")
	send := func(tenant int32, key, token string, test bool) message.Item {
		t.Helper()
		s := pushTo(t, tenant, key, token, test)
		return ledgertest.Items(s, accept(t, l, s))[0]
	}
	list := func(f message.SuppressionFilter) []message.Suppression {
		t.Helper()
		f.Limit = 10
		p, err := l.Suppressions(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		return p.Items
	}
	first, second, late := send(tenant, "1", "gone", false), send(tenant, "2", "gone", false), send(tenant, "3", "gone", false)
	fail(t, l, send(tenant, "4", "bad", false), "BadDeviceToken")
	fail(t, l, send(tenant, "5", "tested", true), message.RecipientGone)
	if all := list(message.SuppressionFilter{}); len(all) != 0 {
		t.Fatalf("suppressed: %+v", all)
	}
	fail(t, l, first, message.RecipientGone)
	if v := state(t, l, first, message.StateFailed); v.Reason != message.RecipientGone {
		t.Errorf("it failed for %q", v.Reason)
	}
	fail(t, l, second, message.RecipientGone)
	all := list(message.SuppressionFilter{Tenant: tenant, Channel: message.ChannelPush, Recipient: "gone"})
	if len(all) != 1 || all[0].Recipient != "gone" || all[0].Reason != message.RecipientGone || all[0].Provider != "apns" || all[0].Channel != message.ChannelPush || all[0].Tenant != tenant {
		t.Fatalf("suppressed: %+v", all)
	}
	for _, f := range []message.SuppressionFilter{{Tenant: other}, {Channel: message.ChannelEmail}, {Recipient: "gon"}} {
		if found := list(f); len(found) != 0 {
			t.Errorf("%+v: %+v", f, found)
		}
	}
	digest := message.SuppressionDigest(tenant, message.ChannelPush, "gone")
	active, cleared, next := changes(t, l, 0)
	if len(active) != 1 || active[0] != digest || len(cleared) != 0 {
		t.Errorf("changes: %x, %x", active, cleared)
	}

	if _, err := l.ClearSuppression(t.Context(), other, all[0].ID, "somebody"); !errors.Is(err, message.ErrNotFound) {
		t.Errorf("cleared by another tenant: %v", err)
	}
	s, err := l.ClearSuppression(t.Context(), tenant, all[0].ID, "acme key x")
	if err != nil || s.ClearedBy != "acme key x" || s.ClearedAt.IsZero() {
		t.Errorf("cleared: %+v, %v", s, err)
	}
	if _, err := l.ClearSuppression(t.Context(), tenant, all[0].ID, "somebody"); !errors.Is(err, message.ErrNotFound) {
		t.Errorf("cleared again: %v", err)
	}
	if _, cleared, _ = changes(t, l, next); len(cleared) != 1 || cleared[0] != digest {
		t.Errorf("changes after clearing: %x", cleared)
	}
	fail(t, l, late, message.RecipientGone) // accepted before it was cleared
	if all := list(message.SuppressionFilter{}); len(all) != 0 {
		t.Errorf("what was cleared is back by an old message: %+v", all)
	}
	fail(t, l, send(tenant, "6", "gone", false), message.RecipientGone)
	if all := list(message.SuppressionFilter{}); len(all) != 1 || !all[0].ClearedAt.IsZero() {
		t.Errorf("gone again: %+v", all)
	}
}

// Pages go on where the one before ended, newest first.
func TestSuppressionPages(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	for _, key := range ledgertest.Keys(5) {
		s := pushTo(t, tenant, key, "token-"+key, false)
		fail(t, l, ledgertest.Items(s, accept(t, l, s))[0], message.RecipientGone)
	}
	var got []string
	f := message.SuppressionFilter{Limit: 2}
	for {
		p, err := l.Suppressions(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range p.Items {
			got = append(got, s.Recipient)
		}
		if f.Cursor = p.Next; f.Cursor == "" {
			break
		}
	}
	if len(got) != 5 || got[0] != "token-key-000004" || got[4] != "token-key-000000" {
		t.Errorf("pages: %v", got)
	}
	if _, err := l.Suppressions(t.Context(), message.SuppressionFilter{Cursor: "!", Limit: 1}); err == nil {
		t.Error("a cursor that is none")
	}
}

// A change is seen whichever transaction commits first.
func TestSuppressionChangesLeaveNothingOut(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	slow, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	insert := `insert into suppression (tenant, channel, digest, recipient, reason) values ($1, 2, suppression_digest($1, 2::smallint, $2), $2, 'recipient_gone')`
	if _, err := slow.Exec(t.Context(), insert, tenant, "slow"); err != nil {
		t.Fatal(err)
	}
	exec(t, dsn, `insert into suppression (tenant, channel, digest, recipient, reason) select id, 2, suppression_digest(id, 2::smallint, 'quick'), 'quick', 'recipient_gone' from tenant`)
	active, _, next := changes(t, l, 0)
	if len(active) != 1 || active[0] != message.SuppressionDigest(tenant, message.ChannelPush, "quick") {
		t.Fatalf("changes: %x", active)
	}
	if err := slow.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	found := false
	active, _, _ = changes(t, l, next)
	for _, d := range active {
		found = found || d == message.SuppressionDigest(tenant, message.ChannelPush, "slow")
	}
	if !found {
		t.Errorf("what began first and was committed last is left out: %x", active)
	}
}
