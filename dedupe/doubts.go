package dedupe

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// decideBatch is how many doubts one transaction decides.
	decideBatch = 500
	// decideBudget is after how long deciding by filter answers with what it has.
	decideBudget = 5 * time.Second
	// doubtSample is how many of a filter's doubts are shown.
	doubtSample = 10
)

// doubtsWhere is the open doubts that a filter, its arguments $1 to $5, finds.
const doubtsWhere = `
	from doubt d left join outcome o on o.n = d.n and o.no = d.no
	where (o.kind is null or o.kind = 4) and not exists (select from decision e where e.n = d.n and e.no = d.no)
	  and ($1::smallint = 0 or d.n >> 57 = $1) and ($2::text = '' or o.provider = $2)
	  and ($3::int = 0 or exists (select from message m where m.n = d.n and m.tenant = $3))
	  and ($4::timestamptz is null or d.since >= $4) and ($5::timestamptz is null or d.since < $5)`

func doubtsArgs(f message.DoubtFilter) []any {
	args := []any{int16(f.Lane.Code()), f.Provider, f.Tenant, nil, nil}
	if !f.Since.IsZero() {
		args[3] = f.Since
	}
	if !f.Until.IsZero() {
		args[4] = f.Until
	}
	return args
}

// CountDoubts implements httpapi.Ledger.
func (l *Ledger) CountDoubts(ctx context.Context, f message.DoubtFilter) (*message.DoubtCount, error) {
	if err := l.stands("count doubts"); err != nil {
		return nil, err
	}
	done, err := l.read(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	c := &message.DoubtCount{Lanes: make(map[message.Lane]int64), Causes: make(map[string]int64)}
	rows, err := l.pool.Query(ctx, `select d.n >> 57, d.cause, count(*)`+doubtsWhere+` group by 1, 2`, doubtsArgs(f)...)
	if err != nil {
		return nil, unavailable("count doubts", err)
	}
	var lane, n int64
	var cause string
	if _, err := pgx.ForEachRow(rows, []any{&lane, &cause, &n}, func() error {
		c.Matched += n
		c.Lanes[message.LaneOf(lane)] += n
		c.Causes[cause] += n
		return nil
	}); err != nil {
		return nil, unavailable("count doubts", err)
	}
	rows, err = l.pool.Query(ctx, `select d.n, d.no, d.cause, d.since, coalesce(o.provider, '')`+doubtsWhere+` order by d.since, d.n limit $6`,
		append(doubtsArgs(f), doubtSample)...)
	if err != nil {
		return nil, unavailable("count doubts", err)
	}
	if c.Sample, err = l.collectDoubts(ctx, rows); err != nil {
		return nil, err
	}
	return c, nil
}

// DecideMany implements httpapi.Ledger. What becomes a doubt meanwhile is left
// for the next time: nobody has looked at it.
func (l *Ledger) DecideMany(ctx context.Context, f message.DoubtFilter, d message.Decision, by, reason string) (decided int64, more bool, err error) {
	until := time.Now().Add(decideBudget)
	ctx, cancel := context.WithTimeout(ctx, decideBudget+l.cfg.Deadline)
	defer cancel()
	var now time.Time
	if err := l.pool.QueryRow(ctx, `select clock_timestamp()`).Scan(&now); err != nil {
		return 0, true, unavailable("decide", err)
	}
	if f.Until.IsZero() || f.Until.After(now) {
		f.Until = now
	}
	for {
		var looked, settled int64
		// One transaction, in which decide_doubt judges each as if it were alone.
		err := l.pool.QueryRow(ctx, `
			select count(*), count(*) filter (where decide_doubt(x.n, $6, $7, $8))
			from (select d.n`+doubtsWhere+` order by d.since, d.n limit $9) x`,
			append(doubtsArgs(f), string(d), by, bounded(reason, 2000), decideBatch)...).Scan(&looked, &settled)
		if err != nil && blameFor(err) == blameRace && time.Now().Before(until) {
			continue
		}
		if err != nil {
			return decided, true, unavailable("decide", err)
		}
		decided += settled
		switch {
		case looked < decideBatch || settled == 0:
			return decided, false, nil
		case time.Now().After(until):
			return decided, true, nil
		}
	}
}
