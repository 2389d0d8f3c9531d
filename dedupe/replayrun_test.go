package dedupe_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stormpost/stormpost/dedupe"
	"github.com/stormpost/stormpost/dedupe/ledgertest"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/recovery"
)

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
