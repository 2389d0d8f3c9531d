package dedupe

import (
	"context"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Postpone implements delivery.Ledger. An attempt that is made at the same time
// leaves a used leave at worst, as with hold_back: the next claim or record clears it.
func (l *Ledger) Postpone(ctx context.Context, it message.Item, wait time.Duration) (aside bool, err error) {
	if err := l.stands("postpone"); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	err = l.pool.QueryRow(ctx, `
		with m as materialized (
			select m.n, least(m.expires_at, clock_timestamp() + $4::interval) as due from message m
			where m.n = $1 and m.id = $2 and m.expires_at > clock_timestamp()
				and not exists (select from attempt t where t.n = $1 and t.no = $3)
		), later as (
			update waiting w set due = m.due from m where w.n = m.n and w.no = $3 and w.due <= clock_timestamp() returning w.n
		), fresh as (
			insert into waiting (n, no, lane, due)
			select m.n, 1, m.n >> 57, m.due from m where $3 = 1 and not exists (select from waiting w where w.n = $1)
			on conflict do nothing returning n
		)
		select exists (select from later) or exists (select from fresh)`,
		int64(it.Position), it.ID[:24], int16(it.Attempt), wait).Scan(&aside)
	if err != nil {
		return false, unavailable("postpone", err)
	}
	return aside, nil
}
