package dedupe

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

// shielded says that c may repeat another submission.
func (c *acceptCall) shielded() bool {
	return !c.s.RepeatsSince.IsZero() && !(c.entry != nil && c.entry.held)
}

// mostShielded bounds the locks of one transaction.
const mostShielded = 100

// enterShielded is enter for calls that may repeat others. Those with the same
// content couldn't see each other in one batch: so first one of each goes in,
// and then all the others, which see that one.
func (l *Ledger) enterShielded(calls []*acceptCall) (known []*acceptCall) {
	var firsts, rest []*acceptCall
	first := make(map[[6]byte]*acceptCall, len(calls))
	for _, c := range calls {
		start := [6]byte(c.s.Key[:6])
		if first[start] != nil {
			rest = append(rest, c)
			continue
		}
		first[start] = c
		firsts = append(firsts, c)
	}
	for batch := range slices.Chunk(firsts, mostShielded) {
		known = append(known, l.enter(batch)...)
	}
	rest = slices.DeleteFunc(rest, func(c *acceptCall) bool {
		err := first[[6]byte(c.s.Key[:6])].err // nobody knows whether that is in
		if err != nil {
			c.fail(err)
		}
		return err != nil
	})
	for batch := range slices.Chunk(rest, mostShielded) {
		known = append(known, l.enter(batch)...)
	}
	return known
}

// repeat is a submission that another repeats.
type repeat struct {
	receipt  message.Receipt // as it is answered for it
	suppress bool
}

// enterOnceShielded enters calls in one transaction with the search for what
// they repeat.
func (l *Ledger) enterOnceShielded(ctx context.Context, calls []*acceptCall) (fresh []entered, err error) {
	err = pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		fresh = nil
		found, err := findRepeats(ctx, tx, calls)
		if err != nil {
			return err
		}
		var in []*acceptCall
		for _, c := range calls {
			r, ok := found[c]
			c.ends = ok && r.suppress
			if c.ends && c.entry == nil {
				fresh = append(fresh, entered{call: c, receipt: r.receipt})
				continue
			}
			in = append(in, c)
		}
		if len(in) == 0 {
			return nil
		}
		enter := l.enterRows
		if in[0].entry != nil {
			enter = l.enterParked
		}
		got, err := enter(ctx, tx, in)
		if err != nil {
			return err
		}
		if err := markRepeats(ctx, tx, got, found); err != nil {
			return err
		}
		fresh = append(fresh, got...)
		return nil
	})
	return fresh, err
}

func findRepeats(ctx context.Context, tx pgx.Tx, calls []*acceptCall) (map[*acceptCall]repeat, error) {
	keys, prints := make([][16]byte, len(calls)), make([][]byte, len(calls))
	tenants, sinces := make([]int32, len(calls)), make([]time.Time, len(calls))
	for i, c := range calls {
		keys[i], prints[i], tenants[i], sinces[i] = c.s.Key, c.s.Print[:], c.s.Tenant, c.s.RepeatsSince
	}
	rows, err := tx.Query(ctx, `select ord, key, submission, seq, waits, suppress from find_repeats($1, $2, $3, $4)`, keys, prints, tenants, sinces)
	if err != nil {
		return nil, err
	}
	found := make(map[*acceptCall]repeat)
	var ord int32
	var key [16]byte
	var r repeat
	_, err = pgx.ForEachRow(rows, []any{&ord, &key, &r.receipt.Submission, &r.receipt.Sequence, &r.receipt.Waiting, &r.suppress}, func() error {
		c := calls[ord-1]
		r.receipt.Replayed, r.receipt.RepeatOf = true, message.SubmissionID(key, c.s.Print)
		found[c] = r
		return nil
	})
	return found, err
}

// markRepeats notes which of got repeat others. One out of the journal that is
// to be suppressed has its own id and number by now: it ends as canceled.
func markRepeats(ctx context.Context, tx pgx.Tx, got []entered, found map[*acceptCall]repeat) error {
	var ns, over []int64
	var firsts [][]byte
	var notes []string
	for i := range got {
		c, r := got[i].call, &got[i].receipt
		of, ok := found[c]
		if !ok {
			continue
		}
		first := of.receipt.RepeatOf
		r.RepeatOf = first
		ns, firsts = append(ns, int64(message.PositionOf(c.s.Lane, r.Submission, 0))), append(firsts, first[:24])
		if !of.suppress {
			continue
		}
		r.Ended = true
		for to := range c.s.Recipients {
			over = append(over, int64(message.PositionOf(c.s.Lane, r.Submission, to)))
			notes = append(notes, "repeats "+first.String())
		}
	}
	if len(ns) == 0 {
		return nil
	}
	b := &pgx.Batch{}
	b.Queue(`insert into repeated (n, first) select * from unnest($1::bigint[], $2::bytea[])`, ns, firsts)
	b.Queue(`
		insert into attempt (n, no, kind, worker, token, at, note)
		select u.n, 1, 2, 0, 0, clock_timestamp(), u.note from unnest($1::bigint[], $2::text[]) as u(n, note) order by u.n`, over, notes)
	b.Queue(`delete from waiting where n = any ($1)`, over)
	return tx.SendBatch(ctx, b).Close()
}

// SetRepeats says what becomes of a tenant's requests without a key that repeat
// another while the shield is up: off, flag or suppress.
func (l *Ledger) SetRepeats(ctx context.Context, tenant, repeats string) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	tag, err := l.pool.Exec(ctx, `update tenant set repeats = $2 where name = $1`, tenant, repeats)
	switch {
	case err != nil && blameFor(err) == blameRow:
		return message.FieldErrors{{Field: "repeats", Problem: "want off, flag or suppress"}}
	case err != nil:
		return unavailable("tenant", err)
	case tag.RowsAffected() == 0:
		return message.FieldErrors{{Field: "tenant", Problem: "there is none of that name"}}
	}
	return nil
}

// Tenants are all tenants, by name.
func (l *Ledger) Tenants(ctx context.Context) ([]message.Tenant, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `select id, name, domains, repeats, created_at from tenant order by name`)
	if err != nil {
		return nil, unavailable("tenants", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[message.Tenant])
	if err != nil {
		return nil, unavailable("tenants", err)
	}
	return all, nil
}
