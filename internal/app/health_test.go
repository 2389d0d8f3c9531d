package app

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/recovery"
)

// A ledger that was rolled back answers, but takes nothing: without a journal a
// process isn't ready.
func TestNotReadyWhileRolledBack(t *testing.T) {
	if testing.Short() {
		t.Skip("needs PostgreSQL")
	}
	dsn := ledgertest.DSN(t)
	p := &process{ledger: ledgertest.Open(t, dsn), guard: new(recovery.Guard), clusters: new(clusters)}
	ledger := func() error { return p.ready(t.Context())[0].Err }
	if err := ledger(); err != nil || !p.ledgerStands(t.Context()) {
		t.Fatalf("a ledger that stands: %v", err)
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `insert into rollback (cause, back_to) values ('restored', now())`); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if cause, _ := p.ledger.RolledBack(); cause != "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the rollback isn't seen")
		}
	}
	if err := ledger(); !errors.Is(err, dedupe.ErrRolledBack) {
		t.Errorf("ready: %v", err)
	}
	if p.ledgerStands(t.Context()) {
		t.Error("it stands")
	}
}

// A release that is ahead of the ledger's schema doesn't become ready, until it is
// migrated; with the ledger away nobody knows.
func TestNotReadyBeforeMigrate(t *testing.T) {
	if testing.Short() {
		t.Skip("needs PostgreSQL")
	}
	dsn := ledgertest.DSN(t)
	p := &process{ledger: ledgertest.Open(t, dsn), guard: new(recovery.Guard), clusters: new(clusters), log: slog.New(slog.DiscardHandler)}
	failing := func() string {
		for _, c := range p.ready(t.Context()) {
			if c.Err != nil {
				return c.Name + ": " + c.Err.Error()
			}
		}
		return ""
	}
	if got := failing(); !strings.HasPrefix(got, "schema: ") {
		t.Errorf("before anybody has asked: %q", got)
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`delete from goose_db_version where version_id = 26`)
	asked, done := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	go func() {
		defer close(done)
		first := sync.OnceFunc(func() { close(asked) })
		p.schema.look(ctx, func(ctx context.Context) (string, error) {
			step, err := p.ledger.Behind(ctx)
			defer first()
			return step, err
		}, p.log)
	}()
	<-asked
	for p.schema.err() == errNotAsked {
		runtime.Gosched()
	}
	if got := failing(); got != "schema: 0026_claim.sql is not applied: run stormpost migrate" {
		t.Errorf("before migrate: %q", got)
	}
	exec(`insert into goose_db_version (version_id, is_applied) values (26, true)`)
	<-done
	if got := failing(); got != "" {
		t.Errorf("after migrate: %q", got)
	}

	var s schema
	ctx, cancel = context.WithCancel(t.Context())
	s.look(ctx, func(context.Context) (string, error) { cancel(); return "", errors.New("connection refused") }, p.log)
	if err := s.err(); err != nil {
		t.Errorf("with the ledger away: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	looks := 0
	s.lack.Store(nil)
	s.look(ctx, func(context.Context) (string, error) {
		if looks++; looks == 1 {
			return "0027_next.sql", nil
		}
		cancel()
		return "", errors.New("connection refused")
	}, p.log)
	if err := s.err(); err == nil {
		t.Error("what is lacking is forgotten when the ledger goes away")
	}
	exec(`drop table goose_db_version`)
	if step, err := p.ledger.Behind(t.Context()); err != nil || step != "0001_tables.sql" {
		t.Errorf("an empty ledger: %q, %v", step, err)
	}
}
