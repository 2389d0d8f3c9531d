package dedupe

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

const suppressionColumns = `s.id, s.tenant, s.channel, s.recipient, s.reason, coalesce(s.provider, ''), s.at, coalesce(s.cleared_by, ''), s.cleared_at`

func scanSuppression(row pgx.CollectableRow) (s message.Suppression, err error) {
	var channel int16
	var cleared *time.Time
	err = row.Scan(&s.ID, &s.Tenant, &channel, &s.Recipient, &s.Reason, &s.Provider, &s.At, &s.ClearedBy, &cleared)
	s.Channel = message.Channel(channel)
	if cleared != nil {
		s.ClearedAt = *cleared
	}
	return s, err
}

// Suppressions implements httpapi.Ledger.
func (l *Ledger) Suppressions(ctx context.Context, f message.SuppressionFilter) (message.Page[message.Suppression], error) {
	var page message.Page[message.Suppression]
	below := int64(1)<<62 - 1
	if f.Cursor != "" {
		var err error
		if below, err = strconv.ParseInt(f.Cursor, 36, 64); err != nil || below < 0 {
			return page, message.FieldErrors{{Field: "cursor", Problem: "is not one of ours"}}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
		select `+suppressionColumns+` from suppression s
		where s.cleared_at is null and s.id < $1 and ($2 = 0 or s.tenant = $2) and ($3 = 0 or s.channel = $3) and ($4 = '' or s.recipient = suppression_recipient(s.channel, $4))
		order by s.id desc limit $5`, below, f.Tenant, int16(f.Channel), f.Recipient, f.Limit+1)
	if err != nil {
		return page, unavailable("suppressions", err)
	}
	if page.Items, err = pgx.CollectRows(rows, scanSuppression); err != nil {
		return page, unavailable("suppressions", err)
	}
	if len(page.Items) > f.Limit {
		page.Items = page.Items[:f.Limit]
		page.Next = strconv.FormatInt(page.Items[f.Limit-1].ID, 36)
	}
	return page, nil
}

// ClearSuppression implements httpapi.Ledger.
func (l *Ledger) ClearSuppression(ctx context.Context, tenant int32, id int64, by string) (message.Suppression, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
		update suppression s set cleared_at = clock_timestamp(), cleared_by = $3, changed_by = pg_current_xact_id()
		where s.id = $1 and ($2 = 0 or s.tenant = $2) and s.cleared_at is null returning `+suppressionColumns, id, tenant, by)
	if err != nil {
		return message.Suppression{}, unavailable("clear suppression", err)
	}
	s, err := pgx.CollectExactlyOneRow(rows, scanSuppression)
	switch {
	case noRows(err):
		return s, fmt.Errorf("clear suppression: %w", message.ErrNotFound)
	case err != nil:
		return s, unavailable("clear suppression", err)
	}
	return s, nil
}

// SuppressionChanges implements ingest.SuppressionSource. A transaction's rows
// are found whenever it commits: next is the oldest that may still run.
func (l *Ledger) SuppressionChanges(ctx context.Context, since uint64, each func(message.SuppressionChange)) (next uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, suppressionLimit)
	defer cancel()
	// Before the rows: what commits in between is read again.
	if err := l.pool.QueryRow(ctx, `select pg_snapshot_xmin(pg_current_snapshot())::text::bigint`).Scan(&next); err != nil {
		return since, unavailable("suppressions", err)
	}
	rows, err := l.pool.Query(ctx, `select digest, cleared_at is null from suppression where changed_by >= $1::text::xid8 order by changed_by`, strconv.FormatUint(since, 10))
	if err != nil {
		return since, unavailable("suppressions", err)
	}
	var digest []byte
	var active bool
	if _, err = pgx.ForEachRow(rows, []any{&digest, &active}, func() error {
		each(message.SuppressionChange{Digest: [16]byte(digest), Active: active})
		return nil
	}); err != nil {
		return since, unavailable("suppressions", err)
	}
	return next - min(next, crashed), nil
}

// crashed is how many transaction ids may be given out a second time after a crash.
const crashed = 1000

// suppressionLimit is for the first reading, which takes all of them.
const suppressionLimit = time.Minute
