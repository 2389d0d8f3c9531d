package dedupe

import (
	"context"
	"sync"
	"time"
)

// mostClockTrip is how long PostgreSQL may take to tell the time: half of it is
// the error.
const mostClockTrip = 100 * time.Millisecond

// serverClock is PostgreSQL's clock, as far as this process knows it.
type serverClock struct {
	mu     sync.Mutex
	local  time.Time // of this process; its monotonic reading counts
	server time.Time // then; zero: nobody knows
}

// told notes what PostgreSQL's clock said between two moments. What took long is
// only good for finding that it is another clock than it was.
func (c *serverClock) told(from, to, server time.Time) {
	trip := to.Sub(from)
	middle := from.Add(trip / 2)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case trip <= mostClockTrip:
		c.local, c.server = middle, server
	case !c.server.IsZero() && c.server.Add(middle.Sub(c.local)).Sub(server).Abs() > trip:
		c.server = time.Time{}
	}
}

// forget is for another PostgreSQL.
func (c *serverClock) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.server = time.Time{}
}

// at is what PostgreSQL's clock showed at a moment of this process.
func (c *serverClock) at(t time.Time) (server time.Time, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.server.Add(t.Sub(c.local)), !c.server.IsZero()
}

// until is ctx's end by PostgreSQL's clock, or nil where that isn't known.
func (l *Ledger) until(ctx context.Context) *time.Time {
	deadline, ok := ctx.Deadline()
	if !ok {
		return nil
	}
	server, known := l.horizon.clock.at(deadline)
	if !known {
		return nil
	}
	return &server
}

// ServerTime is what PostgreSQL's clock showed at a moment of this process, if that
// is known.
func (l *Ledger) ServerTime(t time.Time) (server time.Time, known bool) { return l.horizon.clock.at(t) }
