package dedupe

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

// Tell implements httpapi.Ledger: it keeps what providers told, once, and does
// what follows from it. Events of messages that the ledger doesn't have are
// passed over.
func (l *Ledger) Tell(ctx context.Context, events []message.ProviderEvent) error {
	_, err := l.TellOf(ctx, events)
	return err
}

// TellOf is Tell, and says which messages' states have changed by it.
func (l *Ledger) TellOf(ctx context.Context, events []message.ProviderEvent) (changed []message.Position, err error) {
	if len(events) == 0 {
		return nil, nil
	}
	if err := l.stands("events"); err != nil { // it may have forgotten their messages
		return nil, err
	}
	var (
		keys, others     [][16]byte // a submission that came second is under its other key
		ids              [][]byte
		indexes          []int16
		kinds, providers []string
		ats              []time.Time
		details          []string
	)
	for i := range events {
		e := &events[i]
		keys, others = append(keys, e.ID.KeyHash()), append(others, message.ConflictKey(e.ID))
		ids, indexes = append(ids, e.ID[:24]), append(indexes, int16(e.ID.Index()))
		kinds, providers = append(kinds, string(e.Kind)), append(providers, e.Provider)
		ats, details = append(ats, e.At), append(details, e.Detail)
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
		with told as (
			insert into event (n, kind, provider, at, detail)
			select m.n, u.kind, u.provider, u.at, u.detail
			from unnest($1::uuid[], $2::uuid[], $3::bytea[], $4::smallint[], $5::text[], $6::text[], $7::timestamptz[], $8::text[])
				as u(key, other, id, index, kind, provider, at, detail)
			join identity i on i.key in (u.key, u.other)
			join message m on m.n = (i.lane::bigint << 57) | (i.submission << 6) | u.index and m.id = u.id
			order by 1, 2, 3, 4
			on conflict (n, kind, provider, at) do nothing
			returning n, kind, provider
		)
		select t.n, settle_event(t.n, t.kind, t.provider) from (select * from told order by n) t`,
		keys, others, ids, indexes, kinds, providers, ats, details)
	if err != nil {
		return nil, unavailable("events", err)
	}
	var n int64
	var settled bool
	if _, err := pgx.ForEachRow(rows, []any{&n, &settled}, func() error {
		if settled {
			changed = append(changed, message.Position(n))
		}
		return nil
	}); err != nil {
		return nil, unavailable("events", err)
	}
	return changed, nil
}

// StoodIn is the attempts of messages that were made in nobody's name (stands_in): no
// worker tells of them.
func (l *Ledger) StoodIn(ctx context.Context, of ...message.Position) ([]message.Step, error) {
	if len(of) == 0 {
		return nil, nil
	}
	ns := make([]int64, len(of))
	for i, p := range of {
		ns[i] = int64(p)
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
		select a.n, m.id, a.no, o.kind, o.at, coalesce(o.provider, ''), coalesce(o.code, '')
		from attempt a join outcome o on o.n = a.n and o.no = a.no join message m on m.n = a.n
		where a.n = any ($1) and a.kind = 1 and a.worker = 0 and a.token = 0 and a.note like 'not handed over: %' order by a.n, a.no`, ns)
	if err != nil {
		return nil, unavailable("attempts", err)
	}
	steps, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s message.Step, err error) {
		var n int64
		var id []byte
		var no, kind int16
		err = row.Scan(&n, &id, &no, &kind, &s.At, &s.Provider, &s.Code)
		s.Position, s.Attempt, s.Kind = message.Position(n), int(no), message.StepKind(kind)
		copy(s.ID[:24], id)
		s.ID = s.ID.Message(s.Position.Index())
		return s, err
	})
	if err != nil {
		return nil, unavailable("attempts", err)
	}
	return steps, nil
}

// settleEvents decides doubts that providers told of before they were doubts.
func (l *Ledger) settleEvents(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	_, err := l.pool.Exec(ctx, `
		select settle_event(x.n, x.kind, x.provider)
		from (select distinct on (e.n) e.n, e.kind, e.provider from doubt d join event e on e.n = d.n order by e.n, e.kind limit 1000) x`)
	if err != nil {
		return unavailable("events of doubts", err)
	}
	return nil
}
