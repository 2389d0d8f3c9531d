package dedupe

import (
	"bytes"
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// maxParked bounds how many bytes of a lane's parked record are kept.
	maxParked = 1 << 20
	// mostHeld bounds the counts of what waits for a person.
	mostHeld = 10_000
)

// Park implements delivery.Ledger.
func (l *Ledger) Park(ctx context.Context, source string, raw []byte, reason string) error {
	return l.park(ctx, message.Parked{Source: source, Raw: raw[:min(len(raw), maxParked)], Reason: reason})
}

// ParkWhole implements recovery.Ledger. Of a submission, which may come several times,
// the first record is kept.
func (l *Ledger) ParkWhole(ctx context.Context, p message.Parked) error { return l.park(ctx, p) }

func (l *Ledger) park(ctx context.Context, p message.Parked) error {
	if p.Raw == nil {
		p.Raw = []byte{}
	}
	args := []any{p.Source, p.Raw, bounded(p.Reason, 2000), nil, nil, nil, nil, nil}
	told := []any{"source", p.Source, "reason", p.Reason}
	if p.ID != (message.ID{}) {
		ids := make([]string, p.Recipients)
		for i := range ids {
			ids[i] = p.ID.Message(i).String()
		}
		args = append(args[:3], p.ID[:24], ids, p.Tenant, int16(p.Lane.Code()), p.AcceptedAt)
		told = append(told, "submission", p.ID)
	}
	if _, err := l.pool.Exec(ctx, `
		insert into parked (source, raw, reason, submission, ids, tenant, lane, accepted_at) values ($1, $2, $3, $4, $5, $6, $7, $8)
		on conflict (submission) do nothing`, args...); err != nil {
		return unavailable("park", err)
	}
	l.log.WarnContext(ctx, "record parked", told...)
	return nil
}

// parked is the messages of submissions that were parked, as users see them: those
// whose ids begin with these bytes.
func (l *Ledger) parked(ctx context.Context, prefix []byte) ([]message.View, error) {
	rows, err := l.pool.Query(ctx, `
		select submission, cardinality(ids), tenant, lane, accepted_at, reason, canceled from parked
		where submission between $1 and $2 order by submission`, prefix, append(bytes.Clone(prefix), bytes.Repeat([]byte{0xff}, 24-len(prefix))...))
	if err != nil {
		return nil, unavailable("parked", err)
	}
	var all []message.View
	var submission []byte
	var count int
	var lane int16
	var canceled int64
	var v message.View
	_, err = pgx.ForEachRow(rows, []any{&submission, &count, &v.Tenant, &lane, &v.AcceptedAt, &v.Reason, &canceled}, func() error {
		v.Lane = message.LaneOf(int64(lane))
		for i := range count {
			of := v
			copy(of.ID[:24], submission)
			of.ID, of.State, of.Reason = of.ID.Message(i), message.StateHeld, "parked: "+v.Reason
			if canceled>>i&1 == 1 {
				of.State, of.Reason = message.StateCanceled, ""
			}
			all = append(all, of)
		}
		return nil
	})
	if err != nil {
		return nil, unavailable("parked", err)
	}
	return all, nil
}

// parkedMessage is one of them, or message.ErrNotFound.
func (l *Ledger) parkedMessage(ctx context.Context, tenant int32, id message.ID) (*message.View, error) {
	all, err := l.parked(ctx, id[:24])
	if err != nil {
		return nil, err
	}
	for i, v := range all {
		if v.ID == id && (tenant == 0 || v.Tenant == tenant) {
			return &all[i], nil
		}
	}
	return nil, message.ErrNotFound
}

// parkedList is those of the submission or key that a filter names, newest first.
func (l *Ledger) parkedList(ctx context.Context, f message.Filter) (page message.Page[message.View], err error) {
	prefix := f.Submission[:24]
	switch {
	case f.Submission == (message.ID{}):
		prefix = f.Key[:]
	case f.Key != nil && *f.Key != f.Submission.KeyHash():
		return page, nil
	}
	all, err := l.parked(ctx, prefix)
	for i := len(all) - 1; i >= 0; i-- {
		if v := all[i]; (f.Tenant == 0 || v.Tenant == f.Tenant) && (f.State == "" || v.State == f.State) {
			page.Items = append(page.Items, v)
		}
	}
	return page, err
}

// findEntered is find for what nobody can do with a message that was parked.
func (l *Ledger) findEntered(ctx context.Context, id message.ID) (message.Position, error) {
	n, err := l.find(ctx, id)
	if err != message.ErrNotFound {
		return n, err
	}
	if _, err := l.parkedMessage(ctx, 0, id); err != nil {
		return 0, err
	}
	return 0, message.FieldErrors{{Field: "id", Problem: "is of a submission that the ledger refused: once the reason is mended, submit it again under its key; or cancel it"}}
}

func (l *Ledger) cancelParked(ctx context.Context, id message.ID) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	if _, err := l.pool.Exec(ctx, `update parked set canceled = canceled | (1::bigint << $2) where submission = $1`, id[:24], id.Index()); err != nil {
		return unavailable("cancel", err)
	}
	return nil
}

// forgetParked drops the journals' parked records whose submissions the ledger has by
// now: it tells of them, and only for as long as it keeps them.
func (l *Ledger) forgetParked(ctx context.Context) error {
	if err := l.ddl(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `delete from parked where id in (select id from refused where entered)`)
		return err
	}); err != nil {
		return unavailable("retain: parked", err)
	}
	return nil
}

// Parked implements httpapi.Ledger.
func (l *Ledger) Parked(ctx context.Context) (map[message.Lane]int64, error) {
	if err := l.stands("parked"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `select coalesce(lane, 0), sum(coalesce(cardinality(ids), 1))::bigint from refused where not entered group by 1`)
	if err != nil {
		return nil, unavailable("parked", err)
	}
	all := make(map[message.Lane]int64)
	var code int16
	var n int64
	if _, err := pgx.ForEachRow(rows, []any{&code, &n}, func() error {
		all[message.LaneOf(int64(code))] = n
		return nil
	}); err != nil {
		return nil, unavailable("parked", err)
	}
	return all, nil
}

// Held is what waits for a person, by cause.
func (l *Ledger) Held(ctx context.Context) ([]message.HeldOpen, error) {
	if err := l.stands("held"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `select cause, count, extract(epoch from clock_timestamp() - since)::float8 from held_open($1)`, mostHeld)
	if err != nil {
		return nil, unavailable("held", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (h message.HeldOpen, err error) {
		var oldest float64
		err = row.Scan(&h.Cause, &h.Count, &oldest)
		h.Oldest = time.Duration(max(0, oldest) * float64(time.Second))
		return h, err
	})
	if err != nil {
		return nil, unavailable("held", err)
	}
	return all, nil
}
