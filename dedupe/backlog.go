package dedupe

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

// Backlogs implements ingest.Backlogs. A tenant's messages are taken to be
// claimed in order: those beyond its first unclaimed one are its backlog. It is
// counted up to twice least.
func (l *Ledger) Backlogs(ctx context.Context, least int64) ([]message.Backlog, error) {
	lanes, err := l.Lanes(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]message.Backlog, len(lanes))
	for i, v := range lanes {
		all[i] = message.Backlog{Lane: v.Lane, Total: v.Depth, OutRate: v.OutRate}
		if v.Depth < least {
			continue
		}
		if all[i].Tenants, err = l.tenantBacklogs(ctx, v.Lane, 2*least); err != nil {
			return nil, unavailable("backlogs", err)
		}
	}
	return all, nil
}

func (l *Ledger) tenantBacklogs(ctx context.Context, lane message.Lane, most int64) (map[int32]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `select tenant, backlog from tenant_backlogs($1, $2)`, int16(lane.Code()), most)
	if err != nil {
		return nil, err
	}
	counts := make(map[int32]int64)
	var tenant int32
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&tenant, &n}, func() error {
		counts[tenant] = n
		return nil
	})
	return counts, err
}
