package watch

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/stormpost/stormpost/internal/incident"
	"github.com/stormpost/stormpost/internal/message"
)

// Lanes looks how the lanes are doing: the ledger.
type Lanes interface {
	// LanesUpTo counts at most so many of each lane's backlog, which costs.
	LanesUpTo(ctx context.Context, most int64) ([]message.LaneView, error)
}

const (
	// rateOver is the time over which rates are taken, and rateLeast the least
	// of it from which they are told.
	rateOver  = 10 * time.Second
	rateLeast = 3 * time.Second
	// stillFor is how long nothing must have moved.
	stillFor = 4 * time.Second
	// stuckLeast is for how long at least the oldest must have stayed the same.
	stuckLeast = 30 * time.Second

	// A backlog is counted up to countSoon at each look, and beyond it up to
	// countAll as seldom as a tenth of the time allows. Between, what was
	// accepted and attempted tells how it changes.
	countSoon  = 10_000
	countAll   = 500_000
	countEvery = 10 * time.Second
)

// Stalls checks each lane against the objective of its class, the age that its
// oldest ready message may have. A lane stalls when its oldest is older while
// nothing moves, when what comes now would wait for longer, at the rates of
// the last seconds, or when others pass the oldest by for as long again. A backlog
// that will be gone in time is no stall.
func Stalls(lanes Lanes, objectives map[message.Class]time.Duration, now func() time.Time) Check {
	s := &stalls{lanes: lanes, objectives: objectives, now: now, past: make(map[message.Lane]*laneHistory)}
	return Check{Kinds: []incident.Kind{incident.Stall}, Look: s.look, Costs: true}
}

type stalls struct {
	lanes      Lanes
	objectives map[message.Class]time.Duration
	now        func() time.Time
	past       map[message.Lane]*laneHistory

	counted map[message.Lane]message.LaneView // by the last count of all
	next    time.Time                         // when the next is due
}

// laneHistory is the last views of a lane, oldest first.
type laneHistory struct {
	at    []time.Time
	views []message.LaneView
	moved time.Time // when an attempt was last seen to be made; at first, since when it is looked at
	same  time.Time // since when the oldest is the same one
}

func (s *stalls) look(ctx context.Context) ([]incident.Condition, error) {
	views, err := s.lanes.LanesUpTo(ctx, countSoon)
	if err != nil {
		for _, h := range s.past {
			h.same = s.now() // nothing could move
		}
		return nil, err
	}
	s.countAll(ctx, views)
	now := s.now()
	var found []incident.Condition
	for _, v := range views {
		if all, ok := s.counted[v.Lane]; ok && v.Depth >= countSoon {
			v.Depth = max(v.Depth, all.Depth+v.Accepted-all.Accepted-(v.Attempted-all.Attempted))
		}
		h := s.past[v.Lane]
		if h == nil {
			h = &laneHistory{moved: now}
			s.past[v.Lane] = h
		}
		h.add(now, v)
		if c, ok := h.judge(now, s.objectives[v.Lane.Class]); ok {
			found = append(found, c)
		}
	}
	return found, nil
}

// countAll counts large backlogs, when it is time. If that can't be done, the
// backlog is as large as it is known to be.
func (s *stalls) countAll(ctx context.Context, views []message.LaneView) {
	large := slices.ContainsFunc(views, func(v message.LaneView) bool { return v.Depth >= countSoon })
	began := s.now()
	if !large {
		s.counted = nil
	}
	if !large || began.Before(s.next) {
		return
	}
	all, err := s.lanes.LanesUpTo(ctx, countAll)
	s.next = s.now().Add(max(countEvery, 9*s.now().Sub(began)))
	if err != nil {
		return
	}
	s.counted = make(map[message.Lane]message.LaneView, len(all))
	for _, v := range all {
		s.counted[v.Lane] = v
	}
}

func (h *laneHistory) add(now time.Time, v message.LaneView) {
	if n := len(h.views); n > 0 && h.views[n-1].Attempted != v.Attempted {
		h.moved = now
	}
	if n := len(h.views); n == 0 || !h.views[n-1].OldestAt.Equal(v.OldestAt) {
		h.same = now
	}
	h.at, h.views = append(h.at, now), append(h.views, v)
	for len(h.at) > 2 && now.Sub(h.at[1]) >= rateOver {
		h.at, h.views = h.at[1:], h.views[1:]
	}
}

// judge says whether the lane stalls.
func (h *laneHistory) judge(now time.Time, objective time.Duration) (incident.Condition, bool) {
	v := h.views[len(h.views)-1]
	c := incident.Condition{
		Kind: incident.Stall, Subject: v.Lane.String(), Lane: v.Lane.String(), Count: v.Depth, Oldest: v.OldestAge,
		Command: fmt.Sprintf("stormpost messages --state queued --class %s --channel %s", v.Lane.Class, v.Lane.Channel),
	}
	if v.Lane.Class != message.Transactional {
		c.Severity = incident.Warning
	}
	if v.Depth == 0 || objective <= 0 {
		return c, false
	}
	if v.OldestAge > objective && now.Sub(h.moved) >= stillFor {
		c.ETA = -1
		c.Summary = fmt.Sprintf("%s: nothing moves, and %d messages wait, the oldest for %s (objective %s)",
			v.Lane, v.Depth, short(v.OldestAge), short(objective))
		return c, true
	}
	span := now.Sub(h.at[0])
	if span < rateLeast {
		return c, false
	}
	first := h.views[0]
	in := float64(max(0, v.Accepted-v.Entered-(first.Accepted-first.Entered))) / span.Seconds()
	out := float64(max(0, v.Attempted-first.Attempted)) / span.Seconds()
	if out == 0 {
		return c, false // the age tells
	}
	// Whoever comes last now waits for all before it. That is what is judged,
	// and not when the backlog ends: the end of a lane in balance, or of one
	// that is nearly so, is never or far away, although nobody waits for long.
	if float64(v.Depth)/out <= objective.Seconds() {
		return h.stuck(now, objective, c)
	}
	c.ETA = -1
	ends := "it grows"
	switch {
	case v.Journaled < 0:
		ends = "and nobody here knows how many the journal has"
	case out > in:
		c.ETA = time.Duration(min(float64(v.Depth+v.Journaled)/(out-in), 1e9) * float64(time.Second))
		ends = "gone in " + short(c.ETA)
		if v.Journaled > 0 {
			ends = fmt.Sprintf("gone with %d of the journal in %s", v.Journaled, short(c.ETA))
		}
	}
	c.Summary = fmt.Sprintf("%s: %d messages wait at %.0f/s out and %.0f/s in, %s (objective %s)", v.Lane, v.Depth, out, in, ends, short(objective))
	return c, true
}

// stuck says whether the oldest stays where it is while others go. While a backlog
// moves, each tenant's, too, its oldest is another one after at most as long as the
// lane's last one waits, which is within the objective here.
func (h *laneHistory) stuck(now time.Time, objective time.Duration, c incident.Condition) (incident.Condition, bool) {
	long, same := max(objective, stuckLeast), now.Sub(h.same)
	if c.Oldest <= objective+long || same < long {
		return c, false
	}
	c.Count, c.ETA = 1, -1
	c.Summary = fmt.Sprintf("%s: others go, and the oldest message, of %s, has not moved for %s (objective %s)", c.Lane, short(c.Oldest), short(same), short(objective))
	return c, true
}

// short is a duration for people.
func short(d time.Duration) string {
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
