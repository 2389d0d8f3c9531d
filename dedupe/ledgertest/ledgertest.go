// Package ledgertest gives each test a ledger in a database of its own.
package ledgertest

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/internal/devstack/teststack"
	"github.com/stormpost/stormpost/internal/message"
)

// DSN is a migrated, empty ledger's.
func DSN(t testing.TB) string {
	t.Helper()
	dsn := teststack.Database(t)
	if _, err := dedupe.Migrate(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	return dsn
}

// Open opens a ledger on dsn, or on a new one if that is empty. Its house is
// kept, with short beats, until the test ends.
func Open(t testing.TB, dsn string) *dedupe.Ledger {
	t.Helper()
	if dsn == "" {
		dsn = DSN(t)
	}
	return OpenWith(t, dedupe.Config{DSN: dsn})
}

// OpenWith is Open with more settings.
func OpenWith(t testing.TB, cfg dedupe.Config) *dedupe.Ledger {
	t.Helper()
	cfg.BeatEvery, cfg.GiveUp, cfg.Logger = 500*time.Millisecond, time.Second, slog.New(slog.NewTextHandler(t.Output(), nil))
	l, err := dedupe.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.Run(ctx, true)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		l.Close()
	})
	return l
}

// Tenant makes a tenant that may use any sender domain.
func Tenant(t testing.TB, l *dedupe.Ledger, name string) int32 {
	t.Helper()
	id, err := l.SetTenant(t.Context(), name, []string{"*"})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Email makes a submission of one transactional email to each recipient.
func Email(t testing.TB, tenant int32, key, stream string, to ...string) *message.Submission {
	t.Helper()
	c := &message.Content{Email: &message.Email{From: "app@example.com", To: to, Subject: "Hello", Text: "Hi", Options: message.Options{Stream: stream}}}
	s, err := message.Submit(tenant, key, c, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Items are the items that ask for the first attempt of each message of s.
func Items(s *message.Submission, r message.Receipt) []message.Item {
	items := make([]message.Item, len(s.Recipients))
	for i := range s.Recipients {
		items[i] = message.Item{
			Position: message.PositionOf(s.Lane, r.Submission, i), ID: s.ID().Message(i), Attempt: 1, Content: s.Content, Trace: s.Trace,
		}
	}
	return items
}

// Keys makes n idempotency keys.
func Keys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("key-%06d", i)
	}
	return keys
}
