package dedupe

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stormpost/stormpost/internal/message"
)

// laneCodes is one more than the greatest lane code.
const laneCodes = 12

// laneCounts is what this process accepted and attempted since its start.
type laneCounts struct {
	in, out [laneCodes]atomic.Int64
}

func (c *laneCounts) accepted(l message.Lane, n int)  { c.in[l.Code()].Add(int64(n)) }
func (c *laneCounts) attempted(l message.Lane, n int) { c.out[l.Code()].Add(int64(n)) }

func (c *laneCounts) snapshot() (in, out []int64) {
	in, out = make([]int64, laneCodes), make([]int64, laneCodes)
	for i := range laneCodes {
		in[i], out[i] = c.in[i].Load(), c.out[i].Load()
	}
	return in, out
}

// laneReader remembers the counts of all processes for a minute, to tell rates,
// and the last answer for a second, since counting a backlog costs.
type laneReader struct {
	mu      sync.Mutex
	samples []laneSample
	answer  []message.LaneView
	at      time.Time
}

type laneSample struct {
	at      time.Time
	in, out [laneCodes]int64
}

const (
	rateWindow = time.Minute
	// mostCounted bounds the count of a backlog; Depth says no more than that.
	mostCounted = 500_000
)

// Lanes implements httpapi.Ledger.
func (l *Ledger) Lanes(ctx context.Context) ([]message.LaneView, error) {
	r := &l.lanes
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.at) < time.Second {
		return r.answer, nil
	}
	answer, err := l.lanesUpTo(ctx, mostCounted)
	if err != nil {
		return nil, err
	}
	r.answer, r.at = answer, time.Now()
	return answer, nil
}

// LanesUpTo is Lanes that counts no more than most of a lane's backlog: what is
// counted costs some 5 µs each.
func (l *Ledger) LanesUpTo(ctx context.Context, most int64) ([]message.LaneView, error) {
	l.lanes.mu.Lock()
	defer l.lanes.mu.Unlock()
	return l.lanesUpTo(ctx, min(most, mostCounted))
}

// lanesUpTo has the caller hold lanes.mu.
func (l *Ledger) lanesUpTo(ctx context.Context, most int64) ([]message.LaneView, error) {
	r := &l.lanes
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	if err := l.sampleLanes(ctx); err != nil {
		return nil, err
	}
	rows, err := l.pool.Query(ctx, `
		select l.code, u.depth, coalesce(extract(epoch from clock_timestamp() - u.oldest), 0)::float8,
		       w.later, w.due, coalesce(extract(epoch from clock_timestamp() - w.oldest), 0)::float8
		from lane l
		join lane_depths($1) u on u.lane = l.code
		cross join lateral (select count(*) filter (where due > clock_timestamp()) as later,
			count(*) filter (where due <= clock_timestamp()) as due, min(due) filter (where due <= clock_timestamp()) as oldest
			from waiting where lane = l.code) w`, most)
	if err != nil {
		return nil, unavailable("lanes", err)
	}
	views := make(map[message.Lane]message.LaneView)
	var code int16
	var depth, later, due int64
	var oldest, oldestDue float64
	if _, err := pgx.ForEachRow(rows, []any{&code, &depth, &oldest, &later, &due, &oldestDue}, func() error {
		in, out := r.rates(int(code))
		v := message.LaneView{
			Lane: message.LaneOf(int64(code)), Depth: depth + due, Waiting: later,
			OldestAge: time.Duration(max(0, oldest, oldestDue) * float64(time.Second)), InRate: in, OutRate: out,
			Accepted: r.latest().in[code], Attempted: r.latest().out[code],
		}
		v.ETA = eta(v)
		views[v.Lane] = v
		return nil
	}); err != nil {
		return nil, unavailable("lanes", err)
	}
	var all []message.LaneView
	for _, lane := range message.Lanes() {
		all = append(all, views[lane])
	}
	return all, nil
}

func eta(v message.LaneView) time.Duration {
	switch net := v.OutRate - v.InRate; {
	case v.Depth == 0:
		return 0
	case net <= 0:
		return -1
	default:
		return time.Duration(math.Min(float64(v.Depth)/net, 1e9) * float64(time.Second))
	}
}

// sampleLanes adds the counts of all processes. The caller holds lanes.mu.
func (l *Ledger) sampleLanes(ctx context.Context) error {
	rows, err := l.pool.Query(ctx, `
		select i - 1, coalesce(sum(accepted[i]), 0)::bigint, coalesce(sum(attempted[i]), 0)::bigint
		from process, generate_series(1, $1) i where beat_at > clock_timestamp() - interval '10 minutes' group by i`, laneCodes)
	if err != nil {
		return unavailable("lanes", err)
	}
	s := laneSample{at: time.Now()}
	var i int32
	var in, out int64
	if _, err := pgx.ForEachRow(rows, []any{&i, &in, &out}, func() error {
		s.in[i], s.out[i] = in, out
		return nil
	}); err != nil {
		return unavailable("lanes", err)
	}
	r := &l.lanes
	r.samples = append(r.samples, s)
	for len(r.samples) > 2 && s.at.Sub(r.samples[1].at) >= rateWindow {
		r.samples = r.samples[1:]
	}
	return nil
}

func (r *laneReader) latest() *laneSample { return &r.samples[len(r.samples)-1] }

// rates is messages accepted and attempts made a second. A process that fell
// out of the sample would make them negative: then they are 0 for a while.
func (r *laneReader) rates(code int) (in, out float64) {
	first, last := r.samples[0], r.samples[len(r.samples)-1]
	if s := last.at.Sub(first.at).Seconds(); s > 0 {
		in = max(0, float64(last.in[code]-first.in[code])/s)
		out = max(0, float64(last.out[code]-first.out[code])/s)
	}
	return in, out
}
