package dedupe

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// maxOpen bounds how many open attempts one heartbeat lists.
const maxOpen = 100_000

// processID is this process's row, made at first use: a new one for every
// start, so that no process is ever taken for another.
func (l *Ledger) processID(ctx context.Context) (int32, error) {
	if id := l.process.Load(); id != 0 {
		return id, nil
	}
	var id int32
	if err := l.pool.QueryRow(ctx, `insert into process (name, give_up) values ($1, $2) returning id`, l.cfg.Name, l.cfg.GiveUp).Scan(&id); err != nil {
		return 0, fmt.Errorf("register process: %w", err)
	}
	// Of two that raced here one row stays unused.
	if l.process.CompareAndSwap(0, id) {
		return id, nil
	}
	return l.process.Load(), nil
}

// Beat implements delivery.Ledger.
func (l *Ledger) Beat(ctx context.Context, open []message.AttemptKey, giveUp time.Duration) error {
	if err := l.stands("beat"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	id, err := l.processID(ctx)
	if err != nil {
		return unavailable("beat", err)
	}
	open = open[:min(len(open), maxOpen)]
	ns, nos := make([]int64, len(open)), make([]int16, len(open))
	for i, k := range open {
		ns[i], nos[i] = int64(k.Position), int16(k.Attempt)
	}
	accepted, attempted := l.counts.snapshot()
	// A server that comes to it late doesn't take the old list for a new one.
	tag, err := l.pool.Exec(ctx, `
		update process set beat_at = clock_timestamp(), give_up = $2, open_n = $3, open_no = $4, accepted = $5, attempted = $6,
			given_up_at = null, barrier = null, swept = false
		where id = $1 and coalesce(clock_timestamp() <= $7, true)`, id, giveUp, ns, nos, accepted, attempted, l.until(ctx))
	if err == nil && tag.RowsAffected() == 0 {
		err = errors.New("it came too late, or its process is not known")
	}
	if err != nil {
		return unavailable("beat", err)
	}
	return nil
}

// Workers counts the processes whose heartbeats come and that have a worker, as
// their names tell. One without roles in its name counts as one with a worker.
func (l *Ledger) Workers(ctx context.Context) (int, error) {
	if err := l.stands("workers"); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	var n int
	if err := l.pool.QueryRow(ctx, `
		select count(*) from process
		where beat_at > clock_timestamp() - $1::interval and (name !~ '/' or name ~ '^(.*,)?worker[,/]')`, l.gone()).Scan(&n); err != nil {
		return 0, unavailable("workers", err)
	}
	return n, nil
}

// gone is how old a heartbeat is when its process counts as gone, and how long
// a silence of the ledger counts as an outage.
func (l *Ledger) gone() time.Duration { return 3 * l.cfg.BeatEvery }

// Run keeps the ledger's house until ctx ends: the horizon, the sweep for
// doubts, what released holds let go and, every minute, the windows of positions. Any number of processes
// may run it. beat is for processes without a worker: those with one beat
// themselves.
func (l *Ledger) Run(ctx context.Context, beat bool) error {
	tick := time.NewTicker(l.cfg.BeatEvery / 2)
	defer tick.Stop()
	var grown time.Time
	down := false
	for {
		err := l.lookAround(ctx)
		if err == nil {
			err = l.stands("house")
		}
		if err == nil {
			err = l.horizon.probe(ctx, l.pool, l.cfg.Deadline)
		}
		if err == nil && beat {
			err = l.Beat(ctx, nil, l.cfg.GiveUp)
		}
		if err == nil {
			err = l.sweep(ctx)
		}
		if err == nil {
			err = l.letGo(ctx)
		}
		if err == nil && time.Since(grown) > time.Minute {
			if err = l.grow(ctx); err == nil {
				grown = time.Now()
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if down != (err != nil) {
			down = err != nil
			if down {
				l.log.WarnContext(ctx, "ledger housekeeping is failing", "error", err)
			} else {
				l.log.InfoContext(ctx, "ledger housekeeping works again")
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
