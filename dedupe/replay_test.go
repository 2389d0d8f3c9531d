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
	if err := l.Decide(t.Context(), it.ID, message.DecideResend, "ops", "r"); err != nil {
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
	r := addReplay(t, l, message.ReplayFilter{State: message.StateFailed}, 1000)
	exec(t, dsn, `update outcome set at = clock_timestamp() where n = $1`, int64(items[2].Position))
	replayer(t, l)
	r = until(t, l, r.ID, through)
	if want := map[string]int64{"superseded": 1, "expired": 1, "later": 1, "erased": 1, "queued": 1}; r.Given != 2 || !maps.Equal(r.LeftOut, want) {
		t.Errorf("replay: %+v", r)
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

// many is campaign and transactional messages that failed.
func many(t *testing.T, l *dedupe.Ledger, n int) []message.Item {
	t.Helper()
	tenant := ledgertest.Tenant(t, l, "acme")
	var to []string
	for i := range 50 {
		to = append(to, fmt.Sprintf("a%d@example.com", i))
	}
	var subs []*message.Submission
	for i := range n / 50 {
		subs = append(subs, submission(t, tenant, fmt.Sprint("many-", i), message.Options{Class: []string{"campaign", "transactional"}[i%2]}, to...))
	}
	return failed(t, l, subs...)
}

// However often a replay's process is replaced, its connections are cut, and
// others take its lease, each message gets leave once, the urgent ones first.
func TestReplayIsResumed(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l := ledgertest.Open(t, dsn)
	n := len(many(t, l, 1000))
	r := addReplay(t, l, message.ReplayFilter{}, 400)
	end := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for {
				ctx, cancel := context.WithTimeout(context.Background(), 700*time.Millisecond+time.Duration(i)*100*time.Millisecond)
				_ = recovery.NewReplayer(l, slog.New(slog.DiscardHandler)).Run(ctx)
				cancel()
				select {
				case <-end:
					return
				default:
				}
				// Whoever was killed is silent for a while.
				exec(t, dsn, `update replay set leased_until = '-infinity'`)
			}
		})
	}
	cut := time.NewTicker(300 * time.Millisecond)
	defer cut.Stop()
	urgent := false
	r = until(t, l, r.ID, func(r message.Replay) bool {
		select {
		case <-cut.C:
			exec(t, dsn, `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and query ~ 'replay_step'`)
		default:
		}
		if r.Given > 0 && r.Given < int64(n/2) {
			urgent = true
			if c := count(t, dsn, `select count(*) from waiting where lane = 7`); c > 0 && count(t, dsn, `select count(*) from waiting where lane = 5`) < n/2 {
				t.Error("campaign mail has leave, and transactional mail has none yet")
			}
		}
		return through(r)
	})
	close(end)
	wg.Wait()
	if !urgent || r.Total != int64(n) || r.Given != int64(n) || len(r.LeftOut) != 0 {
		t.Errorf("replay %+v of %d", r, n)
	}
	if c := count(t, dsn, `select count(*) from decision where kind = 'resend'`); c != n || count(t, dsn, `select count(*) from waiting where no = 2`) != n {
		t.Errorf("%d decisions", c)
	}
}

// A step from a checkpoint that is not the ledger's does nothing: it was made
// before, or somebody else goes on.
func TestReplayStepOnce(t *testing.T) {
	t.Parallel()
	dsn := ledgertest.DSN(t)
	l, other := ledgertest.Open(t, dsn), ledgertest.Open(t, dsn)
	many(t, l, 100)
	r := addReplay(t, l, message.ReplayFilter{}, 400)
	lease := func(l *dedupe.Ledger, want int) message.Replay {
		t.Helper()
		all, err := l.LeaseReplays(t.Context(), time.Minute)
		if err != nil || len(all) != want {
			t.Fatalf("%+v %v", all, err)
		}
		if want == 0 {
			return message.Replay{}
		}
		return all[0]
	}
	r = lease(l, 1)
	lease(other, 0)
	step := func(l *dedupe.Ledger, r *message.Replay) message.ReplayStep {
		t.Helper()
		s, err := l.StepReplay(t.Context(), r, 1000, 10)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for !r.Counted {
		step(l, &r)
	}
	old := r
	if s := step(l, &r); s.Gave != 10 || !s.Filled {
		t.Errorf("step %+v", s)
	}
	if s := step(l, &old); s.Gave != 0 || !s.Ended {
		t.Errorf("the same step again: %+v", s)
	}
	if s := step(other, &r); s.Gave != 0 || !s.Ended {
		t.Errorf("without the lease: %+v", s)
	}
	if _, err := l.TurnReplay(t.Context(), r.ID, message.ReplayPaused, "k"); err != nil {
		t.Fatal(err)
	}
	if s := step(l, &r); s.Gave != 0 || !s.Ended {
		t.Errorf("paused: %+v", s)
	}
	if _, err := l.TurnReplay(t.Context(), r.ID, message.ReplayRunning, "k"); err != nil {
		t.Fatal(err)
	}
	if s := step(l, &r); s.Gave != 0 || !s.Ended {
		t.Errorf("resumed, and not leased yet: %+v", s)
	}
	r = lease(other, 1)
	if s := step(other, &r); s.Gave != 10 || r.Pos <= old.Pos {
		t.Errorf("resumed: %+v", s)
	}
	// Enough is due: it waits.
	exec(t, dsn, `insert into waiting (n, no, lane, due) select (5::bigint << 57) | (i << 6), 9, 5, now() from generate_series(1000000, 1002000) i`)
	if s := step(other, &r); s.Gave != 0 || !s.Full {
		t.Errorf("with %d due: %+v", 2001, s)
	}
	// Nobody works on it: that is told.
	if stuck, err := l.StuckReplays(t.Context(), time.Hour); err != nil || len(stuck) != 0 {
		t.Errorf("stuck: %+v %v", stuck, err)
	}
	exec(t, dsn, `update replay set moved_at = now() - interval '2 hours'`)
	if stuck, err := l.StuckReplays(t.Context(), time.Hour); err != nil || len(stuck) != 1 || stuck[0].Given != 20 {
		t.Errorf("stuck: %+v %v", stuck, err)
	}
	if c := count(t, dsn, `select count(*) from decision`); c != 20 {
		t.Errorf("%d decisions", c)
	}
}
