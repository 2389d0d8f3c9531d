package drill

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

var rolledBackLedger = Drill{
	Name: "rolled-back-ledger",
	Outage: `Any PostgreSQL that is restored from its last backup, or fails over to a replica that lagged: what was
accepted since is forgotten, and what was sent since looks as if it never was.`,
	About: `A base backup is taken, and 2 minutes later (less with a short load) PostgreSQL is restored from it.
Claims stop within 10 s, in every process; accepting goes on; after stormpost reconcile nothing is lost and
nothing was sent twice.`,
	Needs: Needs{Postgres: true},
	Shape: Shape{Keyless: true, Rate: 200, Reachable: true},
	Run: func(ctx context.Context, s *Stage) error {
		if err := s.At(ctx, 0.2); err != nil {
			return err
		}
		s.Event("a base backup is taken")
		if err := s.Postgres.Backup(ctx); err != nil {
			return err
		}
		taken := time.Now()
		if err := s.Wait(ctx, min(2*time.Minute, s.Span(0.4, 8*time.Second))); err != nil {
			return err
		}
		before, err := s.highest(ctx)
		if err != nil {
			return err
		}
		forgotten := time.Now()
		rollback := s.Harm([]string{rolledBack}, "PostgreSQL is restored from a backup %.0f s old", time.Since(taken).Seconds())
		if err := s.Postgres.Restore(ctx); err != nil {
			return err
		}
		restored := time.Now()
		rollback.Bites()
		after, err := s.highest(ctx)
		if err != nil {
			return err
		}
		s.Evidence("backup_age_s", restored.Sub(taken).Seconds())
		s.Evidence("highest_before", before)
		s.Evidence("highest_after", after)
		s.Bit(after < before)
		s.Event("PostgreSQL is back: its highest submission is %d, was %d", after, before)

		noted := ""
		if !s.Until(ctx, 10*time.Second, func() bool {
			noted, err = s.Text(ctx, `select cause from rollback where closed_at is null`)
			return err == nil && noted != ""
		}) {
			s.Broke("the rollback was not noticed within 10 s")
		}
		s.Evidence("noticed_after_s", time.Since(restored).Seconds())
		s.Evidence("cause", noted)
		// Nothing may be claimed from then on: what is sent still was claimed before.
		claims := func() (string, error) { return s.Text(ctx, `select count(*)::text from attempt where kind = 1`) }
		one, err := claims()
		if err != nil {
			return err
		}
		sent := s.sims.Store.Count()
		if err := s.Wait(ctx, s.Span(0.1, 12*time.Second)); err != nil {
			return err
		}
		two, err := claims()
		if err != nil {
			return err
		}
		s.Evidence("sent_while_stopped", s.sims.Store.Count()-sent)
		if one != two {
			s.Broke("claims went on in a ledger that was rolled back: %s, then %s", one, two)
		}
		if n := s.Refused(restored, time.Now()); n > 0 {
			s.Broke("requests were answered 503 in %d seconds, although the journal was there", n)
		}
		var dry, done map[string]any
		if err := s.command(ctx, &dry, "reconcile", "--dry-run"); err != nil {
			return err
		}
		s.Evidence("dry_run", dry["done"])
		began := time.Now()
		if err := s.command(ctx, &done, "reconcile", "--by", "drill"); err != nil {
			return err
		}
		s.Evidence("reconcile", done["done"])
		s.Evidence("reconcile_s", time.Since(began).Seconds())
		for _, p := range s.others {
			if p.worker() { // what it had in hand was forgotten as well
				s.died(forgotten)
			}
		}
		s.Healed("stormpost reconcile has ended after %.1f s: %v", time.Since(began).Seconds(), fmt.Sprint(done["done"]))
		return s.At(ctx, 1)
	},
}

// highest is the greatest submission number of any message.
func (s *Stage) highest(ctx context.Context) (int64, error) {
	text, err := s.Text(ctx, `select coalesce(max(submission), 0)::text from identity`)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(text, 10, 64)
}
