package dedupe

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// holdsFresh is how old the knowledge may be that nothing is held. With the
	// time that a statement takes it bounds how long after a hold's answer
	// something of it may still be claimed.
	holdsFresh = time.Second
	// mostHolds bounds the list of holds.
	mostHolds = 1000
	// letGoBatch is how many messages one transaction of a release lets go.
	letGoBatch = 10_000
)

// holdCache remembers for a second whether anything is held. What is held the
// database says, each time: without a hold that costs nothing.
type holdCache struct {
	mu  sync.Mutex
	any bool
	at  time.Time // before it was asked
}

// anyHolds says whether anything was held a second ago.
func (l *Ledger) anyHolds(ctx context.Context) (bool, error) {
	c := &l.holds
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Sub(c.at) < holdsFresh {
		return c.any, nil
	}
	if err := l.pool.QueryRow(ctx, `select exists (select from hold where not done and released_at is null)`).Scan(&c.any); err != nil {
		return false, err
	}
	c.at = now
	return c.any, nil
}

// free says whether it is known, without asking, that nothing was held a second ago.
func (l *Ledger) free() bool {
	c := &l.holds
	if !c.mu.TryLock() {
		return false
	}
	defer c.mu.Unlock()
	return !c.any && time.Since(c.at) < holdsFresh
}

// holdBack answers those claims that a hold stops, and returns the others. It
// comes before the first asking only: later ones find out what the first did.
func (l *Ledger) holdBack(calls []*claimCall) []*claimCall {
	verdicts := make(map[int32]message.ClaimVerdict)
	err := l.insist(func() error {
		ctx, cancel := context.WithTimeout(l.life, l.cfg.Deadline)
		defer cancel()
		any, err := l.anyHolds(ctx)
		if err != nil || !any {
			return err
		}
		clear(verdicts)
		return l.askHolds(ctx, calls, verdicts)
	})
	rest := calls[:0]
	for i, c := range calls {
		switch v, held := verdicts[int32(i)+1]; {
		case err != nil:
			c.err = fmt.Errorf("claim: %w", err)
			close(c.done)
		case held:
			c.claim.Verdict = v
			close(c.done)
		default:
			rest = append(rest, c)
		}
	}
	return rest
}

func (l *Ledger) askHolds(ctx context.Context, calls []*claimCall, verdicts map[int32]message.ClaimVerdict) error {
	ns, nos := make([]int64, len(calls)), make([]int16, len(calls))
	ids, providers := make([][]byte, len(calls)), make([]string, len(calls))
	for i, c := range calls {
		ns[i], nos[i] = int64(c.item.Position), int16(c.item.Attempt)
		ids[i], providers[i] = c.item.ID[:24], c.item.Provider
	}
	rows, err := l.pool.Query(ctx, `select ord, verdict from hold_back($1, $2, $3, $4)`, ns, nos, ids, providers)
	if err != nil {
		return err
	}
	var ord int32
	var verdict int16
	_, err = pgx.ForEachRow(rows, []any{&ord, &verdict}, func() error {
		verdicts[ord] = message.ClaimVerdict(verdict)
		return nil
	})
	return err
}

// What is held are columns: one is set, or a tag and a tenant.
const holdColumns = `h.id, coalesce(h.lane, 0), coalesce(h.tenant, 0), coalesce(h.provider, ''), coalesce(h.tag, ''), h.reason, h.by, h.at, coalesce(h.released_by, ''), h.released_at`

func scanHold(row pgx.CollectableRow) (h message.Hold, err error) {
	var lane int16
	var released *time.Time
	err = row.Scan(&h.ID, &lane, &h.Tenant, &h.Provider, &h.Tag, &h.Reason, &h.By, &h.At, &h.ReleasedBy, &released, &h.Aside)
	if lane != 0 {
		h.Lane = message.LaneOf(int64(lane))
	}
	if released != nil {
		h.ReleasedAt = *released
	}
	return h, err
}

// AddHold implements httpapi.Ledger.
func (l *Ledger) AddHold(ctx context.Context, h message.Hold) (message.Hold, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
		insert into hold as h (lane, tenant, provider, tag, reason, by) values (nullif($1::smallint, 0), nullif($2::int, 0), nullif($3, ''), nullif($4, ''), $5, $6)
		on conflict do nothing returning `+holdColumns+`, 0::bigint`,
		int16(h.Lane.Code()), h.Tenant, h.Provider, h.Tag, bounded(h.Reason, 2000), h.By)
	if err != nil {
		return h, unavailable("hold", err)
	}
	made, err := pgx.CollectExactlyOneRow(rows, scanHold)
	var pe *pgconn.PgError
	switch {
	case noRows(err):
		return h, fmt.Errorf("hold: %w", message.ErrHeld)
	case errors.As(err, &pe) && pe.ConstraintName == "hold_tenant_fkey":
		return h, message.FieldErrors{{Field: "tenant", Problem: "there is no such tenant"}}
	case err != nil:
		return h, unavailable("hold", err)
	}
	l.log.WarnContext(ctx, "held", "hold", made.ID, "by", made.By)
	return made, nil
}

// Holds implements httpapi.Ledger.
func (l *Ledger) Holds(ctx context.Context) ([]message.Hold, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
		select `+holdColumns+`, (select count(*) from (select from waiting w where w.held = h.id limit $2) x)
		from hold h where not h.done and h.released_at is null order by h.id limit $1`, mostHolds, mostCounted)
	if err != nil {
		return nil, unavailable("holds", err)
	}
	all, err := pgx.CollectRows(rows, scanHold)
	if err != nil {
		return nil, unavailable("holds", err)
	}
	return all, nil
}

// ReleaseHold implements httpapi.Ledger.
func (l *Ledger) ReleaseHold(ctx context.Context, id int64, by string) (message.Hold, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
		update hold h set released_at = clock_timestamp(), released_by = $2 where h.id = $1 and h.released_at is null
		returning `+holdColumns+`, (select count(*) from (select from waiting w where w.held = h.id limit $3) x)`, id, by, mostCounted)
	if err != nil {
		return message.Hold{}, unavailable("release", err)
	}
	h, err := pgx.CollectExactlyOneRow(rows, scanHold)
	if noRows(err) {
		var known bool
		if err := l.pool.QueryRow(ctx, `select exists (select from hold where id = $1)`, id).Scan(&known); err != nil {
			return h, unavailable("release", err)
		}
		if known {
			return h, fmt.Errorf("release: %w", message.ErrNotHeld)
		}
		return h, fmt.Errorf("release: %w", message.ErrNotFound)
	}
	if err != nil {
		return h, unavailable("release", err)
	}
	l.log.WarnContext(ctx, "hold released", "hold", h.ID, "by", by)
	return h, nil
}

// letGo lets go what released holds have set aside. Every process does, in its
// house, so a release that was cut off goes on.
func (l *Ledger) letGo(ctx context.Context) error {
	for start := time.Now(); time.Since(start) < l.cfg.BeatEvery/2; {
		sctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
		var n int
		err := l.pool.QueryRow(sctx, `select let_go($1)`, letGoBatch).Scan(&n)
		cancel()
		if err != nil {
			return unavailable("release", err)
		}
		if n == 0 {
			return nil
		}
	}
	return nil
}

// ReleaseMessage implements httpapi.Ledger.
func (l *Ledger) ReleaseMessage(ctx context.Context, id message.ID, by, reason string) (*message.View, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	n, err := l.findEntered(ctx, id)
	if err != nil {
		return nil, err
	}
	var released bool
	if err := l.pool.QueryRow(ctx, `select release_message($1, $2)`, int64(n), bounded(by+": "+reason, 2000)).Scan(&released); err != nil {
		return nil, unavailable("release", err)
	}
	if !released {
		return nil, fmt.Errorf("release: %w", message.ErrNotHeld)
	}
	return l.Message(ctx, 0, id)
}
