package dedupe_test

import (
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// TestOpenDoubts counts those that nobody has decided, and no others.
func TestOpenDoubts(t *testing.T) {
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	sub := ledgertest.Email(t, tenant, "k", "codes", "a@x.io", "b@x.io", "c@x.io")
	receipt, err := l.Accept(t.Context(), sub)
	if err != nil {
		t.Fatal(err)
	}
	want := func(n int64) {
		t.Helper()
		d, err := l.OpenDoubts(t.Context())
		if err != nil || d.Count != n || n > 0 && (d.Oldest <= 0 || d.Oldest > time.Minute) {
			t.Fatalf("%+v, %v, want %d", d, err, n)
		}
	}
	want(0)
	for _, it := range ledgertest.Items(sub, receipt)[:2] {
		c, err := l.Claim(t.Context(), it)
		if err != nil || c.Verdict != message.Claimed {
			t.Fatal(c, err)
		}
		if err := l.Record(t.Context(), message.Report{Position: it.Position, Attempt: 1, Provider: "relay", Result: message.Result{Outcome: message.Unknown}}); err != nil {
			t.Fatal(err)
		}
	}
	want(2)
	if err := l.Decide(t.Context(), sub.ID().Message(0), 0, message.DecideSent, "ops", "seen"); err != nil {
		t.Fatal(err)
	}
	want(1)
}

// TestWorkers counts the processes that deliver, as their names tell.
func TestWorkers(t *testing.T) {
	dsn := ledgertest.DSN(t)
	api := ledgertest.OpenWith(t, dedupe.Config{DSN: dsn, Name: "h:1", Roles: []string{"api", "watch"}})
	want := func(n int) {
		t.Helper()
		for by := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			got, err := api.Workers(t.Context())
			if err == nil && got == n {
				return
			}
			if time.Now().After(by) {
				t.Fatalf("%d workers, %v, want %d", got, err, n)
			}
		}
	}
	for by := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err := api.Beat(t.Context(), nil, time.Second); err == nil {
			break
		} else if time.Now().After(by) {
			t.Fatal(err)
		}
	}
	want(0)
	worker := func(name string, roles ...string) *dedupe.Ledger {
		l, err := dedupe.Open(dedupe.Config{DSN: dsn, Name: name, Roles: roles})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.Close)
		if err := l.Beat(t.Context(), nil, time.Second); err != nil {
			t.Fatal(err)
		}
		return l
	}
	worker("h:2", "worker", "watch")
	want(1)
	worker("h:3", "api", "worker")
	want(2)
	worker("h:4") // of a release that told no roles
	want(3)
	want(0) // their heartbeats are too old after 1.5 s
}
