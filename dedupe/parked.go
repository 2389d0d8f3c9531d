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
	if err == nil && len(all) > 0 {
		err = l.toldOf(ctx, all)
	}
	if err != nil {
		return nil, unavailable("parked", err)
	}
	return all, nil
}

// toldOf gives those of parked messages their states of which the trail told, after a
// rollback, what became of them.
func (l *Ledger) toldOf(ctx context.Context, all []message.View) error {
	ids := make([][]byte, len(all))
	for i := range all {
		ids[i] = all[i].ID[:]
	}
	rows, err := l.pool.Query(ctx, `select u.ord, t.kind from unnest($1::bytea[]) with ordinality u(id, ord) join told t on t.id = u.id`, ids)
	if err != nil {
		return err
	}
	var ord int64
	var kind int16
	_, err = pgx.ForEachRow(rows, []any{&ord, &kind}, func() error {
		v := &all[ord-1]
		switch message.StepKind(kind) {
		case message.StepKind(message.Sent):
			v.State = message.StateSent
		case message.StepKind(message.Rejected):
			v.State = message.StateFailed
		case message.StepCanceled:
			v.State = message.StateCanceled
		default: // claimed, or its answer was lost
			v.State = message.StateInDoubt
		}
		return nil
	})
	return err
}

// parkedNames are the first bytes of what calls' ids were when they were parked.
func parkedNames(calls []*acceptCall) [][]byte {
	names := make([][]byte, len(calls))
	for i, c := range calls {
		id := c.s.ID()
		if c.entry.held {
			id = c.entry.id
		}
		names[i] = id[:24]
	}
	return names
}

// enterKept enters what a journal kept.
func (l *Ledger) enterKept(ctx context.Context, calls []*acceptCall) (fresh []entered, err error) {
	var were bool
	if err := l.pool.QueryRow(ctx, `select exists (select from parked where submission = any ($1))`, parkedNames(calls)).Scan(&were); err != nil {
		return nil, err
	}
	if !were {
		return l.enterRows(ctx, l.pool, calls)
	}
	err = pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		fresh, err = l.enterParked(ctx, tx, calls)
		return err
	})
	return fresh, err
}

// enterParked enters what may have been parked before. Those of its messages that were
// canceled then are so now, and nobody cancels any between.
func (l *Ledger) enterParked(ctx context.Context, tx querier, calls []*acceptCall) ([]entered, error) {
	worker, err := l.processID(ctx)
	if err != nil {
		return nil, err
	}
	names := parkedNames(calls)
	rows, err := tx.Query(ctx, `select submission, canceled from parked where submission = any ($1) order by submission for update`, names)
	if err != nil {
		return nil, err
	}
	canceled := make(map[string]int64)
	var name []byte
	var bits int64
	if _, err := pgx.ForEachRow(rows, []any{&name, &bits}, func() error {
		canceled[string(name)] = bits
		return nil
	}); err != nil {
		return nil, err
	}
	of := make(map[*acceptCall]int64)
	for i, c := range calls {
		of[c] = canceled[string(names[i])]
	}
	fresh, err := l.enterRows(ctx, tx, calls)
	for _, e := range fresh {
		for i := range e.call.s.Recipients {
			if err == nil && of[e.call]>>i&1 == 1 {
				_, err = tx.Exec(ctx, `select cancel_message($1, $2)`, int64(message.PositionOf(e.call.s.Lane, e.receipt.Submission, i)), worker)
			}
		}
	}
	return fresh, err
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
	if f.Stream != "" || f.To != "" || f.Tag != "" {
		return page, nil // that isn't known of them
	}
	all, err := l.parked(ctx, prefix)
	for i := len(all) - 1; i >= 0 && len(page.Items) < f.Limit; i-- {
		v := all[i]
		if (f.Tenant == 0 || v.Tenant == f.Tenant) && (f.State == "" || v.State == f.State) && !v.AcceptedAt.Before(f.Since) &&
			(f.Class == 0 || v.Lane.Class == f.Class) && (f.Channel == 0 || v.Lane.Channel == f.Channel) {
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
