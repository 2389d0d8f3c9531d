package dedupe

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// evacuationLock is the advisory lock of the one evacuation that may run.
	evacuationLock = 0x73706f7374_0012
	// mostLeft bounds the count of a backlog.
	mostLeft = 10_000_000
	// sightingsKept is how long what a process saw is kept.
	sightingsKept = time.Hour
)

const placementColumns = `lane, cluster, at, by, automatic, mark, coalesce(rate, 0)`

func scanPlacement(row pgx.CollectableRow) (p message.Placement, err error) {
	var lane int16
	err = row.Scan(&lane, &p.Cluster, &p.At, &p.By, &p.Automatic, &p.Mark, &p.Rate)
	p.Lane = message.LaneOf(int64(lane))
	return p, err
}

// Placements is where the lanes are that were ever moved.
func (l *Ledger) Placements(ctx context.Context) (map[message.Lane]message.Placement, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	// A rate is the backlog's: it ends with that, whether or not anybody has seen it end.
	rows, err := l.pool.Query(ctx, `
		select `+placementColumns+` from (
			select p.lane, p.cluster, p.at, p.by, p.automatic, p.mark, case when l.cursor < p.mark then p.rate end as rate
			from placement p join lane l on l.code = p.lane) x`)
	if err != nil {
		return nil, unavailable("placements", err)
	}
	list, err := pgx.CollectRows(rows, scanPlacement)
	if err != nil {
		return nil, unavailable("placements", err)
	}
	all := make(map[message.Lane]message.Placement, len(list))
	for _, p := range list {
		all[p.Lane] = p
	}
	return all, nil
}

// OpenEvacuation is the last evacuation if it has not ended, else nil. It need
// not be under way.
func (l *Ledger) OpenEvacuation(ctx context.Context) (*message.Evacuation, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	var e message.Evacuation
	err := l.pool.QueryRow(ctx, `select id, cluster, by, at from evacuation where ended_at is null order by id desc limit 1`).Scan(&e.ID, &e.Cluster, &e.By, &e.At)
	if noRows(err) {
		return nil, nil
	}
	if err != nil {
		return nil, unavailable("evacuation", err)
	}
	return &e, nil
}

// BeginEvacuation begins one to a cluster, or goes on with the open one to it.
// Open ones to others have ended with it. While done has not been called, and this
// process lives, another one fails with message.ErrEvacuating.
func (l *Ledger) BeginEvacuation(ctx context.Context, cluster, by string) (e message.Evacuation, done func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return e, nil, unavailable("evacuate", err)
	}
	done = func() { l.unlock(conn) }
	var locked bool
	if err = conn.QueryRow(ctx, `select pg_try_advisory_lock($1)`, int64(evacuationLock)).Scan(&locked); err != nil {
		done()
		return e, nil, unavailable("evacuate", err)
	}
	if !locked {
		done()
		if open, _ := l.OpenEvacuation(ctx); open != nil {
			return e, nil, fmt.Errorf("%w: to %s, since %s, by %s", message.ErrEvacuating, open.Cluster, open.At.UTC().Format(time.RFC3339), open.By)
		}
		return e, nil, message.ErrEvacuating
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `update evacuation set ended_at = clock_timestamp() where ended_at is null and cluster <> $1`, cluster); err != nil {
			return err
		}
		const open = `select id, cluster, by, at from evacuation where ended_at is null order by id desc limit 1`
		err := tx.QueryRow(ctx, open).Scan(&e.ID, &e.Cluster, &e.By, &e.At)
		if noRows(err) {
			err = tx.QueryRow(ctx, `insert into evacuation (cluster, by) values ($1, $2) returning id, cluster, by, at`, cluster, by).Scan(&e.ID, &e.Cluster, &e.By, &e.At)
		}
		return err
	})
	if err != nil {
		done()
		return e, nil, unavailable("evacuate", err)
	}
	return e, done, nil
}

var errOverrun = errors.New("another evacuation has begun since")

// MoveLane puts a lane onto the evacuation's cluster, from now on for everyone
// who looks. Once another evacuation has begun it fails.
func (l *Ledger) MoveLane(ctx context.Context, e message.Evacuation, p message.Placement) (message.Placement, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	var last int64
	if err := l.pool.QueryRow(ctx, `select case when is_called then last_value else 0 end from position`).Scan(&last); err != nil {
		return p, unavailable("move "+p.Lane.String(), err)
	}
	rows, err := l.pool.Query(ctx, `
		insert into placement (lane, cluster, by, automatic, mark, rate)
		select $1, e.cluster, $3, $4, $5, nullif($6::int, 0) from evacuation e where e.id = $2 and e.ended_at is null
		on conflict (lane) do update set cluster = excluded.cluster, at = clock_timestamp(), by = excluded.by,
			automatic = excluded.automatic, mark = excluded.mark, rate = excluded.rate
		returning `+placementColumns,
		int16(p.Lane.Code()), e.ID, p.By, p.Automatic, int64(message.PositionOf(p.Lane, last, 63)), p.Rate)
	if err != nil {
		return p, unavailable("move "+p.Lane.String(), err)
	}
	moved, err := pgx.CollectExactlyOneRow(rows, scanPlacement)
	switch {
	case noRows(err):
		return p, fmt.Errorf("move %s: %w", p.Lane, errOverrun)
	case err != nil:
		return p, unavailable("move "+p.Lane.String(), err)
	}
	return moved, nil
}

// EndEvacuation ends it, and the bounds of its lanes' rates.
func (l *Ledger) EndEvacuation(ctx context.Context, e message.Evacuation) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	if _, err := l.pool.Exec(ctx, `
		with ended as (update evacuation set ended_at = clock_timestamp() where id = $1 and ended_at is null returning cluster)
		update placement p set rate = null from ended where p.cluster = ended.cluster and p.rate is not null`, e.ID); err != nil {
		return unavailable("end the evacuation", err)
	}
	return nil
}

// LaneLeft counts what of a lane up to mark nobody has claimed yet; with a mark of
// 0, all of it.
func (l *Ledger) LaneLeft(ctx context.Context, lane message.Lane, mark message.Position) (n int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	if mark == 0 {
		mark = message.PositionOf(lane, message.MaxSubmission, 63)
	}
	if err := l.pool.QueryRow(ctx, `select lane_left($1, $2, $3)`, int16(lane.Code()), int64(mark), mostLeft).Scan(&n); err != nil {
		return 0, unavailable("backlog of "+lane.String(), err)
	}
	return n, nil
}

// Known says of each item whether the ledger has the message, or had it until
// retention dropped it: one of that id, at that position, unless a reconciliation
// had to put it elsewhere.
func (l *Ledger) Known(ctx context.Context, items []message.Item) ([]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	ns, ids := make([]int64, len(items)), make([][]byte, len(items))
	keys := make([][16]byte, len(items))
	for i, it := range items {
		ns[i], ids[i], keys[i] = int64(it.Position), it.ID[:24], it.ID.KeyHash()
	}
	rows, err := l.pool.Query(ctx, `
		select exists (select from message m where m.n = x.n and m.id = x.id)
			or exists (select from lane l where l.code = x.n >> 57 and x.n <= l.floor)
			or exists (select from identity i where i.key = x.key and substr(i.print, 1, 8) = substr(x.id, 17))
		from unnest($1::bigint[], $2::bytea[], $3::uuid[]) with ordinality x(n, id, key, ord) order by x.ord`, ns, ids, keys)
	if err != nil {
		return nil, unavailable("known", err)
	}
	known, err := pgx.CollectRows(rows, pgx.RowTo[bool])
	if err != nil {
		return nil, unavailable("known", err)
	}
	return known, nil
}

// Sight tells everyone how this process sees the clusters.
func (l *Ledger) Sight(ctx context.Context, away map[string]bool) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	var names []string
	var values []bool
	for name, is := range away {
		names, values = append(names, name), append(values, is)
	}
	if _, err := l.pool.Exec(ctx, `
		with old as (delete from sighting where at < clock_timestamp() - $4::interval)
		insert into sighting (process, cluster, away) select $1, * from unnest($2::text[], $3::boolean[])
		on conflict (process, cluster) do update set away = excluded.away, at = clock_timestamp()`,
		l.cfg.Name, names, values, sightingsKept); err != nil {
		return unavailable("sight", err)
	}
	return nil
}

// Sightings is how each cluster is seen by all processes that told within age.
func (l *Ledger) Sightings(ctx context.Context, age time.Duration) (map[string]message.ClusterSeen, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
		select cluster, count(*) filter (where not away), count(*) filter (where away)
		from sighting where at > clock_timestamp() - $1::interval group by cluster`, age)
	if err != nil {
		return nil, unavailable("sightings", err)
	}
	all := make(map[string]message.ClusterSeen)
	var name string
	var s message.ClusterSeen
	if _, err := pgx.ForEachRow(rows, []any{&name, &s.Well, &s.Away}, func() error { all[name] = s; return nil }); err != nil {
		return nil, unavailable("sightings", err)
	}
	return all, nil
}
