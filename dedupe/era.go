package dedupe

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// eraBits is how many bits of a submission number count within its era, as in
// the migrations.
const eraBits = 23

// ddl runs fn in a transaction that waits long enough for its locks, which are
// brief but exclusive, and works as long as it needs.
func (l *Ledger) ddl(ctx context.Context, fn func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `set local lock_timeout = '2s'; set local statement_timeout = '10min'`); err != nil {
			return err
		}
		return fn(tx)
	})
}

// grow makes sure that the era of the newest submission, and the next one,
// have their partitions.
func (l *Ledger) grow(ctx context.Context) error {
	var last int64
	if err := l.pool.QueryRow(ctx, `select last_value from position`).Scan(&last); err != nil {
		return unavailable("grow", err)
	}
	now := int32(last >> eraBits)
	err := l.ddl(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `update era set began_at = clock_timestamp() where no = $1 and began_at is null`, now)
		return err
	})
	if err != nil {
		return unavailable("grow", err)
	}
	for w := now; w <= now+1; w++ {
		err := l.ddl(ctx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `select add_era($1) where not exists (select from era where no = $1)`, w)
			return err
		})
		if err != nil && blameFor(err) != blameRow { // another process made it
			return unavailable("grow", err)
		}
	}
	return nil
}

// Retention says how long things are kept, by age. Zero keeps them for ever.
type Retention struct {
	Content  time.Duration // of messages that have ended: what they said
	Messages time.Duration // everything else: numbers, attempts, outcomes, identities
	Era      time.Duration // how finely age is told; default 7 days
}

// Retain begins a new era when the current one is old enough, and drops what
// is past its age. Any process may call it, as often as it likes.
func (l *Ledger) Retain(ctx context.Context, r Retention) error {
	if r.Era <= 0 {
		r.Era = 7 * 24 * time.Hour
	}
	if err := l.grow(ctx); err != nil {
		return err
	}
	// The jump leaves numbers out of the positions, never out of a stream. One
	// process at a time: the second would take back what the first let begin.
	if err := l.ddl(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock(hashtext('stormpost era'))`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
		select setval('position', (e.no::bigint + 1) << $2)
		from era e, position p
		where e.no = p.last_value >> $2 and p.is_called and e.began_at < clock_timestamp() - $1::interval
		  and exists (select from era x where x.no = e.no + 1)`, r.Era, eraBits)
		return err
	}); err != nil {
		return unavailable("retain", err)
	}
	if err := l.grow(ctx); err != nil {
		return err
	}
	if err := l.forgetParked(ctx); err != nil {
		return err
	}
	for _, pass := range []struct {
		age  time.Duration
		only bool
	}{{r.Content, true}, {r.Messages, false}} {
		if pass.age <= 0 {
			continue
		}
		if err := l.dropEras(ctx, pass.age, pass.only); err != nil {
			return err
		}
	}
	return nil
}

// dropEras drops the eras that were over that long ago: one is over when a later
// one has begun. Lanes' floors and cursors go up to the end of what is dropped,
// so it keeps what comes after an era that is still needed.
func (l *Ledger) dropEras(ctx context.Context, age time.Duration, onlyContent bool) error {
	rows, err := l.pool.Query(ctx, `
		select e.no from era e
		where (select min(later.began_at) from era later where later.no > e.no) < clock_timestamp() - $1::interval
		  and (e.content or not $2) order by e.no`, age, onlyContent)
	if err != nil {
		return unavailable("retain", err)
	}
	old, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return unavailable("retain", err)
	}
	for _, w := range old {
		dropped := false
		err := l.ddl(ctx, func(tx pgx.Tx) error {
			// A counter that is missing could not keep the mark of what goes.
			var lost bool
			if err := tx.QueryRow(ctx, `select exists (select from stream s where not exists (select from counter c where c.stream = s.id))`).Scan(&lost); err != nil {
				return err
			}
			if lost {
				return errors.New("a stream has lost its counter")
			}
			return tx.QueryRow(ctx, `select drop_era($1, $2)`, w, onlyContent).Scan(&dropped)
		})
		if err != nil {
			return unavailable(fmt.Sprintf("retain: era %d", w), err)
		}
		if dropped {
			l.log.InfoContext(ctx, "dropped for age", "era", w, "only_content", onlyContent)
		} else if !onlyContent {
			break
		}
	}
	if onlyContent {
		return nil
	}
	return l.forgetSuperseded(ctx)
}

// forgetSuperseded drops what is kept of supersede keys, repeats and events below the lanes' floors:
// every message there has ended. It waits for no accept under a key; what it
// leaves, the next call takes.
func (l *Ledger) forgetSuperseded(ctx context.Context) error {
	err := l.ddl(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `
			delete from superseded s using lane l where s.n > l.code::bigint << 57 and s.n <= l.floor`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `delete from repeated r using lane l where r.n > l.code::bigint << 57 and r.n <= l.floor`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `delete from told where at < clock_timestamp() - interval '180 days'`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `delete from event e using lane l where e.n > l.code::bigint << 57 and e.n <= l.floor`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
			delete from newest where key in (
				select k.key from newest k join lane l on l.code = k.n >> 57 where k.n <= l.floor for update of k skip locked)`)
		return err
	})
	if err != nil {
		return unavailable("retain: supersede keys", err)
	}
	return nil
}
