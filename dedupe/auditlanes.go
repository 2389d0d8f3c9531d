package dedupe

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	auditDeadline = 5 * time.Minute
	// auditSpan is how many submissions one statement of a lane's audit looks at.
	auditSpan = 1 << 16
	// stateLost is audit_window's word for what the promise excludes.
	stateLost message.State = "lost"
)

// AuditLanes implements httpapi.Ledger. Everything is read in one snapshot, one
// audit at a time in each process; it takes a few seconds for every million
// messages, at most 5 minutes.
func (l *Ledger) AuditLanes(ctx context.Context, lanes []message.Lane, progress func(done, total int64)) ([]message.LaneAudit, error) {
	if err := l.stands("audit"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, auditDeadline)
	defer cancel()
	select {
	case l.audits <- struct{}{}:
		defer func() { <-l.audits }()
	case <-ctx.Done():
		return nil, unavailable("audit", ctx.Err())
	}
	all := make([]message.LaneAudit, len(lanes))
	err := pgx.BeginTxFunc(ctx, l.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `set local statement_timeout = '1min'`); err != nil {
			return err
		}
		accepted, err := identities(ctx, tx)
		if err != nil {
			return err
		}
		var done, total int64
		for i, lane := range lanes {
			all[i] = message.LaneAudit{Lane: lane, Accepted: accepted[lane], States: make(map[message.State]int64)}
			total += accepted[lane]
		}
		for i := range all {
			err := auditLane(ctx, tx, &all[i], func(n int64) {
				done += n
				progress(done, total)
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, unavailable("audit", err)
	}
	return all, nil
}

// identities is how many messages each lane accepted, of those that retention
// has left.
func identities(ctx context.Context, tx pgx.Tx) (map[message.Lane]int64, error) {
	rows, err := tx.Query(ctx, `select lane, sum(count)::bigint from identity group by lane`)
	if err != nil {
		return nil, err
	}
	accepted := make(map[message.Lane]int64)
	var code int16
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&code, &n}, func() error {
		accepted[message.LaneOf(int64(code))] = n
		return nil
	})
	return accepted, err
}

// auditLane counts a lane's messages window by window, and tells how many each had.
func auditLane(ctx context.Context, tx pgx.Tx, a *message.LaneAudit, counted func(int64)) error {
	at, end := a.Lane.Code()<<57, (a.Lane.Code()+1)<<57
	var cursor int64
	if err := tx.QueryRow(ctx, `select cursor from lane where code = $1`, int16(a.Lane.Code())).Scan(&cursor); err != nil {
		return err
	}
	for {
		// Eras that begin early leave wide holes.
		err := tx.QueryRow(ctx, `select n - 1 from message where n > $1 and n < $2 order by n limit 1`, at, end).Scan(&at)
		if noRows(err) {
			return nil
		}
		if err != nil {
			return err
		}
		edge := min(at+auditSpan<<6, end-1)
		rows, err := tx.Query(ctx, `select state, count from audit_window($1, $2, $3)`, at, edge, cursor)
		if err != nil {
			return err
		}
		var n int64
		if err := addStates(rows, func(state message.State, count int64) {
			n += count
			if state == stateLost {
				a.Lost += count
				return
			}
			a.States[state] += count
		}); err != nil {
			return err
		}
		counted(n)
		at = edge
	}
}
