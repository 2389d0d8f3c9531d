package dedupe

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/plant"
)

// slack is by how much a heartbeat's list may be older than its time.
const slack = 30 * time.Second

// sweep makes doubts of attempts that nobody will end any more.
func (l *Ledger) sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	resend, policies := []int16{}, []string{}
	for lane, policy := range l.cfg.Resend {
		resend, policies = append(resend, int16(lane.Code())), append(policies, policy)
	}
	if plant.Is(plant.ResendSilent) {
		for _, lane := range message.Lanes() {
			resend, policies = append(resend, int16(lane.Code())), append(policies, "policy:planted")
		}
	}
	var fresh int
	if err := l.pool.QueryRow(ctx, `select sweep_doubts($1, $2, $3, $4)`, l.gone(), slack, resend, policies).Scan(&fresh); err != nil {
		return unavailable("sweep", err)
	}
	if fresh > 0 {
		l.log.WarnContext(ctx, "attempts are in doubt: their workers are gone", "count", fresh)
	}
	return l.settleEvents(ctx)
}

// Doubts implements httpapi.Ledger. A cursor is the last doubt's time and
// position.
func (l *Ledger) Doubts(ctx context.Context, cursor string, limit int) (message.Page[message.Doubt], error) {
	var page message.Page[message.Doubt]
	if err := l.stands("doubts"); err != nil {
		return page, err
	}
	since, n := time.Unix(0, 0), int64(0)
	if cursor != "" {
		us, pos, ok := strings.Cut(cursor, "-")
		u, err1 := strconv.ParseInt(us, 10, 64)
		p, err2 := strconv.ParseInt(pos, 10, 64)
		if !ok || err1 != nil || err2 != nil {
			return page, message.FieldErrors{{Field: "cursor", Problem: "is not one of ours"}}
		}
		since, n = time.UnixMicro(u), p
	}
	done, err := l.read(ctx)
	if err != nil {
		return page, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
		select d.n, d.no, d.cause, d.since, coalesce(o.provider, '')
		from doubt d left join outcome o on o.n = d.n and o.no = d.no
		where (d.since, d.n) > ($1, $2) and (o.kind is null or o.kind = 4)
		order by d.since, d.n limit $3`, since, n, limit+1)
	if err != nil {
		return page, unavailable("doubts", err)
	}
	if page.Items, err = l.collectDoubts(ctx, rows); err != nil {
		return page, err
	}
	if len(page.Items) > limit {
		page.Items = page.Items[:limit]
		last := page.Items[limit-1]
		page.Next = fmt.Sprintf("%d-%d", last.Since.UnixMicro(), int64(last.Position))
	}
	return page, nil
}

// Silent implements recovery.Doubtful.
func (l *Ledger) Silent(ctx context.Context, after time.Time, limit int) ([]message.Doubt, error) {
	if err := l.stands("doubts"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
		select d.n, d.no, d.cause, d.since, ''
		from doubt d
		where d.since > $1 and d.cause = 'silent' and not exists (select from outcome o where o.n = d.n and o.no = d.no)
		order by d.since, d.n limit $2`, after, limit)
	if err != nil {
		return nil, unavailable("doubts", err)
	}
	return l.collectDoubts(ctx, rows)
}

// collectDoubts reads doubts with their messages.
func (l *Ledger) collectDoubts(ctx context.Context, rows pgx.Rows) ([]message.Doubt, error) {
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d message.Doubt, err error) {
		var n int64
		var no int16
		err = row.Scan(&n, &no, &d.Cause, &d.Since, &d.Provider)
		d.Position, d.Attempt = message.Position(n), int(no)
		return d, err
	})
	if err != nil {
		return nil, unavailable("doubts", err)
	}
	ns := make([]int64, len(all))
	for i, d := range all {
		ns[i] = int64(d.Position)
	}
	views, err := l.views(ctx, ns)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if v, ok := views[all[i].Position]; ok {
			all[i].View = *v
		}
	}
	return all, nil
}

// mostDoubts bounds the count of open doubts.
const mostDoubts = 10_000

// OpenDoubts counts the doubts that nobody has decided.
func (l *Ledger) OpenDoubts(ctx context.Context) (message.DoubtsOpen, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	var d message.DoubtsOpen
	var oldest float64
	if err := l.pool.QueryRow(ctx, `
		select count(*), coalesce(extract(epoch from clock_timestamp() - min(since)), 0)::float8 from (
			select d.since from doubt d left join outcome o on o.n = d.n and o.no = d.no
			where o.kind is null or o.kind = 4 order by d.since limit $1) x`, mostDoubts).Scan(&d.Count, &oldest); err != nil {
		return d, unavailable("open doubts", err)
	}
	d.Oldest = time.Duration(max(0, oldest) * float64(time.Second))
	return d, nil
}

// Decide implements httpapi.Ledger.
func (l *Ledger) Decide(ctx context.Context, id message.ID, attempt int, d message.Decision, by, reason string) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	n, err := l.find(ctx, id)
	if err != nil {
		return err
	}
	var settled bool
	if err := l.pool.QueryRow(ctx, `select decide_doubt($1, $2, $3, $4, $5)`, int64(n), string(d), by, bounded(reason, 2000), attempt).Scan(&settled); err != nil {
		return unavailable("decide", err)
	}
	if settled {
		return nil
	}
	var decided bool
	var other int
	if err := l.pool.QueryRow(ctx, `
		select exists (select from decision where n = $1 and $2::int in (0, no)) or exists (select from outcome where n = $1 and $2::int in (0, no) and kind = 4),
			coalesce((select max(no) from doubt where n = $1 and $2::int not in (0, no)), 0)`, int64(n), attempt).Scan(&decided, &other); err != nil {
		return unavailable("decide", err)
	}
	switch {
	case decided:
		return fmt.Errorf("decide: %w", message.ErrDecided)
	case other > 0:
		return message.FieldErrors{{Field: "attempt", Problem: fmt.Sprintf("is not in doubt: attempt %d is", other)}}
	}
	return fmt.Errorf("decide: no doubt about it: %w", message.ErrNotFound)
}
