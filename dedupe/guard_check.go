package dedupe

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

// Numbering implements recovery.Numbering. The work of one call is bounded, as
// guard.go says: what it returns is what it found in this round, at most some
// thousand faults.
func (l *Ledger) Numbering(ctx context.Context) ([]message.Fault, error) {
	l.guard.mu.Lock()
	defer l.guard.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	var faults []message.Fault
	suspects := l.guard.suspected()
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, byIndex); err != nil {
			return err
		}
		s, err := structure(ctx, tx)
		if err != nil {
			return err
		}
		for _, f := range s.faults {
			faults = append(faults, f.Fault)
		}
		if !s.usable || !s.marked {
			return nil
		}
		lost, err := l.guard.round(ctx, tx, s, suspects)
		if err != nil {
			return err
		}
		faults = append(faults, lost...)
		if s.position > s.top {
			_, err = tx.Exec(ctx, `update numbering set position = $1 where position < $1`, s.position)
		}
		return err
	})
	if err != nil {
		for _, stream := range suspects {
			l.guard.suspect(stream)
		}
		return nil, unavailable("numbering", err)
	}
	return faults, nil
}

// round looks at the suspects, and at as many of the streams as it is their turn.
// What it finds are suspects from now on, until they are sound.
func (g *guardState) round(ctx context.Context, tx pgx.Tx, s *survey, streams []int64) ([]message.Fault, error) {
	var suspects []int64
	for _, part := range []struct {
		add  *[]int64
		sql  string
		args []any
	}{
		{&suspects, `select stream from suspect order by 1 limit $1`, []any{mostSuspects}},
		{&streams, `select id from stream where id > $1 order by id limit $2`, []any{g.lags, max(50, probesPerCheck/max(1, len(s.sound)))}},
	} {
		rows, err := tx.Query(ctx, part.sql, part.args...)
		if err != nil {
			return nil, err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return nil, err
		}
		if part.add == &streams {
			g.lags = 0 // from the beginning, unless there are more
			if len(ids) > 0 {
				g.lags = ids[len(ids)-1]
			}
		}
		*part.add = append(*part.add, ids...)
	}
	lost, err := g.lost(ctx, tx)
	if err != nil {
		return nil, err
	}
	streams = append(append(streams, suspects...), lost...)
	slices.Sort(streams)
	faults, err := s.lags(ctx, tx, slices.Compact(streams))
	if err != nil {
		return nil, err
	}
	found := make([]int64, len(faults))
	for i, f := range faults {
		found[i] = f.Stream
	}
	if len(suspects)+len(found) > 0 {
		if _, err := tx.Exec(ctx, `insert into suspect select unnest($1::bigint[]) on conflict (stream) do nothing`, found); err != nil {
			return nil, err
		}
		if _, err := tx.Exec(ctx, `delete from suspect where stream = any ($1) and stream <> all ($2)`, suspects, found); err != nil {
			return nil, err
		}
	}
	return faults, nil
}

// lost is the streams without a counter at or above their mark, of the next
// quarter of all.
func (g *guardState) lost(ctx context.Context, tx pgx.Tx) ([]int64, error) {
	var to, most int64
	if err := tx.QueryRow(ctx, `select $1 + greatest($2, m.id / 4 + 1), m.id from (select coalesce(max(id), 0) as id from stream) m`,
		g.counters, int64(leastSlice)).Scan(&to, &most); err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, `
		select s.id from stream s left join counter c on c.stream = s.id
		where s.id > $1 and s.id <= $2 and (c.stream is null or c.last < s.mark) order by 1 limit $3`, g.counters, to, mostFaults)
	if err != nil {
		return nil, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	switch {
	case len(ids) == mostFaults:
		g.counters = ids[len(ids)-1] // the rest of the quarter in the next check
	case to >= most:
		g.counters = 0
	default:
		g.counters = to
	}
	return ids, err
}

// numberingOf looks at everything, however long it takes: for migrations.
func numberingOf(ctx context.Context, q querier) ([]message.Fault, error) {
	if _, err := q.Exec(ctx, byIndex); err != nil {
		return nil, err
	}
	s, err := structure(ctx, q)
	if err != nil {
		return nil, err
	}
	var faults []message.Fault
	for _, f := range s.faults {
		faults = append(faults, f.Fault)
	}
	for after := int64(0); s.usable && len(faults) < mostFaults; {
		rows, err := q.Query(ctx, `select id from stream where id > $1 order by id limit 1000`, after)
		if err != nil {
			return nil, err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return nil, err
		}
		if len(ids) == 0 {
			break
		}
		lags, err := s.lags(ctx, q, ids)
		if err != nil {
			return nil, err
		}
		faults, after = append(faults, lags...), ids[len(ids)-1]
	}
	return faults, nil
}

// CheckNumbering is Numbering for every stream, however long that takes: about
// a second for 100,000 streams and each three eras.
func (l *Ledger) CheckNumbering(ctx context.Context) (faults []message.Fault, err error) {
	err = pgx.BeginTxFunc(ctx, l.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `set local statement_timeout = '5min'`); err != nil {
			return err
		}
		faults, err = numberingOf(ctx, tx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("numbering: %w", err)
	}
	return faults, nil
}
