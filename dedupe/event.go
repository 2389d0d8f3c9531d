package dedupe

import (
	"context"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Tell implements httpapi.Ledger: it keeps what providers told, once, and does
// what follows from it. Events of messages that the ledger doesn't have are
// passed over.
func (l *Ledger) Tell(ctx context.Context, events []message.ProviderEvent) error {
	if len(events) == 0 {
		return nil
	}
	if err := l.stands("events"); err != nil { // it may have forgotten their messages
		return err
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
	_, err := l.pool.Exec(ctx, `
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
		select settle_event(t.n, t.kind, t.provider) from (select * from told order by n) t`,
		keys, others, ids, indexes, kinds, providers, ats, details)
	if err != nil {
		return unavailable("events", err)
	}
	return nil
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
