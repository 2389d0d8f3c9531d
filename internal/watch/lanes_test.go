package watch

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/incident"
	"github.com/stormpost/stormpost/internal/message"
)

// pipe is a lane with constant rates.
type pipe struct {
	lane      message.Lane
	depth     float64
	in, out   float64
	accepted  float64
	attempted float64
	age       time.Duration
	oldest    time.Time // since when; zero: another one at each look
	entered   float64   // of accepted
	journaled int64
	err       error
	counts    int // of the whole backlog
}

func (p *pipe) LanesUpTo(_ context.Context, most int64) ([]message.LaneView, error) {
	if most > countSoon {
		p.counts++
	}
	at := p.oldest
	if at.IsZero() {
		at = time.Now().Add(-p.age)
	}
	return []message.LaneView{{
		Lane: p.lane, Depth: min(most, int64(p.depth)), OldestAge: p.age, OldestAt: at, Accepted: int64(p.accepted), Attempted: int64(p.attempted),
		Entered: int64(p.entered), Journaled: p.journaled,
	}}, p.err
}

// pass lets d go by, second by second.
func (p *pipe) pass(d time.Duration) {
	for range int(d / time.Second) {
		out := min(p.out, p.depth+p.in)
		p.accepted, p.attempted, p.depth = p.accepted+p.in, p.attempted+out, p.depth+p.in-out
		switch {
		case p.depth < 1:
			p.age = 0
		case out < p.in || out == 0:
			p.age += time.Second
		}
		nap(time.Second)
	}
}

func stallsOf(p *pipe) func() []Check {
	return func() []Check { return []Check{Stalls(p, objectives, time.Now)} }
}

func TestStallOfAge(t *testing.T) {
	p := &pipe{lane: lane, in: 10, out: 100}
	within(t, stallsOf(p), func(t *testing.T, e *incident.Engine) {
		p.pass(time.Minute)
		p.out = 0
		p.pass(29 * time.Second)
		if n := len(e.Open()); n != 0 {
			t.Errorf("open before the objective: %+v", e.Open())
		}
		p.pass(11 * time.Second)
		i, ok := causes(e)["stall/transactional.email"]
		if !ok || i.Count < 300 || i.OldestAge < 30 || i.ETA != nil || i.Lane != "transactional.email" || i.Severity != incident.Critical {
			t.Fatalf("10 s after the objective: %+v", i)
		}
		p.out = 200
		p.pass(30 * time.Second)
		if n := len(e.Open()); n != 0 {
			t.Errorf("not resolved: %+v", e.Open())
		}
	})
}

func TestStallOfETA(t *testing.T) {
	p := &pipe{lane: lane, in: 10, out: 100}
	within(t, stallsOf(p), func(t *testing.T, e *incident.Engine) {
		p.pass(time.Minute)
		p.depth = 10_000 // 111 s at these rates
		p.pass(10 * time.Second)
		i, ok := causes(e)["stall/transactional.email"]
		if !ok || i.ETA == nil || *i.ETA < 80 || *i.ETA > 130 {
			t.Fatalf("%+v", i)
		}
		p.pass(2 * time.Minute)
		if n := len(e.Open()); n != 0 {
			t.Errorf("not resolved: %+v", e.Open())
		}
	})
}

// TestStallInADrain: its end counts in what the journal has, and what comes out of
// that is not new mail.
func TestStallInADrain(t *testing.T) {
	p := &pipe{lane: lane, out: 100, depth: 4000, journaled: 6000}
	within(t, stallsOf(p), func(t *testing.T, e *incident.Engine) {
		for range 20 {
			p.entered, p.accepted, p.depth, p.journaled = p.entered+200, p.accepted+200, p.depth+200, p.journaled-200
			p.pass(time.Second)
		}
		i := causes(e)["stall/transactional.email"]
		if left := (p.depth + float64(p.journaled)) / 100; i.ETA == nil || *i.ETA < left*0.8 || *i.ETA > left*1.3 || !strings.Contains(i.Summary, "of the journal") {
			t.Errorf("%+v, want an end in %.0f s", i, left)
		}
		p.journaled = -1
		p.pass(4 * time.Second)
		if i := causes(e)["stall/transactional.email"]; i.ETA != nil || !strings.Contains(i.Summary, "nobody here knows") {
			t.Errorf("%+v, want no end", i)
		}
	})
}

// TestStallOfOne: one that stays while others go opens an incident, once, and only
// when it has stayed for as long as nobody has to wait.
func TestStallOfOne(t *testing.T) {
	p := &pipe{lane: lane, in: 100, out: 100, depth: 300}
	within(t, stallsOf(p), func(t *testing.T, e *incident.Engine) {
		pass := func(d time.Duration) { // as the oldest stays
			for range int(d / time.Second) {
				p.age = time.Since(p.oldest) + time.Second
				p.pass(time.Second)
			}
		}
		p.pass(time.Minute)
		p.oldest = time.Now()
		pass(time.Minute)
		if page, _ := e.List("", "", 10); len(page.Items) > 0 {
			t.Fatalf("too early: %+v", page.Items)
		}
		pass(10 * time.Second)
		i, ok := causes(e)["stall/transactional.email"]
		if !ok || i.Count != 1 || i.OldestAge < 60 || i.ETA != nil || !strings.Contains(i.Summary, "has not moved for 1m") {
			t.Fatalf("%+v", i)
		}
		pass(10 * time.Minute)
		p.oldest, p.age = time.Time{}, 0
		p.pass(30 * time.Second)
		if page, _ := e.List("", "", 10); len(page.Items) != 1 || len(e.Open()) > 0 {
			t.Errorf("not one that is over: %+v", page.Items)
		}
	})
}

// TestOldOnesThatMove: a tenant's backlog, or what comes out of a journal, is old,
// and goes while others go. While the ledger is away nothing can go.
func TestOldOnesThatMove(t *testing.T) {
	for name, every := range map[string]time.Duration{"each second": time.Second, "each 20 s": 20 * time.Second} {
		t.Run(name, func(t *testing.T) {
			p := &pipe{lane: lane, in: 100, out: 100, depth: 50, age: time.Hour}
			within(t, stallsOf(p), func(t *testing.T, e *incident.Engine) {
				for range int(10 * time.Minute / every) {
					p.oldest = time.Now().Add(-p.age)
					p.pass(every)
				}
				p.err = errors.New("connection refused")
				nap(time.Minute)
				p.err = nil
				p.pass(20 * time.Second)
				if page, _ := e.List("", "", 10); len(page.Items) > 0 {
					t.Errorf("%+v", page.Items)
				}
			})
		})
	}
}

// TestLargeBacklog: it is counted seldom, and yet known.
func TestLargeBacklog(t *testing.T) {
	p := &pipe{lane: lane, in: 100, out: 1000, depth: 200_000}
	within(t, stallsOf(p), func(t *testing.T, e *incident.Engine) {
		for range 12 {
			p.pass(10 * time.Second)
			i := causes(e)["stall/transactional.email"]
			if off := float64(i.Count) - p.depth; i.Count == 0 || off < -3000 || off > 3000 || i.ETA == nil || *i.ETA < p.depth/900*0.8 || *i.ETA > p.depth/900*1.3 {
				t.Errorf("%+v, with %.0f left", i, p.depth)
			}
		}
		if p.counts > 13 {
			t.Errorf("counted %d times in two minutes", p.counts)
		}
	})
}

// TestNoStall: what isn't one.
func TestNoStall(t *testing.T) {
	for name, p := range map[string]*pipe{
		"an idle lane":                   {lane: lane},
		"a lane in balance":              {lane: lane, in: 100, out: 100, depth: 50, age: time.Second},
		"a backlog that is gone in 20 s": {lane: lane, in: 10, out: 110, depth: 2000},
		"a slow campaign":                {lane: campaign, in: 1, out: 50, depth: 100_000, age: 20 * time.Minute},
		"a lane nearly in balance":       {lane: lane, in: 99, out: 100, depth: 500, age: 5 * time.Second},
		"a message in minutes":           {lane: lane, in: 0.01, out: 0.01},
		"an old backlog that drains":     {lane: lane, in: 0, out: 500, depth: 10_000, age: 10 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			within(t, stallsOf(p), func(t *testing.T, e *incident.Engine) {
				p.pass(3 * time.Minute)
				if page, _ := e.List("", "", 10); len(page.Items) > 0 {
					t.Errorf("%+v", page.Items)
				}
			})
		})
	}
}
