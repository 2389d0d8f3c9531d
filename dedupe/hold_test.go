package dedupe_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// heldWithin is the stated bound: that long after a hold's answer nothing of it
// is claimed any more.
const heldWithin = 2 * time.Second

func addHold(t *testing.T, l *dedupe.Ledger, h message.Hold) message.Hold {
	t.Helper()
	h.Reason, h.By = "r", "k"
	made, err := l.AddHold(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func releaseHold(t *testing.T, l *dedupe.Ledger, h message.Hold) {
	t.Helper()
	if _, err := l.ReleaseHold(t.Context(), h.ID, "k2"); err != nil {
		t.Fatal(err)
	}
}

// settled waits until holds made before are known everywhere.
func settled() { time.Sleep(heldWithin) } // the promise is about time

// due waits until an attempt of a lane is due.
func due(t *testing.T, l *dedupe.Ledger, lane message.Lane) message.Item {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		items, err := l.Due(t.Context(), lane, 10)
		if err != nil {
			t.Fatal(err)
		}
		if len(items) > 0 {
			return items[0]
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("nothing is due")
		}
	}
}

// Two processes claim as fast as they can while a hold is made: after its bound
// not one claim is made, while others' go on; after the release all are.
func TestNothingHeldIsClaimed(t *testing.T) {
	t.Parallel()
	for name, hold := range map[string]message.Hold{
		"lane": {Lane: message.Lanes()[0]}, "tenant": {Tenant: 1}, "provider": {Provider: "smtp"}, "tag": {Tag: "sale"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := ledgertest.DSN(t)
			l, other := ledgertest.Open(t, dsn), ledgertest.Open(t, dsn)
			acme := ledgertest.Tenant(t, l, "acme")
			if acme != 1 {
				t.Fatalf("tenant %d", acme)
			}
			free := ledgertest.Tenant(t, l, "free")
			var begun, freed atomic.Int64
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for i, ledger := range []*dedupe.Ledger{l, other} {
				wg.Go(func() {
					for k := 0; ; k++ {
						select {
						case <-stop:
							return
						default:
						}
						key := ledgertest.Keys(1)[0] + time.Now().String() + string(rune('a'+i))
						s := submission(t, acme, key, message.Options{Tags: []string{"a:1", "sale"}}, "a@example.com")
						it := ledgertest.Items(s, accept(t, ledger, s))[0]
						it.Provider = "smtp"
						if _, err := ledger.Claim(t.Context(), it); err != nil {
							t.Error(err)
						}
						begun.Add(1)
						if name == "lane" { // what else the lane has is held, too
							continue
						}
						s = submission(t, free, key, message.Options{Tags: []string{"sales"}}, "a@example.com")
						it = ledgertest.Items(s, accept(t, ledger, s))[0]
						it.Provider = "relay"
						if c, err := ledger.Claim(t.Context(), it); err != nil || c.Verdict != message.Claimed {
							t.Errorf("what isn't held: %+v %v", c, err)
						}
						freed.Add(1)
					}
				})
			}
			for begun.Load() < 10 {
				time.Sleep(time.Millisecond)
			}
			h := addHold(t, l, hold)
			settled()
			before, wasFreed := begun.Load(), freed.Load()
			var held time.Time
			asked(t, dsn, `select clock_timestamp()`, &held)
			for begun.Load() < before+20 || name != "lane" && freed.Load() < wasFreed+20 {
				time.Sleep(time.Millisecond)
			}
			close(stop)
			wg.Wait()
			var after, without int64
			asked(t, dsn, `select count(*) from attempt a join message m on m.n = a.n where m.tenant = 1 and a.at > $1`, &after, held)
			if after != 0 {
				t.Errorf("%d were claimed although they were held", after)
			}
			asked(t, dsn, `select count(*) from message m where m.tenant = 1 and not exists (select from attempt a where a.n = m.n)`, &without)
			if without < 20 {
				t.Errorf("only %d are held", without)
			}
			if a := auditLanes(t, l); !a.AddsUp() || a.States[message.StateQueued]+a.States[message.StateWaiting] != without {
				t.Errorf("while held: %+v, %d held", a, without)
			}
			list, err := l.Holds(t.Context())
			if err != nil || len(list) != 1 || list[0].ID != h.ID || (list[0].Aside == without) != (name == "tenant" || name == "tag") {
				t.Errorf("holds: %+v %v", list, err)
			}

			// Released, everything goes on, from the cursor or from waiting.
			releaseHold(t, l, h)
			settled()
			for claimed := int64(0); claimed < without; {
				items, err := l.Unclaimed(t.Context(), message.Lanes()[0], 0, 1000)
				if err != nil {
					t.Fatal(err)
				}
				more, err := l.Due(t.Context(), message.Lanes()[0], 1000)
				if err != nil {
					t.Fatal(err)
				}
				for _, it := range append(items, more...) {
					it.Provider = "smtp"
					claim(t, l, it, message.Claimed)
					claimed++
				}
			}
			asked(t, dsn, `select count(*) from message m where not exists (select from attempt a where a.n = m.n)`, &without)
			if without != 0 {
				t.Errorf("%d were not let go", without)
			}
		})
	}
}

// Of those with a tag all are held, by whatever name and place they have it, or
// those of one tenant; not what merely looks like it. One that two holds stop
// waits for both.
func TestHoldOfATag(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	acme, other := ledgertest.Tenant(t, l, "acme"), ledgertest.Tenant(t, l, "other")
	put := func(tenant int32, c *message.Content) message.Item {
		t.Helper()
		s, err := message.Submit(tenant, ledgertest.Keys(1)[0]+time.Now().String(), c, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		items := ledgertest.Items(s, accept(t, l, s))
		return items[len(items)-1]
	}
	email := func(text string, tags ...string) *message.Content {
		return &message.Content{Email: &message.Email{From: "app@example.com", To: []string{"a@example.com", "b@example.com"}, Subject: "Hello", Text: text,
			Headers: map[string]string{"tags": `"tags":["sale"]`}, Options: message.Options{Tags: tags, BypassSuppression: true}}}
	}
	push := func(tags ...string) *message.Content {
		return &message.Content{Push: &message.Push{Platform: "fcm", To: message.Target{Token: "t"}, Data: map[string]string{"tags": "sale"}, Options: message.Options{Tags: tags}}}
	}
	first, last := put(acme, email("Hi", "sale", "x")), put(acme, email("Hi ]\"", "x", "sale"))
	large, pushed := put(acme, email(strings.Repeat("long, ", 1<<17), "a:b=c", "sale", "z")), put(acme, push("sale"))
	others := put(other, email("Hi", "sale"))
	free := []message.Item{put(acme, email(`"tags":["sale"]`)), put(acme, email(`,"tags":["sale"],`, "sal", "sale.x", "x:sale")), put(acme, push()), put(acme, push("Sale"))}
	both := addHold(t, l, message.Hold{Tenant: acme})
	h := addHold(t, l, message.Hold{Tag: "sale", Tenant: acme})
	settled()
	claim(t, l, others, message.Claimed)
	claim(t, l, first, message.NotDue)
	releaseHold(t, l, both)
	for _, it := range free {
		claim(t, l, it, message.Claimed)
	}
	for _, it := range []message.Item{last, large, pushed} {
		claim(t, l, it, message.NotDue)
		if v := state(t, l, it, message.StateWaiting); v.Reason != "its tag sale is held" || !v.DueAt.IsZero() {
			t.Errorf("shown as %q, due %s", v.Reason, v.DueAt)
		}
	}
	claim(t, l, due(t, l, first.Position.Lane()), message.NotDue) // by the other hold
	releaseHold(t, l, h)
	for n := range 3 {
		it := due(t, l, first.Position.Lane())
		if it.ID != first.ID && it.ID != last.ID && it.ID != large.ID {
			t.Fatalf("the %d. that is due: %+v", n, it)
		}
		claim(t, l, it, message.Claimed)
	}
	claim(t, l, due(t, l, pushed.Position.Lane()), message.Claimed)
}

// A claim reads no content unless a tag is held that may be its message's.
func TestWhoHasNoTagHeldPaysNothing(t *testing.T) {
	t.Parallel()
	l, dsn, it := one(t)
	other := ledgertest.Tenant(t, l, "other")
	exec(t, dsn, `create or replace function tags_of(body bytea) returns text[] language plpgsql as $$ begin raise exception 'read' using errcode = '22000'; end $$`)
	for _, h := range []message.Hold{{Lane: message.Lanes()[3]}, {Tenant: other}, {Provider: "ses"}, {Tag: "sale", Tenant: other}} {
		addHold(t, l, h)
	}
	settled()
	claim(t, l, it, message.Claimed)
}

// A message that expires while it is held ends as expired.
func TestHeldMessagesExpire(t *testing.T) {
	t.Parallel()
	for name, hold := range map[string]message.Hold{"lane": {Lane: message.Lanes()[0]}, "tenant": {Tenant: 1}, "tag": {Tag: "sale"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := ledgertest.DSN(t)
			l := ledgertest.Open(t, dsn)
			s := submission(t, ledgertest.Tenant(t, l, "acme"), "k", message.Options{Tags: []string{"sale"}}, "a@example.com")
			it := ledgertest.Items(s, accept(t, l, s))[0]
			addHold(t, l, hold)
			settled()
			if name != "lane" {
				exec(t, dsn, `update message set expires_at = clock_timestamp() + interval '2 seconds'`)
				claim(t, l, it, message.NotDue)
				if v := state(t, l, it, message.StateWaiting); v.Reason != map[string]string{"tenant": "its tenant is held", "tag": "its tag sale is held"}[name] || !v.DueAt.IsZero() {
					t.Errorf("shown as %q, due %s", v.Reason, v.DueAt)
				}
				it = due(t, l, it.Position.Lane()) // when it expires
			} else {
				claim(t, l, it, message.HeldBack)
				exec(t, dsn, `update message set expires_at = clock_timestamp()`)
			}
			claim(t, l, it, message.Expired)
			state(t, l, it, message.StateExpired)
		})
	}
}

// What waits for a later attempt is held as well, and what is open is not
// touched: asking again finds it taken.
func TestHoldOfLaterAttempts(t *testing.T) {
	t.Parallel()
	l, _, it := one(t)
	claim(t, l, it, message.Claimed)
	h := addHold(t, l, message.Hold{Tenant: 1})
	lane := addHold(t, l, message.Hold{Lane: it.Position.Lane()})
	settled()
	claim(t, l, it, message.Taken)
	record(t, l, it, message.Deferred, 0)
	again := due(t, l, it.Position.Lane())
	claim(t, l, again, message.HeldBack)
	releaseHold(t, l, lane)
	claim(t, l, again, message.NotDue)
	if items, err := l.Due(t.Context(), it.Position.Lane(), 10); err != nil || len(items) != 0 {
		t.Fatalf("due while held: %+v %v", items, err)
	}
	releaseHold(t, l, h)
	if again = due(t, l, it.Position.Lane()); again.Attempt != 2 {
		t.Fatalf("due: %+v", again)
	}
	settled()
	claim(t, l, again, message.Claimed)
}

// A release waits for the claims that may still set something aside, so that
// nothing is set aside for a hold that is over.
func TestReleaseWaitsForWhatIsSetAside(t *testing.T) {
	t.Parallel()
	l, dsn, it := one(t)
	h := addHold(t, l, message.Hold{Tenant: 1})
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var verdict message.ClaimVerdict
	if err := tx.QueryRow(t.Context(), `select verdict from hold_back(array[$1::bigint], array[1::smallint], array[$2::bytea], array['smtp'])`,
		int64(it.Position), it.ID[:24]).Scan(&verdict); err != nil || verdict != message.NotDue {
		t.Fatal(verdict, err)
	}
	released := make(chan error, 1)
	go func() {
		_, err := l.ReleaseHold(context.Background(), h.ID, "k")
		released <- err
	}()
	select {
	case err := <-released:
		t.Fatalf("released while it may set aside: %v", err)
	case <-time.After(time.Second): // what must not happen can't be waited for
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-released; err != nil {
		t.Fatal(err)
	}
	if again := due(t, l, it.Position.Lane()); again.ID != it.ID || again.Attempt != 1 {
		t.Fatalf("due: %+v", again)
	}
}

// A release that was cut off goes on, by any process, whatever its size.
func TestReleaseGoesOn(t *testing.T) {
	t.Parallel()
	l, dsn, it := one(t)
	exec(t, dsn, `insert into waiting select $1::bigint + i * 64, 1, 5, now() + interval '1 hour', 1 from generate_series(0, 25000) i`, int64(it.Position))
	exec(t, dsn, `insert into hold (tenant, reason, by, released_by, released_at) values (1, 'r', 'k', 'k', now())`)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for left := 1; left > 0; {
		select {
		case <-tick.C:
			asked(t, dsn, `select count(*) from waiting where held is not null or due > now() or exists (select from hold where not done)`, &left)
		case <-deadline:
			t.Fatalf("%d are still set aside", left)
		}
	}
	claim(t, l, due(t, l, it.Position.Lane()), message.Claimed)
}

func TestHoldsAreOnceAndNamed(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	for _, hold := range []message.Hold{{Lane: message.Lanes()[3]}, {Tenant: tenant}, {Provider: "smtp"}, {Tag: "a"}, {Tag: "b"}, {Tag: "a", Tenant: tenant}} {
		h := addHold(t, l, hold)
		if h.ID == 0 || h.Lane != hold.Lane || h.Tenant != hold.Tenant || h.Provider != hold.Provider || h.Tag != hold.Tag || h.By != "k" || h.Reason != "r" || h.At.IsZero() {
			t.Errorf("hold %+v", h)
		}
		if _, err := l.AddHold(t.Context(), hold); !errors.Is(err, message.ErrHeld) {
			t.Errorf("twice: %v", err)
		}
		releaseHold(t, l, h)
		if _, err := l.ReleaseHold(t.Context(), h.ID, "k"); !errors.Is(err, message.ErrNotHeld) {
			t.Errorf("released twice: %v", err)
		}
		addHold(t, l, hold) // again is another hold
	}
	if _, err := l.ReleaseHold(t.Context(), 999, "k"); !errors.Is(err, message.ErrNotFound) {
		t.Errorf("no hold: %v", err)
	}
	var fields message.FieldErrors
	if _, err := l.AddHold(t.Context(), message.Hold{Tenant: 999, Reason: "r", By: "k"}); !errors.As(err, &fields) || fields[0].Field != "tenant" {
		t.Errorf("no tenant: %v", err)
	}
}

func TestReleaseOfAMessage(t *testing.T) {
	t.Parallel()
	l, _, it := one(t)
	if _, err := l.ReleaseMessage(t.Context(), it.ID, "k", "r"); !errors.Is(err, message.ErrNotHeld) {
		t.Fatalf("what isn't held: %v", err)
	}
	claim(t, l, it, message.Claimed)
	if err := l.Hold(t.Context(), message.AttemptKey{Position: it.Position, Attempt: 1}, "poison"); err != nil {
		t.Fatal(err)
	}
	state(t, l, it, message.StateHeld)
	v, err := l.ReleaseMessage(t.Context(), it.ID, "acme key abc", "it is mended")
	if err != nil || v.State != message.StateWaiting || v.Attempts[1].Reply != "acme key abc: it is mended" {
		t.Fatalf("released: %+v %v", v, err)
	}
	if _, err := l.ReleaseMessage(t.Context(), it.ID, "k", "r"); !errors.Is(err, message.ErrNotHeld) {
		t.Fatalf("twice: %v", err)
	}
	again := due(t, l, it.Position.Lane())
	if again.Attempt != 3 {
		t.Fatalf("due: %+v", again)
	}
	claim(t, l, again, message.Claimed)
	record(t, l, again, message.Sent, 0)
	state(t, l, it, message.StateSent)
}

// Of releasing and canceling one comes first, and the message is not lost.
func TestReleaseRacesCancel(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	for _, key := range ledgertest.Keys(30) {
		s := ledgertest.Email(t, tenant, key, "s", "a@example.com")
		it := ledgertest.Items(s, accept(t, l, s))[0]
		claim(t, l, it, message.Claimed)
		if err := l.Hold(t.Context(), message.AttemptKey{Position: it.Position, Attempt: 1}, "poison"); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := l.ReleaseMessage(t.Context(), it.ID, "k", "r"); err != nil && !errors.Is(err, message.ErrNotHeld) {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := l.Cancel(t.Context(), 0, it.ID); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		state(t, l, it, message.StateCanceled)
	}
	if a := auditLanes(t, l); !a.AddsUp() || a.States[message.StateCanceled] != 30 {
		t.Errorf("audit: %+v", a)
	}
}

// asked reads one value from the ledger's tables.
func asked(t *testing.T, dsn, sql string, into any, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(into); err != nil {
		t.Fatal(err)
	}
}
