package dedupe

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

// maxFeedBytes bounds the content that one feed brings: what comes behind it comes
// without, to be read when it is needed.
const maxFeedBytes = 8 << 20

// Unclaimed implements delivery.Ledger.
func (l *Ledger) Unclaimed(ctx context.Context, lane message.Lane, age time.Duration, limit int) ([]message.Item, error) {
	if err := l.stands("unclaimed"); err != nil {
		return nil, err
	}
	horizon, marks := l.horizon.position(lane, age)
	items, err := l.unclaimed(ctx, nil, age, `unclaimed($2, $3, $4)`, int16(lane.Code()), horizon, limit)
	if err != nil || age > 0 || len(items) == limit {
		return items, err
	}
	if items, err = l.beyond(ctx, items, lane, horizon, marks, limit); len(items) > 0 {
		return items, nil
	}
	return nil, err
}

const (
	beyondWindow = 4096 << 6              // positions, looked through at once
	beyondTime   = 500 * time.Millisecond // then the next call goes on
)

// mark is up to where above the horizon nothing of a lane was unclaimed. It goes
// no further than what was given out a deadline before: by then it's there.
type mark struct {
	done int64
	safe int64     // given out a deadline ago
	last int64     // given out at a time
	at   time.Time // of last
}

// beyond adds what is unclaimed above the horizon, up to limit items. It begins where an earlier one found
// nothing below; what still appears there comes once the horizon is above.
func (l *Ledger) beyond(ctx context.Context, items []message.Item, lane message.Lane, horizon int64, marks *sync.Map, limit int) ([]message.Item, error) {
	qctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	var last, at int64
	if err := l.pool.QueryRow(qctx, `select (select case when is_called then last_value else 0 end from position), (select cursor from lane where code = $1)`,
		int16(lane.Code())).Scan(&last, &at); err != nil {
		return items, unavailable("unclaimed", err)
	}
	begun, below := time.Now(), len(items)
	end := int64(message.PositionOf(lane, last, message.MaxRecipients))
	var m mark
	if was, ok := marks.Load(lane); ok {
		m = was.(mark)
	}
	if begun.Sub(m.at) >= l.cfg.Deadline {
		m.safe, m.last, m.at = m.last, end, begun
	}
	defer func() { marks.Store(lane, m) }()
	for at = max(at, horizon, m.done); at < end && len(items) < limit; {
		edge := min(end, at+beyondWindow)
		more, err := l.unclaimed(ctx, items, 0, `beyond($2, $3, $4)`, at, edge, limit-len(items))
		if err != nil {
			return items, err
		}
		items, at = more, edge
		done := at
		if len(items) > below {
			done = int64(items[below].Position) - 1
		}
		m.done = max(m.done, min(done, m.safe))
		if time.Since(begun) > beyondTime {
			break
		}
	}
	return items, nil
}

// unclaimed adds what a function finds to items, with tenant and content.
func (l *Ledger) unclaimed(ctx context.Context, items []message.Item, age time.Duration, function string, args ...any) ([]message.Item, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
		with u as materialized (select * from `+function+`)
		select u.n, 1, u.id, c.body, coalesce(u.trace, ''), m.tenant, '', 0::smallint, ''
		from u cross join lateral (select tenant from message m where m.n = u.n offset 0) m
		left join lateral (select body from content c where c.n = u.n & ~63::bigint offset 0) c on true
		where u.accepted_at <= clock_timestamp() - $1::interval or u.accepted_at > clock_timestamp() -- the clock went back
		order by u.n`, append([]any{age}, args...)...)
	if err != nil {
		return nil, unavailable("unclaimed", err)
	}
	return collectItems("unclaimed", rows, items)
}

// Due implements delivery.Ledger.
func (l *Ledger) Due(ctx context.Context, lane message.Lane, limit int) ([]message.Item, error) {
	if err := l.stands("due"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
		with w as materialized (select n, no, due from waiting where lane = $1 and due <= clock_timestamp() order by due limit $2)
		select w.n, w.no, m.id, c.body, coalesce(m.trace, ''), m.tenant, coalesce(o.provider, ''), coalesce(o.kind, 0::smallint), coalesce(d.by, '')
		from w
		cross join lateral (select id, trace, tenant from message m where m.n = w.n offset 0) m
		left join lateral (select body from content c where c.n = w.n & ~63::bigint offset 0) c on true
		`+joinBefore("w")+`
		order by w.due`, int16(lane.Code()), limit)
	if err != nil {
		return nil, unavailable("due", err)
	}
	return collectItems("due", rows, nil)
}

// joinBefore is the outcome o before the attempt that from names, and the last
// decision d before it.
func joinBefore(from string) string {
	return strings.ReplaceAll(`left join lateral (select o.provider, o.kind from outcome o where f.no > 1 and o.n = f.n and o.no = f.no - 1 offset 0) o on true
		left join lateral (select d.by from decision d where f.no > 1 and d.n = f.n and d.no < f.no order by d.no desc limit 1) d on true`, "f.", from+".")
}

// collectItems adds rows to items, with no more content than maxFeedBytes in all.
func collectItems(op string, rows pgx.Rows, items []message.Item) ([]message.Item, error) {
	defer rows.Close()
	size := 0
	for i := range items {
		size += len(items[i].Content)
	}
	for rows.Next() {
		var n int64
		var no int16
		var id []byte
		var kind int16
		var it message.Item
		if err := rows.Scan(&n, &no, &id, &it.Content, &it.Trace, &it.Tenant, &it.Before.Provider, &kind, &it.Before.Basis); err != nil {
			return nil, unavailable(op, err)
		}
		if size += len(it.Content); size > maxFeedBytes {
			it.Content = nil
		}
		it.Position, it.Attempt, it.Before.Outcome = message.Position(n), int(no), message.Outcome(kind)
		copy(it.ID[:24], id)
		it.ID = it.ID.Message(it.Position.Index())
		items = append(items, it)
	}
	if err := rows.Err(); err != nil {
		return nil, unavailable(op, err)
	}
	return items, nil
}

// Content implements delivery.Ledger.
func (l *Ledger) Content(ctx context.Context, p message.Position) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	var body []byte
	err := l.pool.QueryRow(ctx, `select body from content where n = $1`, int64(p.Content())).Scan(&body)
	switch {
	case noRows(err):
		return nil, message.ErrNotFound
	case err != nil:
		return nil, unavailable("content", err)
	}
	return body, nil
}
