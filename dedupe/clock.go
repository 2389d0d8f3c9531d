package dedupe

import (
	"context"
	"sync"
	"time"
)

const (
	// mostClockTrip is how long PostgreSQL may take to tell the time: half of it is
	// the error.
	mostClockTrip = 100 * time.Millisecond
	// clockDrift is how fast two clocks part at most: by one second in so many. (NTP
	// steers by 500 ppm at most.)
	clockDrift = 2000
)

// serverClock is PostgreSQL's clock, as far as this process knows it.
type serverClock struct {
	mu     sync.Mutex
	local  time.Time     // of this process; its monotonic reading counts
	server time.Time     // then; zero: nobody knows
	off    time.Duration // by how much that may be wrong
}

// told notes what PostgreSQL's clock said between two moments. The best answer
// stands until its error has grown over that of a new one. What took long is only
// good for finding that it is another clock than it was.
func (c *serverClock) told(from, to, server time.Time) {
	trip := to.Sub(from)
	middle, off := from.Add(trip/2), trip/2
	c.mu.Lock()
	defer c.mu.Unlock()
	age := middle.Sub(c.local)
	grown := c.off + age/clockDrift
	another := c.server.Add(age).Sub(server).Abs() > off+grown
	switch {
	case trip <= mostClockTrip && (c.server.IsZero() || another || off <= grown):
		c.local, c.server, c.off = middle, server, off
	case another:
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
