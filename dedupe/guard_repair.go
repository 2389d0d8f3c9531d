package dedupe

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

// mostRepairs bounds the counters that are mended while accepting is shut out.
const mostRepairs = 10_000

// RepairNumbering implements recovery.Numbering. One process at a time repairs;
// to the others it returns nothing, and they see the result in their next
// check. What can't be repaired is joined in err; all else is repaired still.
//
// Keys and indexes come first, each with nothing but its own table locked. Then,
// for sequences and counters, accepting is shut out: whoever numbers has locked
// a counter's row, and so holds a lock on counter that conflicts with ours. What
// has been given out by then is visible or will never be. Each lock is waited for
// no longer than 2 s, since others queue behind us meanwhile.
func (l *Ledger) RepairNumbering(ctx context.Context) (repaired []message.Fault, err error) {
	if err := l.stands("numbering"); err != nil {
		return nil, err
	}
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return nil, unavailable("repair", err)
	}
	defer l.unlock(conn)
	var mine bool
	if err := conn.QueryRow(ctx, `select pg_try_advisory_lock(hashtext('stormpost numbering'))`).Scan(&mine); err != nil {
		return nil, unavailable("repair", err)
	}
	if !mine {
		return nil, nil
	}
	s, err := structure(ctx, conn)
	if err != nil {
		return nil, unavailable("repair", err)
	}
	var errs []error
	done := func(f message.Fault, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.Name, why(err)))
			return
		}
		repaired = append(repaired, f)
	}
	defer func() { l.noteRepairs(ctx, conn, repaired) }()
	for _, f := range s.faults {
		if f.fix != nil && !f.locked {
			done(f.Fault, repairTx(ctx, conn.Conn(), func(tx pgx.Tx) error { return f.fix(ctx, tx) }))
		}
	}
	if !s.usable || !s.marked {
		return repaired, errors.Join(errs...)
	}
	var inside []message.Fault
	if err := repairTx(ctx, conn.Conn(), func(tx pgx.Tx) error {
		inside, err = repairLocked(ctx, tx, done)
		return err
	}); err != nil {
		return repaired, errors.Join(append(errs, unavailable("repair", err))...)
	}
	return append(repaired, inside...), errors.Join(errs...)
}

// noteRepairs has the other processes know. A repair that isn't noted is one all
// the same.
func (l *Ledger) noteRepairs(ctx context.Context, conn querier, repaired []message.Fault) {
	if len(repaired) == 0 {
		return
	}
	var names, details []string
	for _, f := range repaired[:min(len(repaired), mostNoted)] {
		names, details = append(names, f.Name), append(details, f.Detail)
	}
	if _, err := conn.Exec(ctx, `
		with old as (delete from repair where at < clock_timestamp() - interval '1 day')
		insert into repair (name, detail) select * from unnest($1::text[], $2::text[])`, names, details); err != nil {
		l.log.WarnContext(ctx, "a repair of the numbering could not be noted", "error", err)
	}
}

// mostNoted bounds the repairs that are noted at once, and told of.
const mostNoted = 20

// Repaired implements recovery.Numbering.
func (l *Ledger) Repaired(ctx context.Context, after int64, within time.Duration) (faults []message.Fault, last int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
		select id, name, detail from repair
		where id > case when $1 <= (select max(id) from repair) then $1 else 0 end -- a restored ledger counts anew
			and at > clock_timestamp() - $2::interval order by id desc limit $3`, after, within, mostNoted)
	if err == nil {
		var id int64
		var f message.Fault
		_, err = pgx.ForEachRow(rows, []any{&id, &f.Name, &f.Detail}, func() error {
			faults, last = append(faults, f), max(last, id)
			return nil
		})
	}
	if err != nil && !isCode(err, codeNoTable) { // an older schema tells of none
		return nil, after, unavailable("repairs", err)
	}
	if len(faults) == 0 {
		last = after
	}
	return faults, last, nil
}

func repairTx(ctx context.Context, conn *pgx.Conn, fn func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `set local lock_timeout = '2s'; set local statement_timeout = '10min'; `+byIndex); err != nil {
			return err
		}
		return fn(tx)
	})
}

// why says which rows are twice where a unique index could not be made: nobody
// but a person can tell which of them is right.
func why(err error) error {
	if isCode(err, codeUnique) {
		return fmt.Errorf("its rows are not unique, and none is removed: %w", err)
	}
	return err
}

// repairLocked mends sequences and counters. Failures are told to failed; an
// error is about the whole transaction.
func repairLocked(ctx context.Context, tx pgx.Tx, failed func(message.Fault, error)) ([]message.Fault, error) {
	if !anyToLock(ctx, tx) {
		return nil, nil
	}
	for _, lock := range []string{
		`lock table stream in share row exclusive mode`, `lock table counter in exclusive mode`, `lock table message in share row exclusive mode`,
	} {
		if _, err := tx.Exec(ctx, lock); err != nil {
			return nil, err
		}
	}
	s, err := structure(ctx, tx) // as it is now that nobody else changes it
	if err != nil || !s.usable || !s.marked {
		return nil, err
	}
	var repaired []message.Fault
	for _, f := range s.faults {
		if f.fix == nil || !f.locked {
			continue
		}
		if err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return f.fix(ctx, tx) }); err != nil {
			failed(f.Fault, err)
			continue
		}
		repaired = append(repaired, f.Fault)
	}
	if err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
		counters, err := s.repairCounters(ctx, tx)
		repaired = append(repaired, counters...)
		return err
	}); err != nil {
		failed(message.Fault{Name: "counters"}, err)
	}
	return repaired, nil
}

// anyToLock says whether there is something that accepting must be shut out for.
// When in doubt there is.
func anyToLock(ctx context.Context, tx pgx.Tx) bool {
	s, err := structure(ctx, tx)
	if err != nil {
		return true
	}
	for _, f := range s.faults {
		if f.locked && f.fix != nil {
			return true
		}
	}
	var suspects bool
	return tx.QueryRow(ctx, `select exists (select from suspect)`).Scan(&suspects) != nil || suspects
}

// repairCounters sets the suspects' counters, and those that are missing, to the
// greater of their messages and their mark.
func (s *survey) repairCounters(ctx context.Context, tx pgx.Tx) ([]message.Fault, error) {
	rows, err := tx.Query(ctx, `
		(select stream from suspect limit $1)
		union (select s.id from stream s where not exists (select from counter c where c.stream = s.id) limit $1)`, mostRepairs)
	if err != nil {
		return nil, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	// Partitions without their index are read whole, but once.
	var scans, most strings.Builder
	for i, p := range s.unsound {
		fmt.Fprintf(&scans, " left join (select stream, max(seq) as top from %s where stream = any ($1) group by stream) x%d on x%d.stream = s.id", p, i, i)
		fmt.Fprintf(&most, ", x%d.top", i)
	}
	rows, err = tx.Query(ctx, `
		with right_ as materialized (
			select s.id, s.mark, greatest(`+tops(s.sound)+most.String()+`) as top, s.last as was
			from `+ofStreams+scans.String()+`
		), set_ as (
			insert into counter as c (stream, last, floor) select id, top, mark from right_ where was is null or was < top
			on conflict (stream) do update set last = excluded.last
		)
		select id, top, was from right_ where was is null or was < top`, ids)
	if err != nil {
		return nil, err
	}
	var repaired []message.Fault
	var id, top int64
	var was *int64
	_, err = pgx.ForEachRow(rows, []any{&id, &top, &was}, func() error {
		f := message.Fault{Name: fmt.Sprintf("counter of stream %d is missing", id), Detail: fmt.Sprintf("set to %d", top), Stream: id}
		if was != nil {
			f.Name, f.Detail = fmt.Sprintf("counter of stream %d is behind", id), fmt.Sprintf("set from %d to %d", *was, top)
		}
		repaired = append(repaired, f)
		was = nil
		return nil
	})
	if err != nil {
		return nil, err
	}
	_, err = tx.Exec(ctx, `delete from suspect where stream = any ($1)`, ids)
	return repaired, err
}
