package dedupe

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Unsafe lists the server's settings, as this process's connections have them,
// with which a commit may be lost by a crash.
func (l *Ledger) Unsafe(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
		select s || ' is off' from unnest('{fsync,full_page_writes,synchronous_commit}'::text[]) s where current_setting(s) = 'off'`)
	if err != nil {
		return nil, unavailable("settings", err)
	}
	off, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	return off, nil
}
