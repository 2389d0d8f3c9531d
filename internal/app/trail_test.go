package app

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// What is not sent again after a lost answer, since its provider tells that it has it,
// is told to Kafka: by the API that hears of it, or by the worker that asks for it.
func TestStandInsAreOnTheTrail(t *testing.T) {
	b := newBroker(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := b.EnsureTrail(ctx); err != nil {
		t.Fatal(err)
	}
	trail, err := b.NewTrail()
	if err != nil {
		t.Fatal(err)
	}
	l := ledgertest.Open(t, "")
	cs := &clusters{placed: newPlacements(l, t.TempDir(), slog.New(slog.DiscardHandler)), all: []*cluster{{name: message.MainCluster, broker: b, clusterUse: clusterUse{trail: trail}}}}
	worker, api := trailed{l, cs}, canceling{l, cs}
	tenant := ledgertest.Tenant(t, l, "acme")
	claimed := func(key string) message.Item {
		s := ledgertest.Email(t, tenant, key, "s", "a@example.com")
		r, err := l.Accept(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		it := ledgertest.Items(s, r)[0]
		if c, err := worker.Claim(ctx, it); err != nil || c.Verdict != message.Claimed {
			t.Fatal(c, err)
		}
		return it
	}
	tell := func(it message.Item) {
		if err := api.Tell(ctx, []message.ProviderEvent{{ID: it.ID, Provider: "ses", Kind: message.EventDelivered, At: time.Now()}}); err != nil {
			t.Fatal(err)
		}
	}
	lost := func(it message.Item) {
		if err := worker.Record(ctx, message.Report{
			Position: it.Position, ID: it.ID, Attempt: 1, Provider: "ses", Result: message.Result{Outcome: message.Unknown}, Resend: "policy:transactional.email",
		}); err != nil {
			t.Fatal(err)
		}
	}
	after, before := claimed("after"), claimed("before")
	lost(after)
	tell(after)
	tell(before)
	lost(before)
	before.Attempt, before.Before = 2, message.Before{Provider: "ses", Outcome: message.Unknown, Basis: "policy:transactional.email"}
	if c, err := worker.Claim(ctx, before); err != nil || c.Verdict != message.Taken {
		t.Fatal(c, err)
	}
	if err := trail.Close(ctx); err != nil {
		t.Fatal(err)
	}
	told := make(map[message.ID]message.Step)
	if err := b.ReadTrail(ctx, time.Now().Add(-time.Hour), func(s message.Step) error {
		if was, ok := told[s.ID]; !ok || s.After(was) {
			told[s.ID] = s
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, it := range []message.Item{after, before} {
		if s := told[it.ID]; s.Attempt != 2 || s.Kind != message.StepKind(message.Sent) || s.Position != it.Position {
			t.Errorf("%+v", s)
		}
	}
}
