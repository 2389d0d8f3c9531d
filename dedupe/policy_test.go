package dedupe_test

import (
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// Where a policy says so, what a dead worker left open is resent.
func TestSilenceResentByPolicy(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	lane := message.Lane{Class: message.Transactional, Channel: message.ChannelEmail}
	l := ledgertest.OpenWith(t, dedupe.Config{DSN: dsn, Resend: map[message.Lane]string{lane: "policy:test"}})
	s := ledgertest.Email(t, ledgertest.Tenant(t, l, "acme"), "k", "s", "a@example.com")
	it := ledgertest.Items(s, accept(t, l, s))[0]
	gone, err := dedupe.Open(dedupe.Config{DSN: dsn, GiveUp: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	claim(t, gone, it, message.Claimed)
	gone.Close()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(20 * time.Second); ; {
		items, err := l.Due(t.Context(), lane, 10)
		if err != nil {
			t.Fatal(err)
		}
		if len(items) == 1 && items[0].Attempt == 2 {
			claim(t, l, items[0], message.Claimed)
			break
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("nothing is due")
		}
	}
	doubts(t, l, 0)
	record(t, l, message.Item{Position: it.Position, Attempt: 2}, message.Sent, 0)
	if v := state(t, l, it, message.StateSent); v.Attempts[0].DecidedBy != "policy:test" {
		t.Fatalf("attempts: %+v", v.Attempts)
	}
}
