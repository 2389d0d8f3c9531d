package dedupe

import (
	"testing"
	"time"
)

// The clock is that of the last quick answer; a slow one that doesn't fit shows
// that it is another one by now.
func TestServerClock(t *testing.T) {
	var c serverClock
	start, ms := time.Now(), time.Millisecond
	knows := func(after, want time.Duration) {
		t.Helper()
		at, known := c.at(start.Add(after))
		if got := at.Sub(start); known != (want != 0) || known && got != want {
			t.Errorf("%v, %v, want %v", got, known, want)
		}
	}
	told := func(from, to, server time.Duration) { c.told(start.Add(from), start.Add(to), start.Add(server)) }
	knows(0, 0)
	told(0, 101*ms, 5000*ms)
	knows(0, 0)
	told(0, 100*ms, 5000*ms)
	knows(50*ms, 5000*ms)
	knows(1050*ms, 6000*ms)
	told(2000*ms, 4000*ms, 7500*ms) // somewhere in it
	knows(1050*ms, 6000*ms)
	told(2000*ms, 4000*ms, 10_000*ms) // another clock
	knows(1050*ms, 0)
	told(0, 0, 5000*ms)
	c.forget()
	knows(0, 0)
}
