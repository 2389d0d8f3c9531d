package dedupe_test

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

func enter(t *testing.T, l *dedupe.Ledger, s *message.Submission, at time.Time) message.Receipt {
	t.Helper()
	r, err := l.Enter(t.Context(), message.Journaled{Submission: s, AcceptedAt: at})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// What the journal kept is entered once, with the door's time, and can be sent;
// a repeat at the door gets its answer.
func TestEnterOnce(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	ledgers := []*dedupe.Ledger{ledgertest.Open(t, dsn), ledgertest.Open(t, dsn)}
	l := ledgers[0]
	tenant := ledgertest.Tenant(t, l, "acme")
	at := time.Now().Add(-time.Hour).Truncate(time.Microsecond)
	var wg sync.WaitGroup
	for i := range 200 { // each comes four times, through two processes
		wg.Go(func() {
			s := ledgertest.Email(t, tenant, fmt.Sprint(i/4), "s", "a@example.com", "b@example.com")
			if _, err := ledgers[i%2].Enter(t.Context(), message.Journaled{Submission: s, AcceptedAt: at}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	a, err := l.Audit(t.Context(), tenant, "s")
	if err != nil || a.First != 1 || a.Last != 100 || len(a.Missing) != 0 || a.States[message.StateQueued] != 100 {
		t.Fatalf("audit: %+v %v", a, err)
	}
	s := ledgertest.Email(t, tenant, "7", "s", "a@example.com", "b@example.com")
	r := accept(t, l, s)
	if !r.Replayed {
		t.Error("a repeat at the door is fresh")
	}
	for _, it := range ledgertest.Items(s, r) {
		if v := state(t, l, it, message.StateQueued); !v.AcceptedAt.Equal(at) || v.EnteredAt.Before(at.Add(30*time.Minute)) {
			t.Errorf("accepted at %s, entered at %s, want accepted at %s", v.AcceptedAt, v.EnteredAt, at)
		}
		claim(t, l, it, message.Claimed)
	}
	// A door's clock that is ahead doesn't make a message of the future.
	ahead := ledgertest.Email(t, tenant, "ahead", "s", "a@example.com")
	it := ledgertest.Items(ahead, enter(t, l, ahead, time.Now().Add(time.Hour)))[0]
	if v := state(t, l, it, message.StateQueued); v.AcceptedAt.After(time.Now().Add(time.Minute)) {
		t.Errorf("accepted at %s", v.AcceptedAt)
	}
}

// Another request under a known key is kept under its own id, and held.
func TestEnterHoldsAConflict(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	first := ledgertest.Email(t, tenant, "k", "s", "a@example.com")
	accept(t, l, first)
	second := ledgertest.Email(t, tenant, "k", "s", "b@example.com", "c@example.com")
	second.SendAt = time.Now().Add(time.Hour)
	r := enter(t, l, second, time.Now())
	if again := enter(t, l, second, time.Now()); !r.Held || !again.Held || !again.Replayed || again.Submission != r.Submission {
		t.Errorf("receipts: %+v %+v", r, again)
	}
	for _, it := range ledgertest.Items(second, r) {
		if v := state(t, l, it, message.StateHeld); v.Reason != "key_conflict" || !v.DueAt.IsZero() || v.ID != it.ID || v.Recipient != second.Recipients[it.ID.Index()] {
			t.Errorf("held: %+v", v)
		}
		claim(t, l, it, message.Taken)
	}
	page, err := l.Messages(t.Context(), message.Filter{Tenant: tenant, Submission: second.ID(), Limit: 10})
	if err != nil || len(page.Items) != 2 || page.Items[0].State != message.StateHeld {
		t.Errorf("list: %+v %v", page, err)
	}
	if v, err := l.Message(t.Context(), tenant, first.ID().Message(0)); err != nil || v.State != message.StateQueued {
		t.Errorf("the first: %+v %v", v, err)
	}
	a, err := l.Audit(t.Context(), tenant, "s")
	if err != nil || a.Last != 3 || len(a.Missing) != 0 {
		t.Errorf("audit: %+v %v", a, err)
	}
}

// What is at fault fails alone: a tenant that never was is the record's fault, a
// stream without its counter the ledger's.
func TestEnterFailures(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	accept(t, l, ledgertest.Email(t, tenant, "k", "broken", "a@example.com"))
	if _, err := conn.Exec(t.Context(), `delete from counter`); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() { enter(t, l, ledgertest.Email(t, tenant, fmt.Sprint(i), "sound", "a@example.com"), time.Now()) })
		wg.Go(func() {
			s := ledgertest.Email(t, tenant, fmt.Sprint("b", i), "broken", "a@example.com")
			if _, err := l.Enter(t.Context(), message.Journaled{Submission: s, AcceptedAt: time.Now()}); !errors.Is(err, dedupe.ErrNumbering) || !errors.Is(err, message.ErrUnavailable) {
				t.Errorf("a stream without its counter: %v", err)
			}
		})
		wg.Go(func() {
			s := ledgertest.Email(t, tenant+99, fmt.Sprint("c", i), "s", "a@example.com")
			if _, err := l.Enter(t.Context(), message.Journaled{Submission: s, AcceptedAt: time.Now()}); err == nil || errors.Is(err, message.ErrUnavailable) {
				t.Errorf("a tenant that never was: %v", err)
			}
		})
	}
	wg.Wait()
	large := make([]byte, 3<<20)
	if err := l.ParkWhole(t.Context(), message.Parked{Source: "topic/0/1", Raw: large, Reason: "no submission"}); err != nil {
		t.Fatal(err)
	}
	var size int
	if err := conn.QueryRow(t.Context(), `select octet_length(raw) from parked`).Scan(&size); err != nil || size != len(large) {
		t.Errorf("parked %d bytes of %d: %v", size, len(large), err)
	}
}

// A message that came late out of the journal doesn't end a list by time.
func TestListSinceLooksBelowLateOnes(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	since := time.Now().Add(-time.Minute)
	accept(t, l, ledgertest.Email(t, tenant, "young", "s", "a@example.com"))
	enter(t, l, ledgertest.Email(t, tenant, "late", "s", "b@example.com"), since.Add(-time.Hour))
	page, err := l.Messages(t.Context(), message.Filter{Tenant: tenant, Since: since, Limit: 10})
	if err != nil || len(page.Items) != 1 || page.Items[0].Recipient != "a@example.com" {
		t.Errorf("list: %+v %v", page, err)
	}
}

// A full disk is told of, although the server answers, until something goes in.
func TestPingTellsFullDisk(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	exec(t, dsn, `create function full_disk() returns trigger language plpgsql as $$ begin raise exception 'no space left on device' using errcode = 'disk_full'; end $$`)
	exec(t, dsn, `create trigger full_disk before insert on message for each row execute function full_disk()`)
	if err := l.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(t.Context(), ledgertest.Email(t, tenant, "a", "s", "a@example.com")); !errors.Is(err, message.ErrUnavailable) {
		t.Fatalf("accepted with a full disk: %v", err)
	}
	if err := l.Ping(t.Context()); !errors.Is(err, message.ErrUnavailable) || !strings.Contains(err.Error(), "full") {
		t.Errorf("with a full disk: %v", err)
	}
	exec(t, dsn, `drop trigger full_disk on message`)
	if _, err := l.Accept(t.Context(), ledgertest.Email(t, tenant, "a", "s", "a@example.com")); err != nil {
		t.Fatal(err)
	}
	if err := l.Ping(t.Context()); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// A server that won't have us is told from one that is away.
func TestPingTellsRefusal(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(ledgertest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, refused := range map[string]bool{"no_such_database": true, "": false} {
		other := *u
		if other.Path = name; name == "" {
			other.Host = "127.0.0.1:1"
		}
		l, err := dedupe.Open(dedupe.Config{DSN: other.String()})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Ping(t.Context()); !errors.Is(err, message.ErrUnavailable) || errors.Is(err, dedupe.ErrRefused) != refused {
			t.Errorf("%q: %v", name, err)
		}
		l.Close()
	}
}
