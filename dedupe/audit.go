package dedupe

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	maxMissing = 1000
	// auditWindow is how many numbers one statement of a stream's audit looks at.
	auditWindow = 5_000
	// auditBudget is after how long a stream's audit answers with what it has.
	auditBudget = 3 * time.Second
	// mostAudited is how many of a stream's numbers one answer covers.
	mostAudited = 2_000_000
)

// Audit looks at a stream whole, part by part. It takes some seconds for every
// million messages.
func (l *Ledger) Audit(ctx context.Context, tenant int32, stream string) (*message.Audit, error) {
	whole, err := l.AuditPart(ctx, tenant, stream, message.Range{})
	if err != nil {
		return nil, err
	}
	for whole.Next != 0 {
		part, err := l.AuditPart(ctx, tenant, stream, message.Range{From: whole.Next, To: whole.Last})
		if err != nil {
			return nil, err
		}
		whole.To, whole.Next = part.To, part.Next
		whole.Missing = append(whole.Missing, part.Missing...)
		whole.Missing = whole.Missing[:min(len(whole.Missing), maxMissing)]
		for state, n := range part.States {
			whole.States[state] += n
		}
	}
	return whole, nil
}

// AuditPart implements httpapi.Ledger.
func (l *Ledger) AuditPart(ctx context.Context, tenant int32, stream string, within message.Range) (*message.Audit, error) {
	if err := l.stands("audit"); err != nil { // what it has forgotten isn't missing in it
		return nil, err
	}
	done, err := l.read(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, l.patient+l.cfg.Deadline)
	defer cancel()
	a := &message.Audit{Stream: stream, States: make(map[message.State]int64)}
	err = pgx.BeginTxFunc(ctx, l.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		return auditPart(ctx, tx, tenant, within, time.Now().Add(l.patient), a)
	})
	switch {
	case noRows(err):
		return nil, l.absent("audit")
	case err != nil:
		return nil, unavailable("audit", err)
	}
	return a, nil
}

func auditPart(ctx context.Context, tx pgx.Tx, tenant int32, within message.Range, until time.Time, a *message.Audit) error {
	// Rows are few against the tables, whatever the planner believes.
	if _, err := tx.Exec(ctx, `select set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)`); err != nil {
		return err
	}
	var stream, floor, last int64
	// A lost counter shows as numbers beyond 0, not as an empty stream.
	if err := tx.QueryRow(ctx, `
		select s.id, coalesce(c.floor, 0), greatest(coalesce(c.last, 0), coalesce((select m.seq from message m where m.stream = s.id order by m.seq desc limit 1), 0))
		from stream s left join counter c on c.stream = s.id where s.tenant = $1 and s.name = $2`, tenant, a.Stream).Scan(&stream, &floor, &last); err != nil {
		return err
	}
	if last <= floor {
		return nil
	}
	a.First, a.Last = floor+1, last
	a.From, a.To = max(a.First, within.From), last
	if within.To > 0 {
		a.To = min(last, within.To)
	}
	for at := a.From; at <= a.To; at += auditWindow {
		if at > a.From && (time.Now().After(until) || at-a.From >= mostAudited || len(a.Missing) >= maxMissing) {
			a.To, a.Next = at-1, at
			return nil
		}
		if err := auditNumbers(ctx, tx, stream, message.Range{From: at, To: min(a.To, at+auditWindow-1)}, a); err != nil {
			return err
		}
	}
	return nil
}

// auditNumbers adds what some numbers of a stream show.
func auditNumbers(ctx context.Context, tx pgx.Tx, stream int64, r message.Range, a *message.Audit) error {
	rows, err := tx.Query(ctx, `
		select was + 1, seq - 1 from (
			select seq, lag(seq, 1, $2::bigint - 1) over (order by seq) as was from (
				select seq from message where stream = $1 and seq between $2 and $3 union all select $3::bigint + 1) all_numbers
		) x where seq > was + 1 order by seq limit $4`, stream, r.From, r.To, maxMissing)
	if err != nil {
		return err
	}
	gaps, err := pgx.CollectRows(rows, pgx.RowToStructByPos[message.Range])
	if err != nil {
		return err
	}
	for _, gap := range gaps {
		// What goes on over a window's edge is one gap.
		if n := len(a.Missing); n > 0 && a.Missing[n-1].To == gap.From-1 {
			a.Missing[n-1].To = gap.To
		} else if n < maxMissing {
			a.Missing = append(a.Missing, gap)
		}
	}
	rows, err = tx.Query(ctx, `select state, count(*) from message_state where stream = $1 and seq between $2 and $3 group by state`, stream, r.From, r.To)
	if err != nil {
		return err
	}
	return addStates(rows, func(state message.State, n int64) { a.States[state] += n })
}

func addStates(rows pgx.Rows, add func(message.State, int64)) error {
	var state string
	var count int64
	_, err := pgx.ForEachRow(rows, []any{&state, &count}, func() error {
		add(message.State(state), count)
		return nil
	})
	return err
}
