package dedupe

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// fairQuantum is how many items of each kind one tenant gets a round.
	fairQuantum = 8
	// fairTenants is how many tenants one round looks at; the next goes on from
	// there. Each costs some 50 µs when it has nothing to go.
	fairTenants = 200
	// tenantsFresh is how old the list of tenants may be.
	tenantsFresh = time.Second
)

// fairState is how far a lane's round has come. It holds 16 bytes a tenant.
type fairState struct {
	mu      sync.Mutex
	tenants []int32 // ascending
	at      time.Time
	next    int             // index of the tenant that comes next
	marks   map[int32]int64 // up to where nothing of the tenant's is unclaimed
}

// Fair implements delivery.Ledger.
func (l *Ledger) Fair(ctx context.Context, lane message.Lane, limit int) ([]message.Item, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	f := &l.fair[lane.Code()]
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := l.freshTenants(ctx, f); err != nil {
		return nil, unavailable("fair", err)
	}
	if len(f.tenants) < 2 { // nobody to be fair to
		return nil, nil
	}
	round := min(len(f.tenants), fairTenants)
	ids, marks := make([]int32, round), make([]int64, round)
	for i := range ids {
		ids[i] = f.tenants[(f.next+i)%len(f.tenants)]
		marks[i] = f.marks[ids[i]]
	}
	horizon, _ := l.horizon.position(lane, 0)
	rows, err := l.pool.Query(ctx, `
		with f as materialized (select * from fair($1, $2, $3, $4, $5)),
		p as materialized (select f.tenant, f.rank, f.n, f.no from f where f.n is not null order by f.rank, array_position($3, f.tenant) limit $6)
		select f.tenant, f.mark, 0, 0::smallint, ''::bytea, null, '', '', 0::smallint, '' from f where f.n is null
		union all (
		select p.tenant, 0, p.n, p.no, m.id, c.body, coalesce(m.trace, ''), coalesce(o.provider, ''), coalesce(o.kind, 0::smallint), coalesce(d.by, '')
		from p
		cross join lateral (select id, trace from message m where m.n = p.n offset 0) m
		left join lateral (select body from content c where c.n = p.n & ~63::bigint offset 0) c on true
		`+joinBefore("p")+`
		order by p.rank, array_position($3, p.tenant))`,
		int16(lane.Code()), horizon, ids, marks, fairQuantum, limit)
	if err != nil {
		return nil, unavailable("fair", err)
	}
	items, looked, busy, err := f.collect(rows)
	if err != nil {
		return nil, unavailable("fair", err)
	}
	f.next = (f.next + looked) % len(f.tenants)
	if busy < 2 && looked == len(f.tenants) { // one tenant alone: Kafka brings it
		return nil, nil
	}
	return items, nil
}

// collect takes at most maxFeedBytes of content, and all marks. looked and busy
// are how many tenants were looked at, and how many of those have items.
func (f *fairState) collect(rows pgx.Rows) (items []message.Item, looked, busy int, err error) {
	defer rows.Close()
	seen := make(map[int32]struct{})
	size := 0
	for rows.Next() {
		var tenant int32
		var mark, n int64
		var no, kind int16
		var id []byte
		var it message.Item
		if err := rows.Scan(&tenant, &mark, &n, &no, &id, &it.Content, &it.Trace, &it.Before.Provider, &kind, &it.Before.Basis); err != nil {
			return nil, 0, 0, err
		}
		if n == 0 {
			f.marks[tenant] = mark
			looked++
			continue
		}
		seen[tenant] = struct{}{}
		if size += len(it.Content); size > maxFeedBytes && len(items) > 0 {
			continue
		}
		it.Position, it.Attempt, it.Tenant, it.Before.Outcome = message.Position(n), int(no), tenant, message.Outcome(kind)
		copy(it.ID[:24], id)
		it.ID = it.ID.Message(it.Position.Index())
		items = append(items, it)
	}
	return items, looked, len(seen), rows.Err()
}

// freshTenants reads the list of tenants again when it is old.
func (l *Ledger) freshTenants(ctx context.Context, f *fairState) error {
	if time.Since(f.at) < tenantsFresh {
		return nil
	}
	rows, err := l.pool.Query(ctx, `select id from tenant order by id`)
	if err != nil {
		return err
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return err
	}
	if f.marks == nil {
		f.marks = make(map[int32]int64)
	}
	f.tenants, f.at = all, time.Now()
	f.next %= max(1, len(all))
	return nil
}
