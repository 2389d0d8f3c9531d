package dedupe

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

// replayAhead is how many attempts of a lane may be due before a replay waits
// for them: so it gives no more than providers take.
const replayAhead = 2000

// LeaseReplays implements recovery.Replays.
func (l *Ledger) LeaseReplays(ctx context.Context, hold time.Duration) ([]message.Replay, error) {
	if err := l.stands("lease"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	worker, err := l.processID(ctx)
	if err != nil {
		return nil, unavailable("lease", err)
	}
	var open bool
	if err := l.pool.QueryRow(ctx, `select exists (select from replay r where r.status = 'active')`).Scan(&open); err != nil || !open {
		return nil, replayError("lease", err)
	}
	// Whoever has it keeps it, in the middle of a step as well.
	rows, err := l.pool.Query(ctx, `
		update replay r set worker = $1, leased_until = clock_timestamp() + $2::interval,
			pace_since = case when r.counted and (r.worker is distinct from $1 or r.pace_since is null) then clock_timestamp() else r.pace_since end,
			pace_from = case when r.worker is distinct from $1 or r.pace_since is null then r.given else r.pace_from end
		where r.id in (
			select x.id from replay x where x.status = 'active' and (x.worker = $1 or x.leased_until < clock_timestamp())
			order by x.id for update skip locked)
		returning `+replayColumns, worker, hold)
	if err != nil {
		return nil, unavailable("lease", err)
	}
	all, err := pgx.CollectRows(rows, scanReplay)
	return all, replayError("lease", err)
}

// StuckReplays is the active replays that no step has moved for so long.
func (l *Ledger) StuckReplays(ctx context.Context, after time.Duration) ([]message.Replay, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
		select `+replayColumns+` from replay r where r.status = 'active' and r.moved_at < clock_timestamp() - $1::interval order by r.id`, after)
	if err != nil {
		return nil, unavailable("replays", err)
	}
	all, err := pgx.CollectRows(rows, scanReplay)
	return all, replayError("replays", err)
}

// StepReplay implements recovery.Replays.
func (l *Ledger) StepReplay(ctx context.Context, r *message.Replay, span int64, most int) (message.ReplayStep, error) {
	var step message.ReplayStep
	if err := l.stands("replay"); err != nil {
		return step, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	worker, err := l.processID(ctx)
	if err != nil {
		return step, unavailable("replay", err)
	}
	hi, ok, err := l.window(ctx, r.Pos, r.Top, span)
	if err != nil {
		return step, unavailable("replay", err)
	}
	if !ok {
		return l.turnPage(ctx, r, worker)
	}
	var edge int64
	err = l.pool.QueryRow(ctx, `select edge, gave, full_ from replay_step($1, $2, $3, $4, $5, $6)`, r.ID, worker, int64(r.Pos), hi, most, replayAhead).
		Scan(&edge, &step.Gave, &step.Full)
	switch {
	case noRows(err):
		step.Ended = true
		return step, nil
	case err != nil:
		return step, unavailable("replay", err)
	}
	step.Filled = edge < hi && !step.Full
	r.Pos = message.Position(edge)
	return step, nil
}

// turnPage goes on behind the end of a lane: to the next one, to the second
// pass, or to the end.
func (l *Ledger) turnPage(ctx context.Context, r *message.Replay, worker int32) (message.ReplayStep, error) {
	to, more := next(r.Filter, r.Pos.Lane())
	if !more {
		to = startOf(lanesOf(r.Filter)[0])
	}
	rows, err := l.pool.Query(ctx, `
		update replay r set pos = $4, moved_at = clock_timestamp(),
			counted = r.counted or not $5, 
			left_out = case when $5 or r.counted or r.total = 0 then r.left_out else '{}' end,
			status = case when $5 or not r.counted and r.total > 0 then r.status else 'done' end,
			ended_at = case when $5 or not r.counted and r.total > 0 then null else clock_timestamp() end,
			pace_since = case when r.counted or $5 then r.pace_since else clock_timestamp() end,
			pace_from = case when r.counted or $5 then r.pace_from else 0 end
		where r.id = $1 and r.worker = $2 and r.pos = $3 and r.status = 'active' returning `+replayColumns,
		r.ID, worker, int64(r.Pos), int64(to), more)
	if err != nil {
		return message.ReplayStep{}, unavailable("replay", err)
	}
	now, err := pgx.CollectExactlyOneRow(rows, scanReplay)
	switch {
	case noRows(err):
		return message.ReplayStep{Ended: true}, nil
	case err != nil:
		return message.ReplayStep{}, unavailable("replay", err)
	}
	*r = now
	if r.Status == message.ReplayDone {
		l.log.InfoContext(ctx, "replay is done", "replay", r.ID, "given", r.Given)
	}
	return message.ReplayStep{Ended: r.Status == message.ReplayDone}, nil
}
