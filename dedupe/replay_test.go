package dedupe_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/recovery"
)

func addReplay(t *testing.T, l *dedupe.Ledger, f message.ReplayFilter, rate int) message.Replay {
	t.Helper()
	r, err := l.AddReplay(t.Context(), message.Replay{Filter: f, Rate: rate, Reason: "the relay is mended", By: "ops"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// replayer runs a process's replayer until the test ends.
func replayer(t *testing.T, l *dedupe.Ledger) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = recovery.NewReplayer(l, slog.New(slog.NewTextHandler(t.Output(), nil))).Run(ctx) })
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

// until asks for a replay until it is as wanted.
func until(t *testing.T, l *dedupe.Ledger, id int64, is func(message.Replay) bool) message.Replay {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		r, err := l.Replay(t.Context(), id)
		if err != nil && !errors.Is(err, message.ErrUnavailable) { // its connection may be cut
			t.Fatal(err)
		}
		if err == nil && is(r) {
			return r
		}
		if time.Now().After(deadline) {
			t.Fatalf("replay %+v", r)
		}
	}
}

func through(r message.Replay) bool { return r.Status == message.ReplayDone }

// dueNow is all attempts of a lane that are due, by position.
func dueNow(t *testing.T, l *dedupe.Ledger, lane message.Lane) map[message.Position]message.Item {
	t.Helper()
	items, err := l.Due(t.Context(), lane, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[message.Position]message.Item)
	for _, it := range items {
		all[it.Position] = it
	}
	return all
}

// Of messages in every state those get leave that certainly were not taken, and
// have ended; whose leave it was is on record. The dry run says so before.
func TestReplayTakesOnlyWhatWasNotTaken(t *testing.T) {
	t.Parallel()
	l, _, all := everyState(t)
	lane := message.Lanes()[0]
	before := dueNow(t, l, lane)
	want := map[string]int64{"": 2, "sent": 2, "maybe_sent": 1, "waiting": 3, "in_doubt": 1, "sending": 1, "canceled": 1, "expired": 1, "superseded": 1,
		"queued": int64(len(all[message.StateQueued]))}
	look, err := l.LookReplay(t.Context(), message.ReplayFilter{}, "")
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(look.Counts, want) || look.Next != "" || len(look.Samples["sent"]) != 2 || look.Samples["canceled"][0].ID != all[message.StateCanceled][0].ID {
		t.Fatalf("look: %v", look.Counts)
	}
	if now := dueNow(t, l, lane); len(now) != len(before) {
		t.Error("a look gave leave")
	}
	r := addReplay(t, l, message.ReplayFilter{}, 1000)
	replayer(t, l)
	r = until(t, l, r.ID, through)
	delete(want, "")
	if r.Total != 2 || r.Given != 2 || !maps.Equal(r.LeftOut, want) {
		t.Errorf("replay %+v", r)
	}
	rejected, held := all[message.StateFailed][0], all[message.StateHeld][0]
	now := dueNow(t, l, lane)
	for p, it := range now {
		if _, was := before[p]; !was && p != rejected.Position && p != held.Position {
			t.Errorf("leave for %s", p)
		}
		claim(t, l, it, message.Claimed)
		record(t, l, it, message.Sent, 0)
	}
	v := state(t, l, rejected, message.StateSent)
	if a := v.Attempts[0]; len(v.Attempts) != 2 || a.Decision != message.DecideResend || a.DecidedBy != "ops" || a.Because != fmt.Sprintf("replay %d: the relay is mended", r.ID) {
		t.Errorf("on record: %+v", v.Attempts)
	}
	if v = state(t, l, held, message.StateSent); len(v.Attempts) != 3 || v.Attempts[1].Reply != fmt.Sprintf("ops: replay %d: the relay is mended", r.ID) {
		t.Errorf("on record: %+v", v.Attempts)
	}
	// Again: nothing is left to do.
	again := addReplay(t, l, message.ReplayFilter{}, 1000)
	if again = until(t, l, again.ID, through); again.Total != 0 || again.LeftOut["sent"] != int64(2+len(now)) {
		t.Errorf("again: %+v", again)
	}
}

// failed makes n messages of a tenant end as failed, by a provider named p.
func failed(t *testing.T, l *dedupe.Ledger, subs ...*message.Submission) (items []message.Item) {
	t.Helper()
	for _, s := range subs {
		items = append(items, ledgertest.Items(s, accept(t, l, s))...)
	}
	var wg sync.WaitGroup
	for _, it := range items {
		wg.Go(func() {
			if c, err := l.Claim(t.Context(), it); err != nil || c.Verdict != message.Claimed {
				t.Errorf("claim: %+v %v", c, err)
			}
			if err := l.Record(t.Context(), message.Report{Position: it.Position, Attempt: 1, Provider: "p", Result: message.Result{Outcome: message.Rejected}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	return items
}

func submission(t *testing.T, tenant int32, key string, o message.Options, to ...string) *message.Submission {
	t.Helper()
	c := &message.Content{Email: &message.Email{From: "app@example.com", To: to, Subject: "Hello", Text: "Hi", Options: o}}
	s, err := message.Submit(tenant, key, c, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func refused(t *testing.T, l *dedupe.Ledger, it message.Item, attempt int, cause string) {
	t.Helper()
	_, err := l.ReplayMessage(t.Context(), it.ID, attempt, "ops", "r")
	var not *message.NotReplayable
	if !errors.As(err, &not) || not.Cause != cause {
		t.Errorf("%s: %v, want %s", it.Position, err, cause)
	}
}

// What was sent, or may have been, goes again by its name alone, once for each
// time that somebody looked; what is over, or still to go, not even so.
func TestReplayByName(t *testing.T) {
	t.Parallel()
	l, dsn, all := everyState(t)
	lane := message.Lanes()[0]
	refused(t, l, all[message.StateInDoubt][0], 1, "in_doubt")
	refused(t, l, all[message.StateCanceled][0], 1, "canceled")
	refused(t, l, all[message.StateExpired][0], 1, "expired")
	refused(t, l, all[message.StateSuperseded][0], 1, "superseded")
	refused(t, l, all[message.StateWaiting][0], 1, "waiting")
	refused(t, l, all[message.StateSending][0], 1, "sending")
	refused(t, l, all[message.StateQueued][0], 1, "queued")
	if _, err := l.ReplayMessage(t.Context(), message.ID{1}, 1, "ops", "r"); !errors.Is(err, message.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
	for i, it := range append(all[message.StateSent][:2:2], all[message.StateFailed]...) {
		refused(t, l, it, 2, "changed")
		made := 0
		var wg sync.WaitGroup
		var mu sync.Mutex
		for range 4 { // at once: one of them has it
			wg.Go(func() {
				r, err := l.ReplayMessage(t.Context(), it.ID, 1, "ops", "asked for")
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					made++
					if r.Status != message.ReplayDone || r.Given != 1 || r.Named != it.ID || r.Reason != "asked for" {
						t.Errorf("replay %+v", r)
					}
				}
			})
		}
		wg.Wait()
		if made != 1 {
			t.Errorf("message %d got leave %d times", i, made)
		}
		again := dueNow(t, l, lane)[it.Position]
		claim(t, l, again, message.Claimed)
		record(t, l, again, message.Sent, 0)
		v := state(t, l, it, message.StateSent)
		if because := v.Attempts[0].Because; !strings.HasPrefix(because, "replay ") || i == 1 && !strings.Contains(because, "(before: sent by ops, r)") {
			t.Errorf("on record: %q", because)
		}
		refused(t, l, it, 1, "changed")
	}
	// One whose life is over is not sent by its name either.
	it := all[message.StateSent][0]
	exec(t, dsn, `update message set expires_at = now() where n = $1`, int64(it.Position))
	refused(t, l, it, 2, "expired")
}

// An attempt that nobody knows the end of, or that was taken after all, keeps a
// message out, although a later attempt was refused.
func TestReplayLooksAtAllAttempts(t *testing.T) {
	t.Parallel()
	l, _, it := one(t)
	claim(t, l, it, message.Claimed)
	record(t, l, it, message.Unknown, 0)
	if err := l.Decide(t.Context(), it.ID, 0, message.DecideResend, "ops", "r"); err != nil {
		t.Fatal(err)
	}
	second := dueNow(t, l, message.Lanes()[0])[it.Position]
	claim(t, l, second, message.Claimed)
	record(t, l, second, message.Rejected, 0)
	state(t, l, it, message.StateFailed)
	look, err := l.LookReplay(t.Context(), message.ReplayFilter{}, "")
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(look.Counts, map[string]int64{"maybe_sent": 1}) {
		t.Errorf("look: %v", look.Counts)
	}
}

// A replay is about what had ended when it was asked for; what is superseded or
// expires until its turn, or until its claim, isn't sent.
func TestReplaySendsNothingStale(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	tenant := ledgertest.Tenant(t, l, "acme")
	items := failed(t, l,
		submission(t, tenant, "old", message.Options{SupersedeKey: "code"}, "a@example.com"),
		submission(t, tenant, "over", message.Options{}, "a@example.com"),
		submission(t, tenant, "late", message.Options{}, "a@example.com"),
		submission(t, tenant, "claim-old", message.Options{SupersedeKey: "other"}, "a@example.com"),
		submission(t, tenant, "claim-over", message.Options{}, "a@example.com"),
		submission(t, tenant, "erased", message.Options{}, "a@example.com"))
	accept(t, l, submission(t, tenant, "new", message.Options{SupersedeKey: "code"}, "a@example.com"))
	exec(t, dsn, `update message set expires_at = now() where n = $1`, int64(items[1].Position))
	exec(t, dsn, `delete from content where n = $1`, int64(items[5].Position))
	look, err := l.LookReplay(t.Context(), message.ReplayFilter{State: message.StateFailed}, "")
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]int64{"": 3, "superseded": 1, "expired": 1, "erased": 1, "queued": 1}; !maps.Equal(look.Counts, want) || look.Samples["expired"][0].ID != items[1].ID {
		t.Errorf("look: %v", look.Counts)
	}
	r := addReplay(t, l, message.ReplayFilter{State: message.StateFailed}, 1000)
	exec(t, dsn, `update outcome set at = clock_timestamp() where n = $1`, int64(items[2].Position))
	replayer(t, l)
	r = until(t, l, r.ID, through)
	if want := map[string]int64{"superseded": 1, "expired": 1, "later": 1, "erased": 1, "queued": 1}; r.Given != 2 || !maps.Equal(r.LeftOut, want) {
		t.Errorf("replay: %+v", r)
	}
	if c := count(t, dsn, fmt.Sprintf(`select count(*) from waiting where n = %d`, items[1].Position)); c != 0 {
		t.Error("leave for what has expired")
	}
	due := dueNow(t, l, message.Lanes()[0])
	accept(t, l, submission(t, tenant, "newer", message.Options{SupersedeKey: "other"}, "a@example.com"))
	exec(t, dsn, `update message set expires_at = now() where n = $1`, int64(items[4].Position))
	claim(t, l, due[items[3].Position], message.Taken)
	claim(t, l, due[items[4].Position], message.Expired)
	state(t, l, items[3], message.StateSuperseded)
	state(t, l, items[4], message.StateExpired)
	if a := auditLanes(t, l); !a.AddsUp() {
		t.Errorf("audit: %+v", a)
	}
}

// What expires after it was counted, and before its turn, gets no leave either.
func TestReplayLooksAtTheEndAgain(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	it := failed(t, l, submission(t, ledgertest.Tenant(t, l, "acme"), "k", message.Options{}, "a@example.com"))[0]
	id := addReplay(t, l, message.ReplayFilter{Lane: message.Lanes()[0]}, 1000).ID
	leased, err := l.LeaseReplays(t.Context(), time.Minute)
	if err != nil || len(leased) != 1 {
		t.Fatalf("leased: %+v %v", leased, err)
	}
	r := &leased[0]
	for step := (message.ReplayStep{}); !step.Ended; {
		if step, err = l.StepReplay(t.Context(), r, 100, 10); err != nil {
			t.Fatal(err)
		}
		if r.Counted {
			exec(t, dsn, `update message set expires_at = now() where n = $1`, int64(it.Position))
		}
	}
	got, err := l.Replay(t.Context(), id)
	if err != nil || got.Total != 1 || got.Given != 0 || got.LeftOut["expired"] != 1 || count(t, dsn, `select count(*) from waiting`) != 0 {
		t.Errorf("replay: %+v %v", got, err)
	}
}

// Each field of a filter narrows what is found.
func TestReplayFilters(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	acme, other := ledgertest.Tenant(t, l, "acme"), ledgertest.Tenant(t, l, "other")
	failed(t, l, submission(t, acme, "1", message.Options{Stream: "s", Tags: []string{"a:1", "b"}}, "a@example.com"))
	failed(t, l, submission(t, acme, "2", message.Options{Class: "campaign", Tags: []string{"b"}}, "a@example.com", "b@example.com"))
	between := time.Now()
	failed(t, l, submission(t, other, "3", message.Options{Stream: "s"}, "a@example.com"))
	it := failed(t, l, submission(t, other, "4", message.Options{}, "a@example.com"))[0]
	if _, err := l.ReplayMessage(t.Context(), it.ID, 1, "ops", "r"); err != nil {
		t.Fatal(err)
	}
	again := dueNow(t, l, message.Lanes()[0])[it.Position]
	claim(t, l, again, message.Claimed)
	if err := l.Hold(t.Context(), message.AttemptKey{Position: it.Position, Attempt: 2}, "poison"); err != nil {
		t.Fatal(err)
	}
	campaign := message.Lane{Class: message.Campaign, Channel: message.ChannelEmail}
	for i, test := range []struct {
		f    message.ReplayFilter
		want map[string]int64
	}{
		{message.ReplayFilter{}, map[string]int64{"": 5}},
		{message.ReplayFilter{State: message.StateFailed}, map[string]int64{"": 4, "held": 1}},
		{message.ReplayFilter{State: message.StateHeld}, map[string]int64{"": 1, "failed": 4}},
		{message.ReplayFilter{Lane: campaign}, map[string]int64{"": 2}},
		{message.ReplayFilter{Tenant: acme}, map[string]int64{"": 3}},
		{message.ReplayFilter{Tenant: other, Stream: "s"}, map[string]int64{"": 1}},
		{message.ReplayFilter{Stream: "s"}, map[string]int64{"": 2}},
		{message.ReplayFilter{Stream: "nobody's"}, map[string]int64{}},
		{message.ReplayFilter{Provider: "p"}, map[string]int64{"": 5}},
		{message.ReplayFilter{Provider: "q"}, map[string]int64{}},
		{message.ReplayFilter{Since: between}, map[string]int64{"": 2}},
		{message.ReplayFilter{Until: between}, map[string]int64{"": 3}},
		{message.ReplayFilter{Tag: "b"}, map[string]int64{"": 3}},
		{message.ReplayFilter{Tag: "a:1"}, map[string]int64{"": 1}},
		{message.ReplayFilter{Tag: "a"}, map[string]int64{}},
	} {
		look, err := l.LookReplay(t.Context(), test.f, "")
		if err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(look.Counts, test.want) {
			t.Errorf("%d: %+v: %v", i, test.f, look.Counts)
		}
	}
}

// Two replays may not be about the same messages; each is paused, goes on, and
// ends, once.
func TestReplaysDontOverlap(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	noon := time.Now()
	r := addReplay(t, l, message.ReplayFilter{Lane: message.Lanes()[0], State: message.StateFailed, Until: noon}, 10)
	for _, f := range []message.ReplayFilter{
		{}, {Lane: message.Lanes()[0]}, {Tenant: tenant}, {Tag: "x"}, {State: message.StateFailed, Since: noon.Add(-time.Second)},
	} {
		_, err := l.AddReplay(t.Context(), message.Replay{Filter: f, Rate: 1, Reason: "r", By: "k"})
		var overlap *message.ReplayOverlap
		if !errors.As(err, &overlap) || overlap.ID != r.ID {
			t.Errorf("%+v: %v", f, err)
		}
	}
	if _, err := l.AddReplay(t.Context(), message.Replay{Filter: message.ReplayFilter{Tenant: 77, Lane: message.Lanes()[1]}, Rate: 1, Reason: "r", By: "k"}); err == nil || !strings.Contains(err.Error(), "filter.tenant") {
		t.Errorf("no such tenant: %v", err)
	}
	addReplay(t, l, message.ReplayFilter{Lane: message.Lanes()[1]}, 10)
	addReplay(t, l, message.ReplayFilter{Lane: message.Lanes()[0], State: message.StateHeld}, 10)
	addReplay(t, l, message.ReplayFilter{Lane: message.Lanes()[0], State: message.StateFailed, Since: noon}, 10)

	turn := func(to, want message.ReplayStatus) {
		t.Helper()
		if got, err := l.TurnReplay(t.Context(), r.ID, to, "boss"); err != nil || got.Status != want || got.StoppedBy != "boss" {
			t.Errorf("%+v %v", got, err)
		}
	}
	turn(message.ReplayPaused, message.ReplayPaused)
	turn(message.ReplayPaused, message.ReplayPaused)
	turn(message.ReplayRunning, message.ReplayCounting)
	turn(message.ReplayCanceled, message.ReplayCanceled)
	turn(message.ReplayCanceled, message.ReplayCanceled)
	if _, err := l.TurnReplay(t.Context(), r.ID, message.ReplayRunning, "boss"); !errors.Is(err, message.ErrReplayEnded) {
		t.Errorf("after its end: %v", err)
	}
	if _, err := l.TurnReplay(t.Context(), 999, message.ReplayPaused, "boss"); !errors.Is(err, message.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
	page, err := l.Replays(t.Context(), "", 3)
	if err != nil || len(page.Items) != 3 || page.Next == "" {
		t.Fatalf("%+v %v", page, err)
	}
	if page, err = l.Replays(t.Context(), page.Next, 3); err != nil || len(page.Items) != 1 || page.Items[0].ID != r.ID || page.Next != "" {
		t.Errorf("%+v %v", page, err)
	}
}

// Who is gone, or has complained, gets nothing again by a filter: as at the door, unless
// its sender bypasses that, or until it is cleared. By name it does.
func TestReplayLeavesOutSuppressedRecipients(t *testing.T) {
	t.Parallel()
	l := ledgertest.Open(t, "")
	tenant := ledgertest.Tenant(t, l, "acme")
	send := func(key string, bypass bool) message.Item {
		t.Helper()
		c := &message.Content{Push: &message.Push{Platform: "apns", To: message.Target{Token: "gone"}, Data: map[string]string{"a": "b"}}}
		c.Push.BypassSuppression = bypass
		s, err := message.Submit(tenant, key, c, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		it := ledgertest.Items(s, accept(t, l, s))[0]
		fail(t, l, it, message.RecipientGone)
		return it
	}
	named, other := send("1", false), send("2", false)
	send("3", true)
	look := func(want map[string]int64) {
		t.Helper()
		got, err := l.LookReplay(t.Context(), message.ReplayFilter{}, "")
		if err != nil || !maps.Equal(got.Counts, want) {
			t.Errorf("%v %v, want %v", got, err, want)
		}
	}
	look(map[string]int64{"": 1, "suppressed": 2})
	if _, err := l.ReplayMessage(t.Context(), named.ID, 1, "ops", "it is back"); err != nil {
		t.Error(err)
	}
	look(map[string]int64{"": 1, "suppressed": 1, "waiting": 1})
	page, err := l.Suppressions(t.Context(), message.SuppressionFilter{Tenant: tenant, Limit: 10})
	if err != nil || len(page.Items) != 1 {
		t.Fatalf("%+v %v", page, err)
	}
	if _, err := l.ClearSuppression(t.Context(), tenant, page.Items[0].ID, "ops"); err != nil {
		t.Fatal(err)
	}
	look(map[string]int64{"": 2, "waiting": 1})
	state(t, l, other, message.StateFailed)
}
