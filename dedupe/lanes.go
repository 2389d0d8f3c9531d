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
	in, entered, out [laneCodes]atomic.Int64 // entered: of in, out of a journal
}

func (c *laneCounts) accepted(l message.Lane, n int, entered bool) {
	c.in[l.Code()].Add(int64(n))
	if entered {
		c.entered[l.Code()].Add(int64(n))
	}
}
func (c *laneCounts) attempted(l message.Lane, n int) { c.out[l.Code()].Add(int64(n)) }

// snapshot is what a heartbeat tells. What was entered comes behind what was
// accepted, where the release before doesn't look.
func (c *laneCounts) snapshot() (in, out []int64) {
	in, out = make([]int64, 2*laneCodes), make([]int64, laneCodes)
	for i := range laneCodes {
		in[i], in[laneCodes+i], out[i] = c.in[i].Load(), c.entered[i].Load(), c.out[i].Load()
	}
	return in, out
}

// laneReader remembers the last answer for a second, since counting a backlog
// costs, and what the heartbeats of the last seconds told, for the rates.
type laneReader struct {
	mu     sync.Mutex
	beats  map[int32]*beats // by process
	total  laneSample       // of all processes
	due    map[message.Lane]int64
	large  map[message.Lane]largeCount
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
	if time.Since(r.at) < time.Second {
		return r.told(), nil
	}
	began := time.Now()
	answer, err := l.lanesUpTo(ctx, countedOne)
	if err != nil {
		return nil, err
	}
	l.countLarge(ctx, answer)
	r.answer, r.at = answer, began
	return r.told(), nil
}

// told is the last answer as it is now: of what was left when it was counted, which
// itself takes a while, so much has passed.
func (r *laneReader) told() []message.LaneView {
	answer, age := slices.Clone(r.answer), time.Since(r.at)
	for i := range answer {
		if eta := &answer[i].ETA; *eta > 0 {
			*eta = max(0, *eta-age)
		}
	}
	return answer
}

// LanesUpTo is Lanes that counts no more than most of a lane's backlog: what is
// counted costs some 5 µs each.
func (l *Ledger) LanesUpTo(ctx context.Context, most int64) ([]message.LaneView, error) {
	l.lanes.mu.Lock()
	defer l.lanes.mu.Unlock()
	return l.lanesUpTo(ctx, min(most, 500_000))
}

// largeCount is the last count of a large backlog.
type largeCount struct {
	depth, gone int64     // gone: accepted less attempted, by then
	next        time.Time // when it may be counted again
}

// countLarge counts those backlogs that are larger than was counted: each as
// seldom as a tenth of the time allows. In between, and when counting takes too
// long, what was accepted and attempted since tells how they have changed.
func (l *Ledger) countLarge(ctx context.Context, views []message.LaneView) {
	r := &l.lanes
	if r.large == nil {
		r.large = make(map[message.Lane]largeCount)
	}
	for i := range views {
		v := &views[i]
		if v.Depth < countedOne {
			delete(r.large, v.Lane)
			continue
		}
		c, known := r.large[v.Lane]
		gone := v.Accepted - v.Attempted
		if began := time.Now(); began.After(c.next) {
			depth, err := l.laneSize(ctx, v.Lane)
			switch {
			case err == nil:
				c.depth, c.gone, known = depth, gone, true
			case ctx.Err() == nil:
				l.log.Warn("a backlog is too large to be counted", "lane", v.Lane.String(), "error", err)
			}
			c.next = time.Now().Add(10 * time.Since(began))
			r.large[v.Lane] = c
		}
		if known {
			v.Depth = max(v.Depth, c.depth+gone-c.gone+r.due[v.Lane])
			v.ETA = eta(*v)
		}
	}
}

func (l *Ledger) laneSize(ctx context.Context, lane message.Lane) (n int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	err = l.pool.QueryRow(ctx, `select lane_size($1, $2)`, int16(lane.Code()), mostCounted).Scan(&n)
	return n, err
}

// lanesUpTo has the caller hold lanes.mu.
func (l *Ledger) lanesUpTo(ctx context.Context, most int64) ([]message.LaneView, error) {
	r := &l.lanes
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	if err := l.sampleLanes(ctx); err != nil {
		return nil, err
	}
	left := l.journaled() // before the rest: what is entered meanwhile is in both, not in neither
	rows, err := l.pool.Query(ctx, `
		select l.code, u.depth, w.later, w.due, least(u.oldest, w.oldest),
		       greatest(extract(epoch from clock_timestamp() - least(u.oldest, w.oldest)), 0)::float8
		from lane l
		join lane_depths($1) u on u.lane = l.code
		cross join lateral (select count(*) filter (where due > clock_timestamp()) as later,
			count(*) filter (where due <= clock_timestamp()) as due, min(due) filter (where due <= clock_timestamp()) as oldest
			from waiting where lane = l.code) w`, most)
	if err != nil {
		return nil, unavailable("lanes", err)
	}
	views := make(map[message.Lane]message.LaneView)
	r.due = make(map[message.Lane]int64)
	var code int16
	var depth, later, due int64
	var oldest *time.Time
	var age float64
	if _, err := pgx.ForEachRow(rows, []any{&code, &depth, &later, &due, &oldest, &age}, func() error {
		in, entered, out := r.rates(int(code))
		v := message.LaneView{
			Lane: message.LaneOf(int64(code)), Depth: depth + due, Waiting: later,
			OldestAge: time.Duration(age * float64(time.Second)), InRate: in, OutRate: out,
			Accepted: r.total.in[code], Entered: r.total.entered[code], Attempted: r.total.out[code],
		}
		if oldest != nil {
			v.OldestAt = *oldest
		}
		v.Journaled = left(v.Lane, entered)
		v.ETA = eta(v)
		views[v.Lane], r.due[v.Lane] = v, due
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

// journaled says what only the journals have of a lane, of which so many a second
// were entered lately; -1 where that isn't known. Since it was counted some were
// entered, which are ready now.
func (l *Ledger) journaled() func(lane message.Lane, entered float64) int64 {
	if l.cfg.Journaled == nil {
		return func(message.Lane, float64) int64 { return 0 }
	}
	all, at := l.cfg.Journaled()
	age := time.Since(at).Seconds()
	return func(lane message.Lane, entered float64) int64 {
		n, known := all[lane]
		if !known {
			return -1
		}
		return max(0, n-int64(entered*age))
	}
}

func eta(v message.LaneView) time.Duration {
	left := v.Depth + v.Journaled
	switch net := v.OutRate - v.InRate; {
	case v.Journaled < 0:
		return -1
	case left == 0:
		return 0
	case net <= 0:
		return -1
	default:
		return time.Duration(math.Min(float64(left)/net, 1e9) * float64(time.Second))
	}
}
