package dedupe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/stormpost/stormpost/internal/message"
)

// What a reconciliation asks of a ledger that was rolled back. Only a Ledger
// with Config.Reconciling can do it: for all others the functions refuse.

// ErrStands is returned by BeginReconcile when no rollback is open.
var ErrStands = errors.New("the ledger stands: no rollback was noticed, or it is reconciled")

// ErrReconciling is returned by BeginReconcile while another one is at it.
var ErrReconciling = errors.New("another reconciliation is under way")

// reconcileLock is the advisory lock of whoever reconciles.
const reconcileLock = 0x73746f726d0009

// jumpProcess is how far the numbers of processes are set on: those that live
// still use theirs, and no other may have them.
const jumpProcess = 1 << 16

// Reconciliation is the right to reconcile, until it is closed.
type Reconciliation struct {
	message.Rollback
	l    *Ledger
	conn *pgxpool.Conn
}

// BeginReconcile takes the right to reconcile the rollback that is open.
func (l *Ledger) BeginReconcile(ctx context.Context) (_ *Reconciliation, err error) {
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return nil, unavailable("reconcile", err)
	}
	r := &Reconciliation{l: l, conn: conn}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	var mine bool
	if err := conn.QueryRow(ctx, `select pg_try_advisory_lock($1)`, int64(reconcileLock)).Scan(&mine); err != nil {
		return nil, unavailable("reconcile", err)
	}
	if !mine {
		return nil, ErrReconciling
	}
	err = conn.QueryRow(ctx, `select at, cause, back_to from rollback where closed_at is null`).Scan(&r.At, &r.Cause, &r.BackTo)
	switch {
	case noRows(err):
		return nil, ErrStands
	case err != nil:
		return nil, unavailable("reconcile", err)
	}
	// Whoever began before the rollback was noted, and has not been refused, ends.
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `lock table message, attempt, outcome in share row exclusive mode`)
		return err
	})
	if err != nil {
		return nil, unavailable("reconcile", err)
	}
	return r, nil
}

// Close gives the right back.
func (r *Reconciliation) Close() {
	r.l.unlock(r.conn)
}

// unlock gives a connection back without the advisory locks it took. They are free
// when it returns, unless the server couldn't be asked: then once it sees that the
// connection has gone.
func (l *Ledger) unlock(conn *pgxpool.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), l.cfg.Deadline)
	defer cancel()
	if _, err := conn.Exec(ctx, `select pg_advisory_unlock_all()`); err != nil {
		_ = conn.Conn().Close(ctx)
	}
	conn.Release()
}

// Raise sets what is numbered by beyond everything that Kafka knows was given
// out: positions beyond top, each stream's counter to at least its number. It
// leaves tenants out that the ledger doesn't know.
func (r *Reconciliation) Raise(ctx context.Context, top int64, numbers map[message.StreamOf]int64) error {
	l := r.l
	var tenants []int32
	rows, err := r.conn.Query(ctx, `select id from tenant`)
	if err == nil {
		tenants, err = pgx.CollectRows(rows, pgx.RowTo[int32])
	}
	if err != nil {
		return unavailable("reconcile", err)
	}
	known := make(map[int32]bool, len(tenants))
	for _, t := range tenants {
		known[t] = true
	}
	ids, lasts := make([]int64, 0, len(numbers)), make([]int64, 0, len(numbers))
	for s, n := range numbers {
		if !known[s.Tenant] {
			continue
		}
		id, err := l.streamID(ctx, streamName{s.Tenant, s.Name})
		if err != nil {
			return unavailable("reconcile", err)
		}
		ids, lasts = append(ids, id), append(lasts, n)
	}
	err = pgx.BeginFunc(ctx, r.conn, func(tx pgx.Tx) error {
		now, err := given(ctx, tx)
		if err != nil {
			return err
		}
		if top >= now { // else it was raised before
			if _, err := tx.Exec(ctx, `select setval('position', $1)`, top+positionJump); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, `select setval(pg_get_serial_sequence('process', 'id'), (select coalesce(max(id), 0) from process) + $1)`, int64(jumpProcess)); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `update counter c set last = greatest(c.last, u.last) from unnest($1::bigint[], $2::bigint[]) u(stream, last) where c.stream = u.stream`, ids, lasts)
		return err
	})
	if err != nil {
		return unavailable("reconcile", err)
	}
	return l.growTo(ctx, top)
}

// growTo makes the partitions for every position up to where they go on.
func (l *Ledger) growTo(ctx context.Context, top int64) error {
	var from int64
	if err := l.pool.QueryRow(ctx, `select max(no) from era`).Scan(&from); err != nil {
		return unavailable("grow", err)
	}
	for w := from + 1; w <= top>>eraBits; w++ {
		if err := l.ddl(ctx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `select add_era($1)`, int32(w))
			return err
		}); err != nil {
			return unavailable("grow", err)
		}
	}
	return l.grow(ctx)
}

// Unknown is those of keys that the ledger has no submission under.
func (r *Reconciliation) Unknown(ctx context.Context, keys []message.KeyHash) (map[message.KeyHash]bool, error) {
	raw := make([][16]byte, len(keys))
	for i, k := range keys {
		raw[i] = k
	}
	rows, err := r.conn.Query(ctx, `select k from unnest($1::uuid[]) k where not exists (select from identity i where i.key = k)`, raw)
	if err != nil {
		return nil, unavailable("reconcile", err)
	}
	lost, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
	if err != nil {
		return nil, unavailable("reconcile", err)
	}
	unknown := make(map[message.KeyHash]bool, len(lost))
	for _, k := range lost {
		unknown[k] = true
	}
	return unknown, nil
}

// Reenter puts back those that the ledger doesn't know, and says of each where
// it is. Keys must differ. An error of message.ErrNotFound names a tenant that is lost.
func (r *Reconciliation) Reenter(ctx context.Context, lost []message.Lost) (map[message.KeyHash]message.Reentered, error) {
	var a acceptArrays
	var submissions, firsts []int64
	var accepteds []time.Time
	supersedes := make([][]byte, len(lost))
	for i, s := range lost {
		id, err := r.l.streamID(ctx, streamName{s.Tenant, s.Stream})
		if err != nil {
			if blameFor(err) == blameRow {
				return nil, fmt.Errorf("reconcile: tenant %d: %w: %w", s.Tenant, message.ErrNotFound, err)
			}
			return nil, unavailable("reconcile", err)
		}
		a.add(&acceptCall{s: s.Journaled.Submission, stream: id})
		submissions, firsts, accepteds = append(submissions, s.Submission), append(firsts, s.First), append(accepteds, s.AcceptedAt)
		if s.Supersede != "" {
			h := message.HashSupersede(s.Tenant, s.Test, s.Supersede)
			supersedes[i] = h[:]
		}
	}
	rows, err := r.conn.Query(ctx, `select ord, submission, fresh from reenter_batch($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18)`,
		a.keys, a.prints, submissions, a.lanes, a.tenants, a.streams, firsts, a.counts, a.bodies, a.traces, a.tests, accepteds, a.expiries, a.sendAts,
		a.owners, a.indexes, a.recipients, supersedes)
	if err != nil {
		return nil, unavailable("reconcile", err)
	}
	out := make(map[message.KeyHash]message.Reentered, len(lost))
	var ord int32
	var e message.Reentered
	if _, err := pgx.ForEachRow(rows, []any{&ord, &e.Submission, &e.Fresh}, func() error {
		out[lost[ord-1].Key] = e
		return nil
	}); err != nil {
		return nil, unavailable("reconcile", err)
	}
	return out, nil
}

// Retrace makes attempts and outcomes of what is known to have happened to
// messages that the ledger has, and says how many of them it didn't know.
// A step of a message that it doesn't have is passed over.
func (r *Reconciliation) Retrace(ctx context.Context, steps []message.Step) (int, error) {
	n := len(steps)
	ns, nos, kinds, ids, ats := make([]int64, n), make([]int16, n), make([]int16, n), make([][]byte, n), make([]time.Time, n)
	providers, codes := make([]*string, n), make([]*string, n)
	for i, s := range steps {
		ns[i], nos[i], kinds[i], ids[i], ats[i] = int64(s.Position), int16(s.Attempt), int16(s.Kind), s.ID[:24], s.At
		providers[i], codes[i] = nullable(s.Provider), nullable(s.Code)
	}
	var changed int
	if err := r.conn.QueryRow(ctx, `select retrace_batch($1,$2,$3,$4,$5,$6,$7)`, ns, nos, kinds, ids, ats, providers, codes).Scan(&changed); err != nil {
		return 0, unavailable("reconcile", err)
	}
	return changed, nil
}

// Remember keeps what is told of messages that the ledger doesn't have, in case
// they are submitted again. What was certainly not taken is no reason to.
func (r *Reconciliation) Remember(ctx context.Context, steps []message.Step) error {
	b := &pgx.Batch{}
	for _, s := range steps {
		switch s.Kind {
		case message.StepKind(message.Deferred), message.StepKind(message.Returned):
			continue
		}
		b.Queue(`insert into told (id, no, kind, at, provider, code) values ($1, $2, $3, $4, $5, $6) on conflict (id) do nothing`,
			s.ID[:], int16(s.Attempt), int16(s.Kind), s.At, nullable(s.Provider), nullable(s.Code))
	}
	if err := r.conn.SendBatch(ctx, b).Close(); err != nil {
		return unavailable("reconcile", err)
	}
	return nil
}

// Find is where the ledger has each message, by id; those that it doesn't have
// are left out.
func (r *Reconciliation) Find(ctx context.Context, ids []message.ID) (map[message.ID]message.Position, error) {
	raw := make(map[[16]byte][]message.ID, len(ids))
	for _, id := range ids {
		raw[id.KeyHash()] = append(raw[id.KeyHash()], id)
	}
	rows, err := r.conn.Query(ctx, `select key, lane, submission, count, print from identity where key = any ($1::uuid[])`, slices.Collect(maps.Keys(raw)))
	if err != nil {
		return nil, unavailable("reconcile", err)
	}
	found := make(map[message.ID]message.Position, len(ids))
	var key [16]byte
	var lane, count int16
	var submission int64
	var print []byte
	if _, err := pgx.ForEachRow(rows, []any{&key, &lane, &submission, &count, &print}, func() error {
		for _, id := range raw[key] {
			if id.Matches(message.Fingerprint(print)) && id.Index() < int(count) {
				found[id] = message.PositionOf(message.LaneOf(int64(lane)), submission, id.Index())
			}
		}
		return nil
	}); err != nil {
		return nil, unavailable("reconcile", err)
	}
	return found, nil
}

// Enter is Ledger.Enter.
func (r *Reconciliation) Enter(ctx context.Context, j message.Journaled) (message.Receipt, error) {
	return r.l.Enter(ctx, j)
}

// ParkWhole is Ledger.ParkWhole.
func (r *Reconciliation) ParkWhole(ctx context.Context, p message.Parked) error {
	return r.l.ParkWhole(ctx, p)
}

// End begins a new branch of the ledger's history, which starts it again.
func (r *Reconciliation) End(ctx context.Context, by string) error {
	err := pgx.BeginFunc(ctx, r.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `insert into lineage default values`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `update rollback set closed_at = clock_timestamp(), by = $1 where closed_at is null`, by)
		return err
	})
	if err != nil {
		return unavailable("reconcile", err)
	}
	return nil
}
