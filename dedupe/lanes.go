package dedupe

import (
	"context"
	"math"
	"slices"
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

// laneReader remembers the last answer for a second, since counting a backlog
// costs, and what the heartbeats of the last seconds told, for the rates.
type laneReader struct {
	mu     sync.Mutex
	beats  map[int32]*beats // by process
	total  laneSample       // of all processes
	answer []message.LaneView
	at     time.Time
}

const (
	// mostCounted bounds the count of a backlog; Depth says no more than that.
	mostCounted = 10_000_000
	// countedOne is up to where a backlog is counted one by one, at some 5 µs
	// each; beyond it all rows above the cursor are, at some 0.3 µs each.
	countedOne = 20_000
)

// Lanes implements httpapi.Ledger.
func (l *Ledger) Lanes(ctx context.Context) ([]message.LaneView, error) {
	r := &l.lanes
	r.mu.Lock()
	defer r.mu.Unlock()
	if age := time.Since(r.at); age < time.Second {
		answer := slices.Clone(r.answer)
		for i := range answer { // of what was left then, so much has passed
			if eta := &answer[i].ETA; *eta > 0 {
				*eta = max(0, *eta-age)
			}
		}
		return answer, nil
	}
	began := time.Now()
	answer, err := l.lanesUpTo(ctx, countedOne)
	if err == nil {
		err = l.countLarge(ctx, answer)
	}
	if err != nil {
		return nil, err
	}
	r.answer, r.at = answer, began
	return answer, nil
}

// LanesUpTo is Lanes that counts no more than most of a lane's backlog: what is
// counted costs some 5 µs each.
func (l *Ledger) LanesUpTo(ctx context.Context, most int64) ([]message.LaneView, error) {
	l.lanes.mu.Lock()
	defer l.lanes.mu.Unlock()
	return l.lanesUpTo(ctx, min(most, 500_000))
}

// countLarge counts those backlogs that are larger than was counted.
func (l *Ledger) countLarge(ctx context.Context, views []message.LaneView) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	for i := range views {
		v := &views[i]
		if v.Depth < countedOne {
			continue
		}
		var depth, due int64
		if err := l.pool.QueryRow(ctx, `select lane_size($1, $2), (select count(*) from waiting where lane = $1 and due <= clock_timestamp())`,
			int16(v.Lane.Code()), mostCounted).Scan(&depth, &due); err != nil {
			return unavailable("lanes", err)
		}
		v.Depth = max(v.Depth, depth+due)
		v.ETA = eta(*v)
	}
	return nil
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
			Accepted: r.total.in[code], Attempted: r.total.out[code],
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
