package dedupe_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
)

// one is a ledger with one accepted message, and the item that asks for it.
func one(t *testing.T) (*dedupe.Ledger, string, message.Item) {
	t.Helper()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	s := ledgertest.Email(t, ledgertest.Tenant(t, l, "acme"), "k", "s", "a@example.com")
	return l, dsn, ledgertest.Items(s, accept(t, l, s))[0]
}

func claim(t *testing.T, l *dedupe.Ledger, it message.Item, want message.ClaimVerdict) {
	t.Helper()
	c, err := l.Claim(t.Context(), it)
	if err != nil {
		t.Fatal(err)
	}
	if c.Verdict != want {
		t.Fatalf("attempt %d: verdict %d, want %d", it.Attempt, c.Verdict, want)
	}
}

func record(t *testing.T, l *dedupe.Ledger, it message.Item, o message.Outcome, in time.Duration) {
	t.Helper()
	if err := l.Record(t.Context(), message.Report{Position: it.Position, Attempt: it.Attempt, Provider: "p", Result: message.Result{Outcome: o}, RetryIn: in}); err != nil {
		t.Fatal(err)
	}
}

// lost records that an attempt's answer was lost, and that a policy has the
// message sent again.
func lost(t *testing.T, l *dedupe.Ledger, it message.Item, in time.Duration) {
	t.Helper()
	if err := l.Record(t.Context(), message.Report{
		Position: it.Position, Attempt: it.Attempt, Provider: "p", Result: message.Result{Outcome: message.Unknown}, Resend: "policy:transactional.email", RetryIn: in,
	}); err != nil {
		t.Fatal(err)
	}
}

func state(t *testing.T, l *dedupe.Ledger, it message.Item, want message.State) *message.View {
	t.Helper()
	v, err := l.Message(t.Context(), 0, it.ID)
	if err != nil {
		t.Fatal(err)
	}
	if v.State != want {
		t.Fatalf("state %s, want %s (%+v)", v.State, want, v.Attempts)
	}
	return v
}

func TestClaimOnce(t *testing.T) {
	t.Parallel()
	l, dsn, it := one(t)
	other := ledgertest.Open(t, dsn)
	var mine atomic.Int32
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			c, err := []*dedupe.Ledger{l, other}[i%2].Claim(t.Context(), it)
			if err != nil {
				t.Error(err)
			}
			switch c.Verdict {
			case message.Claimed:
				mine.Add(1)
				if c.Recipient != "a@example.com" || c.Life < 58*time.Minute || c.Life > time.Hour+time.Minute {
					t.Errorf("claim: %+v", c)
				}
			case message.Taken:
			default:
				t.Errorf("verdict %d", c.Verdict)
			}
		})
	}
	wg.Wait()
	if mine.Load() != 1 {
		t.Fatalf("%d claims won", mine.Load())
	}
	state(t, l, it, message.StateSending)
}

func TestClaimNeedsLeave(t *testing.T) {
	t.Parallel()
	l, dsn, it := one(t)
	second := it
	second.Attempt = 2
	claim(t, l, second, message.TooEarly)
	claim(t, l, it, message.Claimed)
	claim(t, l, second, message.TooEarly) // the first is open

	// Whoever inserts by hand is refused as well.
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), `insert into attempt (n, no, kind, worker, token, at) values ($1, 2, 1, 1, 1, now())`, int64(it.Position))
	var pe *pgconn.PgError
	if !errors.As(err, &pe) || pe.Code != "SP002" {
		t.Fatalf("an insert without leave: %v", err)
	}

	record(t, l, it, message.Deferred, time.Hour)
	state(t, l, it, message.StateWaiting)
	claim(t, l, it, message.Taken)
	claim(t, l, second, message.NotDue)
	exec(t, dsn, `update waiting set due = now()`)
	items, err := l.Due(t.Context(), it.Position.Lane(), 10)
	if err != nil || len(items) != 1 || items[0].Attempt != 2 || items[0].ID != it.ID || string(items[0].Content) != string(it.Content) {
		t.Fatalf("due: %+v %v", items, err)
	}
	claim(t, l, second, message.Claimed)
	if items, _ = l.Due(t.Context(), it.Position.Lane(), 10); len(items) != 0 {
		t.Fatalf("the leave outlived its attempt: %+v", items)
	}
	record(t, l, second, message.Sent, 0)
	state(t, l, it, message.StateSent)
	third := it
	third.Attempt = 3
	claim(t, l, third, message.TooEarly)
}

func TestClaimRefusesStrangers(t *testing.T) {
	t.Parallel()
	l, dsn, it := one(t)
	wrong := it
	wrong.ID[20] ^= 1 // another request's fingerprint
	claim(t, l, wrong, message.Stranger)
	inVain := it // its number was given out, and its transaction rolled back
	inVain.Position += 64
	exec(t, dsn, `select nextval('position')`)
	claim(t, l, inVain, message.Stranger)
	claim(t, l, it, message.Claimed)
}

func TestClaimEndsExpired(t *testing.T) {
	t.Parallel()
	l, dsn, it := one(t)
	exec(t, dsn, `update message set expires_at = now()`)
	claim(t, l, it, message.Expired)
	state(t, l, it, message.StateExpired)
	claim(t, l, it, message.Taken)
}

// A message whose answer was lost may have been taken, while it waits to be sent
// again: so nobody can cancel it, and if its life ends first it is in doubt, not
// expired. Submitted anew it is known.
func TestLostAnswerIsNoEnd(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	acme := suppressing(t, l, "acme")
	s := keyless(t, acme, "a", "a@example.com")
	it := ledgertest.Items(s, accept(t, l, s))[0]
	claim(t, l, it, message.Claimed)
	lost(t, l, it, time.Hour)
	if _, err := l.Cancel(t.Context(), acme, it.ID); !errors.Is(err, message.ErrTooLate) {
		t.Errorf("canceled: %v", err)
	}
	it.Attempt = 2
	claim(t, l, it, message.NotDue)
	exec(t, dsn, `update message set expires_at = now()`)
	claim(t, l, it, message.Taken)
	v := state(t, l, it, message.StateInDoubt)
	if last := v.Attempts[len(v.Attempts)-1]; last.Number != 2 || last.Code != "repeat_too_late" {
		t.Errorf("%+v", last)
	}
	if r := accept(t, l, keyless(t, acme, "a", "a@example.com")); r.RepeatOf == (message.ID{}) {
		t.Errorf("submitted anew it would be sent: %+v", r)
	}
	// What a person has resent is not thought to have been taken.
	if err := l.Decide(t.Context(), it.ID, 2, message.DecideResend, "alice", "not in its log"); err != nil {
		t.Fatal(err)
	}
	it.Attempt = 3
	claim(t, l, it, message.Expired)
	state(t, l, it, message.StateExpired)

	// Nor is it superseded as if nobody had got it.
	var items []message.Item
	for _, key := range []string{"older", "newer"} {
		s := ledgertest.Email(t, acme, key, "s", "a@example.com")
		s.Supersede = "code"
		items = append(items, ledgertest.Items(s, accept(t, l, s))[0])
		if key == "older" {
			claim(t, l, items[0], message.Claimed)
			lost(t, l, items[0], time.Hour)
		}
	}
	items[0].Attempt = 2
	claim(t, l, items[0], message.Taken)
	state(t, l, items[0], message.StateInDoubt)
	claim(t, l, items[1], message.Claimed)
}

func TestScheduledWaits(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	s := ledgertest.Email(t, ledgertest.Tenant(t, l, "acme"), "k", "s", "a@example.com")
	s.SendAt = time.Now().Add(time.Hour)
	r := accept(t, l, s)
	if !r.Waiting {
		t.Fatal("the receipt doesn't say that it waits")
	}
	it := ledgertest.Items(s, r)[0]
	state(t, l, it, message.StateWaiting)
	claim(t, l, it, message.NotDue)
	exec(t, dsn, `update waiting set due = now()`)
	claim(t, l, it, message.Claimed)
	if again := accept(t, l, s); !again.Replayed || again.Sequence != r.Sequence || !slices.Equal(again.States, []message.State{message.StateSending}) {
		t.Fatalf("replay: %+v", again)
	}
}

// A claim whose commit was held up beyond the deadline is asked again, and
// found to be its own.
func TestClaimSurvivesAnUnknownCommit(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l, err := dedupe.Open(dedupe.Config{DSN: dsn, Deadline: 400 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := ledgertest.Email(t, ledgertest.Tenant(t, l, "acme"), "k", "s", "a@example.com")
	it := ledgertest.Items(s, accept(t, l, s))[0]
	release := time.AfterFunc(1500*time.Millisecond, lock(t, dsn, `lock table attempt in share mode`))
	defer release.Stop()
	claim(t, l, it, message.Claimed)
	claim(t, l, it, message.Taken)
}

func TestCancelRacesClaim(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	var canceled, claimed atomic.Int32
	var wg sync.WaitGroup
	for _, key := range ledgertest.Keys(300) {
		s := ledgertest.Email(t, tenant, key, "s", "a@example.com")
		wg.Go(func() {
			it := ledgertest.Items(s, accept(t, l, s))[0]
			won := make(chan bool)
			go func() {
				c, err := l.Claim(context.Background(), it)
				won <- err == nil && c.Verdict == message.Claimed
			}()
			_, err := l.Cancel(t.Context(), tenant, it.ID)
			if err != nil && !errors.Is(err, message.ErrTooLate) {
				t.Error(err)
			}
			if <-won == (err == nil) {
				t.Errorf("cancel says %v, claim the same", err)
			}
			if err == nil {
				canceled.Add(1)
			} else {
				claimed.Add(1)
			}
		})
	}
	wg.Wait()
	if canceled.Load()+claimed.Load() != 300 {
		t.Fatalf("%d canceled, %d claimed", canceled.Load(), claimed.Load())
	}
}

func TestCancelWhileWaiting(t *testing.T) {
	t.Parallel()
	l, dsn, it := one(t)
	claim(t, l, it, message.Claimed)
	if _, err := l.Cancel(t.Context(), 0, it.ID); !errors.Is(err, message.ErrTooLate) {
		t.Fatalf("canceling an open attempt: %v", err)
	}
	record(t, l, it, message.Deferred, time.Hour)
	for range 2 { // the second finds it canceled
		if v, err := l.Cancel(t.Context(), 0, it.ID); err != nil || v.State != message.StateCanceled {
			t.Fatalf("cancel: %v", err)
		}
	}
	exec(t, dsn, `update waiting set due = now()`)
	if items, _ := l.Due(t.Context(), it.Position.Lane(), 10); len(items) != 0 {
		t.Fatal("a canceled message is due")
	}
}

func TestHoldAndPark(t *testing.T) {
	t.Parallel()
	l, _, it := one(t)
	claim(t, l, it, message.Claimed)
	if err := l.Hold(t.Context(), message.AttemptKey{Position: it.Position, Attempt: 1}, "panic: "+strings.Repeat("x", 5000)); err != nil {
		t.Fatal(err)
	}
	if v := state(t, l, it, message.StateHeld); !strings.HasPrefix(v.Reason, "panic: x") {
		t.Fatalf("reason %q", v.Reason)
	}
	second := it
	second.Attempt = 2
	claim(t, l, second, message.Taken)
	if err := l.Park(t.Context(), "topic/0/1", []byte{0, 1}, "not a record"); err != nil {
		t.Fatal(err)
	}
}
