package dedupe

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	maxMissing    = 1000
	auditDeadline = 5 * time.Minute
)

// Audit implements httpapi.Ledger. It reads the stream whole, so it takes about
// a second for every 100,000 messages.
func (l *Ledger) Audit(ctx context.Context, tenant int32, stream string) (*message.Audit, error) {
	ctx, cancel := context.WithTimeout(ctx, auditDeadline)
	defer cancel()
	done, err := l.read(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	a := &message.Audit{Stream: stream, States: make(map[message.State]int64)}
	err = pgx.BeginTxFunc(ctx, l.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `set local statement_timeout = '5min'`); err != nil {
			return err
		}
		return auditStream(ctx, tx, tenant, stream, a)
	})
	switch {
	case noRows(err):
		return nil, message.ErrNotFound
	case err != nil:
		return nil, unavailable("audit", err)
	}
	return a, nil
}

func auditStream(ctx context.Context, tx pgx.Tx, tenant int32, name string, a *message.Audit) error {
	var stream, floor, last int64
	// A lost counter shows as numbers beyond 0, not as an empty stream.
	if err := tx.QueryRow(ctx, `
		select s.id, coalesce(c.floor, 0), greatest(coalesce(c.last, 0), coalesce((select max(m.seq) from message m where m.stream = s.id), 0))
		from stream s left join counter c on c.stream = s.id where s.tenant = $1 and s.name = $2`, tenant, name).Scan(&stream, &floor, &last); err != nil {
		return err
	}
	if last > floor {
		a.First, a.Last = floor+1, last
	}
	rows, err := tx.Query(ctx, `
		select was + 1, seq - 1 from (
			select seq, lag(seq, 1, $2) over (order by seq) as was from (
				select seq from message where stream = $1 union all select $3::bigint + 1) all_numbers
		) x where seq > was + 1 order by seq limit $4`, stream, floor, last, maxMissing)
	if err != nil {
		return err
	}
	if a.Missing, err = pgx.CollectRows(rows, pgx.RowToStructByPos[message.Range]); err != nil {
		return err
	}
	rows, err = tx.Query(ctx, `select state, count(*) from message_state where stream = $1 group by state`, stream)
	if err != nil {
		return err
	}
	var state string
	var count int64
	_, err = pgx.ForEachRow(rows, []any{&state, &count}, func() error {
		a.States[message.State(state)] = count
		return nil
	})
	return err
}
